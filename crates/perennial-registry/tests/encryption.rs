//! Encrypted packs and parcels: what is written is read again, and nothing else is.

use perennial_core::travel::Parcel;
use perennial_core::travel::cipher::{CHUNK_BYTES, Layout, PackCipher, PackKey, Secrecy};
use perennial_registry::encryption::{
    EncryptionError, Keys, PackReader, check_recipient, encrypt_pack, make_key, make_pack_key,
};
use std::path::Path;

fn keys() -> Keys {
    Keys::parse(&make_key().file, &[]).expect("it was made")
}

/// A pack of that length, encrypted.
fn pack(bytes: u64) -> (Vec<u8>, PackCipher, Vec<u8>) {
    let content: Vec<u8> = (0..bytes).map(|at| u8::try_from((at * 7 + at / 251) % 251).expect("small")).collect();
    let key = make_pack_key().expect("a key");
    let mut file = Vec::new();
    encrypt_pack(&key, content.as_slice(), &mut file).expect("it is encrypted");
    let length = u64::try_from(file.len()).expect("small");
    let head_bytes = Layout::of(length, bytes).expect("the lengths fit").head_bytes;
    (content, PackCipher { key, head_bytes }, file)
}

fn part(file: &[u8], range: &std::ops::Range<u64>) -> Vec<u8> {
    let at = |offset| usize::try_from(offset).expect("small");
    file.get(at(range.start)..at(range.end)).expect("it is in the file").to_vec()
}

#[test]
fn chunks_of_a_pack_are_read_in_any_order_without_the_others() {
    for bytes in [1, 2, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 3 * CHUNK_BYTES + 77] {
        let (content, cipher, file) = pack(bytes);
        let layout = Layout { head_bytes: cipher.head_bytes, bytes };
        let count = layout.chunks(&(0..bytes)).end;
        let orders: [Vec<u64>; 3] = [(0..count).collect(), (0..count).rev().collect(), vec![count - 1, 0, count - 1]];
        for order in orders {
            let head = part(&file, &(0..cipher.head_bytes));
            let mut reader = PackReader::open(&cipher, bytes, head).expect("the head is whole");
            for number in order {
                let encrypted = part(&file, &layout.stretch(&(number..number + 1)));
                let found = reader.chunk(number, encrypted).unwrap_or_else(|error| unreachable!("{number}: {error}"));
                assert!(found == part(&content, &layout.content(number)), "{bytes} {number}");
            }
        }
    }
}

#[test]
fn a_chunk_that_was_changed_moved_or_cut_is_refused() {
    let bytes = 3 * CHUNK_BYTES + 77;
    let (_, cipher, file) = pack(bytes);
    let layout = Layout { head_bytes: cipher.head_bytes, bytes };
    let chunk = |number: u64| part(&file, &layout.stretch(&(number..number + 1)));
    let head = part(&file, &(0..cipher.head_bytes));
    let mut flipped = chunk(1);
    flipped[100] ^= 1;
    let mut short = chunk(1);
    short.pop();
    let (other, other_cipher, other_file) = pack(bytes);
    assert_eq!(other.len(), 3 * 65536 + 77);
    let foreign = part(&other_file, &Layout { head_bytes: other_cipher.head_bytes, bytes }.stretch(&(1..2)));
    for (number, wrong) in [(1, flipped), (1, short), (1, chunk(0)), (1, chunk(2)), (3, chunk(1)), (1, foreign)] {
        let mut reader = PackReader::open(&cipher, bytes, head.clone()).expect("the head is whole");
        assert!(matches!(reader.chunk(number, wrong), Err(EncryptionError::Changed { .. })));
    }
    for at in 0..head.len() - 16 {
        let mut damaged = head.clone();
        damaged[at] ^= 1;
        assert!(PackReader::open(&cipher, bytes, damaged).is_err(), "byte {at} of the head");
    }
    assert!(PackReader::open(&other_cipher, bytes, head.clone()).is_err(), "another pack's key");
    assert!(PackReader::open(&cipher, bytes, head[..50].to_vec()).is_err());
}

#[test]
fn a_document_is_read_by_each_recipient_and_by_nobody_else() {
    let (owner, friend, stranger) = (make_key(), keys(), keys());
    let keys = Keys::parse(&owner.file, &friend.own()).expect("both are keys");
    assert_eq!(keys.recipients().len(), 2);
    let encrypted = keys.encrypt(b"roses").expect("it is encrypted");
    assert!(!encrypted.windows(5).any(|bytes| bytes == b"roses"));
    for reader in [&keys, &friend] {
        assert_eq!(reader.decrypt(&encrypted, 5).expect("it is for them"), b"roses");
    }
    assert!(matches!(stranger.decrypt(&encrypted, 5), Err(EncryptionError::OtherKeys)));
    assert!(matches!(keys.decrypt(&encrypted, 4), Err(EncryptionError::TooLong { .. })));
    let last = encrypted.len() - 1;
    assert!(matches!(keys.decrypt(&encrypted[..last], 5), Err(EncryptionError::Changed { .. })));
    assert!(matches!(keys.decrypt(b"roses", 5), Err(EncryptionError::Changed { .. })));
}

#[test]
fn files_that_have_no_keys_are_refused_with_the_line() {
    let said = |text: &str| Keys::parse(text, &[]).expect_err(text).to_string();
    assert!(said("# public key: age1x\n").contains("no secret key"));
    assert!(said("\nage1qqqq\n").contains("line 2"));
    assert!(said("-----BEGIN AGE ENCRYPTED FILE-----\n").contains("line 1"));
    let two = format!("# mine\n{}\n{}", make_key().file, make_key().file);
    assert_eq!(Keys::parse(&two, &[]).expect("both are keys").own().len(), 2);
    let unusable = "age1qqqq".parse().expect("it begins as one");
    assert!(check_recipient(&unusable).is_err());
    assert!(Keys::parse(&make_key().file, &[unusable]).is_err());
}

/// The key of the frozen file, which protects nothing.
const FROZEN: &str = "AGE-SECRET-KEY-1FA6KUAGW7DDSZL5LH3EW6U6XSVZLEGEY3MU9K9HEA0D8DK46RQXSPE8NSW";

#[test]
fn the_frozen_encrypted_parcel_means_what_it_meant() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/formats/perennial-encrypted-v1.age");
    let bytes = std::fs::read(path).expect("the frozen file is there");
    let keys = Keys::parse(FROZEN, &[]).expect("it is a key");
    let parcel = Parcel::decode(&keys.decrypt(&bytes, 1 << 20).expect("it is for this key")).expect("it is a parcel");
    assert_eq!(parcel.secrecy(), Secrecy::Encrypted);
    assert_eq!(parcel.recipients, keys.own());
    let key: PackKey = FROZEN.parse().expect("it is a key");
    assert_eq!(parcel.packs[0].cipher, Some(PackCipher { key, head_bytes: 200 }));
    assert_eq!(parcel.packs[0].blob_bytes(), 200 + 1000 + 16);
}
