//! The bytes of records that outlive a process.
