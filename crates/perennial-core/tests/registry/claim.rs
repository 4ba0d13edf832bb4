//! Whose a store of blobs is.

use perennial_core::registry::claim::{Claim, Guard, Put, claim, guard};

#[test]
fn a_store_is_used_by_one_registry_only() {
    let others = Claim::Refuse("its blobs belong to another registry");
    let strays = Claim::Refuse("there are blobs that the record does not know");
    for (owner, own, has_strays, expected) in [
        (None, Some("a"), false, Claim::Lay),
        (None, Some("a"), true, strays),
        (Some(Some("a")), Some("a"), false, Claim::Use),
        (Some(Some("a")), Some("a"), true, Claim::Use),
        (Some(Some("b")), Some("a"), false, others),
        (Some(Some("b")), Some("a"), true, others),
        (Some(None), Some("a"), false, others),
        (Some(Some("b")), None, false, others),
    ] {
        assert_eq!(claim(owner, own, has_strays), expected, "{owner:?} {own:?} {has_strays}");
    }
}

#[test]
fn a_store_guards_claims_only_where_it_has_refused_one() {
    for (first, again, expected) in [
        (Put::Made, Some(Put::WasThere), Guard::Store),
        (Put::WasThere, None, Guard::Store),
        (Put::Made, Some(Put::Made), Guard::Nobody),
        (Put::Made, Some(Put::Refused), Guard::Nobody),
        (Put::Made, None, Guard::Nobody),
        (Put::Refused, None, Guard::Nobody),
    ] {
        assert_eq!(guard(first, again), expected, "{first:?} {again:?}");
    }
}
