//! The generation queue of a container.
