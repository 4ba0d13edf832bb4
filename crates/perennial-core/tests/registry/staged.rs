//! What uploads that are not finished take.

use perennial_core::registry::name::UploadId;
use perennial_core::registry::quota::Quota;
use perennial_core::registry::staged::{Staged, UPLOADS_MAX, UPLOADS_PER_REPOSITORY_MAX};

fn id(number: usize) -> UploadId {
    UploadId::from_random(u128::try_from(number).unwrap().to_be_bytes())
}

#[test]
fn what_is_not_finished_counts_against_the_quota_as_what_is_held_does() {
    let quota = Quota(Some(100));
    let mut staged = Staged::default();
    for number in [1, 2, 3] {
        staged.begin(&id(number), if number == 3 { "b" } else { "a" }).unwrap();
    }
    staged.hold(&id(1), 60, 10, quota).unwrap();
    let before = staged.clone();
    assert_eq!(staged.hold(&id(2), 31, 10, quota).unwrap_err().status, 403);
    assert_eq!(staged, before, "a refusal changes nothing");
    staged.hold(&id(2), 30, 10, quota).unwrap();
    staged.hold(&id(3), 100, 0, quota).unwrap();
    // More for the same upload replaces what it had.
    staged.hold(&id(1), 50, 20, quota).unwrap();
    assert!(staged.hold(&id(1), 51, 20, quota).is_err());
    staged.set(&id(1), 5);
    staged.hold(&id(2), 75, 20, quota).unwrap();
    staged.end(&id(2));
    staged.end(&id(2));
    staged.hold(&id(1), 80, 20, quota).unwrap();
    staged.hold(&id(1), u64::MAX, u64::MAX, Quota(None)).unwrap();
    for number in [1, 3] {
        staged.end(&id(number));
    }
    assert_eq!(staged, Staged::default(), "nothing is left of what has ended");
}

#[test]
fn there_are_only_so_many_uploads_in_a_repository_and_in_all() {
    let mut staged = Staged::default();
    for number in 0..UPLOADS_MAX {
        staged.begin(&id(number), &format!("r{}", number / UPLOADS_PER_REPOSITORY_MAX)).unwrap();
        if number == UPLOADS_PER_REPOSITORY_MAX - 1 {
            assert_eq!(staged.begin(&id(UPLOADS_MAX), "r0").unwrap_err().status, 429);
        }
    }
    assert_eq!(staged.begin(&id(UPLOADS_MAX), "new").unwrap_err().status, 429);
    staged.end(&id(0));
    staged.begin(&id(UPLOADS_MAX), "new").unwrap();
}
