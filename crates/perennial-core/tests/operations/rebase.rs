//! Where a container's changes and a new image's changes meet (A30).

use perennial_core::rebase::Difference::{Added, Content, Metadata, Removed, Type};
use perennial_core::rebase::{Difference, RebaseFacts, conflicts};

type Changes<'a> = &'a [(&'a str, Difference)];

fn found(ours: Changes<'_>, opaque: &[&str], theirs: Changes<'_>) -> Vec<String> {
    let by_path = |changes: Changes<'_>| changes.iter().map(|(path, how)| (path.as_bytes().to_vec(), *how)).collect();
    let facts = RebaseFacts {
        ours: by_path(ours),
        opaque: opaque.iter().map(|path| path.as_bytes().to_vec()).collect(),
        theirs: by_path(theirs),
    };
    let shown = |path: &[u8]| String::from_utf8(path.to_vec()).expect("the fixture is valid");
    conflicts(&facts).iter().map(|c| format!("{} {:?} {:?}", shown(&c.path), c.ours, c.theirs)).collect()
}

#[test]
fn a30_changes_in_different_places_do_not_conflict() {
    let none: [&str; 0] = [];
    assert_eq!(found(&[], &[], &[("etc/a", Content)]), none);
    assert_eq!(found(&[("etc/a", Content)], &[], &[]), none);
    assert_eq!(found(&[("etc/a", Content), ("srv/x", Added)], &[], &[("etc/b", Removed), ("etc/ab", Added)]), none);
}

#[test]
fn a30_one_path_that_both_changed_is_a_conflict_unless_both_removed_it() {
    let differences = [Added, Removed, Content, Metadata, Type];
    for ours in differences {
        for theirs in differences {
            let expected = match (ours, theirs) {
                (Removed, Removed) => vec![],
                _ => vec![format!("etc/a {:?} {theirs:?}", Some(ours))],
            };
            assert_eq!(found(&[("etc/a", ours)], &[], &[("etc/a", theirs)]), expected, "{ours:?} {theirs:?}");
        }
    }
}

#[test]
fn a30_what_the_container_hides_is_one_conflict_however_much_the_image_changed_in_it() {
    let theirs = [("opt/d/new", Added), ("opt/d/old", Content), ("opt/d/sub/x", Type)];
    let removed = ["opt/d Some(Removed) Added"];
    assert_eq!(found(&[("opt/d", Removed), ("opt/d/old", Removed)], &[], &theirs), removed);
    assert_eq!(found(&[("opt/d", Type)], &[], &theirs), ["opt/d Some(Type) Added"]);
    // Replaced by a directory of the same name: only the layer knows.
    assert_eq!(found(&[("opt/d/mine", Added)], &["opt/d"], &theirs), ["opt/d None Added"]);
    assert_eq!(found(&[("opt", Removed), ("opt/d", Removed)], &[], &theirs), ["opt Some(Removed) Added"]);
    assert_eq!(found(&[], &[""], &[("a", Added)]), [""; 0], "an opaque root is not asked about");
}

#[test]
fn a30_what_the_image_removed_below_a_hidden_place_is_no_conflict() {
    let none: [&str; 0] = [];
    assert_eq!(found(&[("opt/d", Removed)], &[], &[("opt/d/x", Removed), ("opt/d/y", Removed)]), none);
    assert_eq!(found(&[("opt/d/x", Added)], &["opt/d"], &[("opt/d/x", Removed)]), none);
    // A directory whose content merges keeps what the container added to it.
    assert_eq!(found(&[("opt/d/x", Added)], &[], &[("opt/d", Removed), ("opt/d/y", Removed)]), none);
}

#[test]
fn a30_a_directory_the_image_made_a_file_conflicts_with_what_the_container_has_in_it() {
    let theirs = [("opt/d", Type)];
    assert_eq!(found(&[("opt/d/x", Added)], &[], &theirs), ["opt/d None Type"]);
    assert_eq!(found(&[("opt/dx", Added), ("opt/d-x", Added)], &[], &theirs), [""; 0]);
}

#[test]
fn names_that_are_not_utf8_are_paths_like_others() {
    let path = vec![b'a', b'/', 0xff];
    let facts = RebaseFacts {
        ours: [(path.clone(), Content)].into(),
        opaque: [].into(),
        theirs: [(path.clone(), Content)].into(),
    };
    assert_eq!(conflicts(&facts).first().map(|conflict| conflict.path.clone()), Some(path));
}
