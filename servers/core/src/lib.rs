//! The page server, apart from what keeps the pages: the store seam, sessions, leases and the gRPC service.

pub mod conformance;
pub mod store;
