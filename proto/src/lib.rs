//! The protocol of Pagewire: generated gRPC code (`pb`) and the strict types that a receiver turns it into (`model`).
//!
//! Knows neither SQLite nor storage. The specification is `proto/pagewire/v1/pagewire.proto`.

pub mod capability;
pub mod codec;
pub mod limits;
pub mod model;
pub mod status;
pub mod version;

/// Code generated from `proto/pagewire/v1/pagewire.proto`; documented there.
#[allow(missing_docs, clippy::all)]
pub mod pb {
    tonic::include_proto!("pagewire.v1");
}

/// The encoded `FileDescriptorSet` of the protocol, for gRPC server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pagewire.v1.bin"));

pub use model::*;
