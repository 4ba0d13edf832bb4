//! Invariants over records, used by `perennial doctor` and by tests.
