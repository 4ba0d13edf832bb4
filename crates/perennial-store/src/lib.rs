//! Layers on disk and the record store.
