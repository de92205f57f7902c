//! The FoundationDB page store.
