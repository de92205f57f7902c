//! Compiles `proto/pagewire/v1/*.proto` with protox: no `protoc` is needed on the machine.

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/pagewire");
    let descriptors = protox::compile(["pagewire/v1/pagewire.proto"], ["proto"])?;
    #[expect(
        clippy::disallowed_methods,
        reason = "cargo tells a build script this way"
    )]
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    // The reflection service of a page server hands these bytes out.
    std::fs::write(out.join("pagewire.v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // `Bytes` fields are slices of the received message, which was put together from its frames: pages are not copied to be decoded.
        // The client's cache copies each one that came with others, or it would keep the whole message (`page_of_many` in the VFS).
        .bytes(".")
        .build_transport(false)
        // Counts list elements before they are decoded.
        .codec_path("crate::codec::BoundedCodec")
        .compile_fds(descriptors)?;
    Ok(())
}
