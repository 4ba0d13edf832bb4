//! Layers of a store, and when to fold or merge them.
