//! Every record store keeps the same contract.

use perennial_store::records::memory::MemoryRecords;
use perennial_store::records::sqlite::SqliteRecords;
use perennial_store::records::{RecordError, RecordStore as _, Transaction, conformance};

#[test]
fn memory_keeps_the_contract() {
    conformance(&MemoryRecords::default());
}

#[test]
fn sqlite_keeps_the_contract() {
    let directory = tempfile::tempdir().unwrap();
    conformance(&SqliteRecords::open_or_create(&directory.path().join("records.db")).unwrap());
}

#[test]
fn records_survive_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("records.db");
    SqliteRecords::open_or_create(&path).unwrap().commit(&Transaction::new().put("k", b"v".to_vec())).unwrap();
    let reopened = SqliteRecords::open_or_create(&path).unwrap();
    assert_eq!(reopened.get("k").unwrap().unwrap().bytes, b"v");
    assert_eq!(reopened.integrity().unwrap(), Vec::<String>::new());
}

#[test]
fn a_file_that_is_no_record_store_is_named_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("records.db");
    let garbage = vec![0x5a_u8; 8192];
    #[expect(clippy::disallowed_methods, reason = "the test damages a file on purpose")]
    std::fs::write(&path, &garbage).unwrap();
    let error = SqliteRecords::open_or_create(&path).unwrap_err();
    assert!(matches!(error, RecordError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("records.db"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), garbage);
}
