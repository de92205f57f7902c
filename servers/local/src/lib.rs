//! The local page store.
