//! The memory page store.
