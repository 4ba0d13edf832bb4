//! What one client may take of what all share.

use perennial_core::registry::bounds::{connections_that_fit, files_needed};

#[test]
fn no_more_connections_are_taken_than_files_can_be_opened_for() {
    for (asked, files, expected) in [
        (4096, u64::MAX, 4096),
        (4096, 8448, 4096),
        (4096, 8447, 4095),
        (4096, 1024, 384),
        (100, 1024, 100),
        (4096, 256, 1),
        (4096, 0, 1),
    ] {
        assert_eq!(connections_that_fit(asked, files), expected, "{asked} {files}");
    }
    for asked in [1, 4096, 100_000] {
        assert_eq!(connections_that_fit(asked, files_needed(asked)), asked);
    }
}
