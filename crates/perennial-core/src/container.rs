//! One container: its record and its state machine.
