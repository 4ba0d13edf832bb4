//! OCI images: import, apply, pull.
