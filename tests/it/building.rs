//! What a machine needs to build Pagewire: Rust and a C compiler.

use std::path::{Path, PathBuf};
use std::process::Command;

use pagewire_tests::server::target_dir;

/// Packages that bring or call what a fresh machine does not have: libclang, protoc, cmake, or something from the network.
const NEED_MORE: [&str; 10] = [
    "bindgen",
    "clang-sys",
    "cmake",
    "curl",
    "openssl-sys",
    "protobuf-src",
    "protoc-bin-vendored",
    "protobuf-codegen",
    "reqwest",
    "ureq",
];

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn u7_no_package_needs_clang_or_protoc_or_comes_from_elsewhere_than_the_registry() {
    let lock = std::fs::read_to_string(top().join("Cargo.lock")).expect("Cargo.lock");
    let values = |key: &str| -> Vec<String> {
        let start = format!("{key} = \"");
        lock.lines()
            .filter_map(|line| line.strip_prefix(&start)?.strip_suffix('"'))
            .map(str::to_owned)
            .collect()
    };
    let names = values("name");
    assert!(names.contains(&"pagewire-vfs".to_owned()), "not our lock");
    for name in names {
        assert!(!NEED_MORE.contains(&name.as_str()), "{name}");
    }
    for source in values("source") {
        assert!(source.starts_with("registry+"), "{source}");
    }
}

/// The protocol's build script, run where no program can be found and `PROTOC` leads nowhere.
#[test]
fn u7_the_protocol_is_compiled_without_protoc() {
    let build = target_dir().join("build");
    let newest = std::fs::read_dir(&build)
        .expect("list")
        .map(|entry| entry.expect("entry"))
        .filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .starts_with("pagewire-proto-")
        })
        .map(|entry| entry.path().join("build-script-build"))
        .filter(|script| script.exists())
        .max_by_key(|script| {
            std::fs::metadata(script)
                .and_then(|script| script.modified())
                .ok()
        })
        .expect("the build script of the protocol");
    let out = tempfile::tempdir().expect("a folder");
    let done = Command::new(newest)
        .current_dir(top())
        .env_clear()
        .env("PATH", "/nonexistent")
        .env("PROTOC", "/nonexistent/protoc")
        .env("OUT_DIR", out.path())
        .output()
        .expect("run");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    let code = std::fs::read_to_string(out.path().join("pagewire.v1.rs")).expect("generated");
    assert!(code.contains("trait PageService"), "no service in it");
}
