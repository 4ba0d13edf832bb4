//! Read-only views.
