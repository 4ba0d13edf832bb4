//! What a container's process finds, and how its end is told (rows A7, A17): against a real runtime.

mod common;

use common::{fixture, shell};

#[test]
fn exit_code_and_both_streams_are_taken() {
    let mut container = shell("echo out; echo err >&2; exit 42");
    let ran = container.run();
    assert_eq!((ran.status.code, ran.status.signal), (42, None));
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("out\n", "err\n"));
    assert!(!ran.status.oom && !ran.status.stopped_by_request);
}

#[test]
fn programs_that_cannot_run_have_the_usual_codes() {
    for (program, code) in [("/nonexistent", 127), ("nonexistent", 127), ("/etc/passwd", 126), ("/etc", 126)] {
        let failure = fixture(&[program]).fail();
        assert_eq!(failure.code, code, "{program}: {}", failure.message);
    }
}
