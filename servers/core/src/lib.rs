//! The page server, apart from what keeps the pages: the store seam, sessions, leases and the gRPC service.
//!
//! One hop, one file: a call arrives in `service/`, is turned into strict types, passes its session (`session.rs`), where it
//! writes the lease of its database (`lease.rs`), and ends in the [`store::PageStore`]. `hub.rs` is what the calls share.
//! Nothing here knows SQLite, and nothing here knows how a store keeps its pages.

mod arrival;
pub mod clock;
pub mod conformance;
mod connections;
mod database;
mod deadlock;
#[cfg(feature = "defects")]
pub mod defects;
mod elsewhere;
mod handover;
mod hot;
mod hub;
pub mod layer;
mod lease;
mod memory;
mod metered;
#[cfg(feature = "simulation")]
pub mod older;
pub mod peers;
mod process;
mod push;
mod server;
mod service;
mod session;
mod settings;
mod status;
pub mod store;
mod subscription;
mod wakes;

pub use server::{ServeError, Server, ServerBuilder, bind_tcp, bind_unix};
pub use settings::Settings;
