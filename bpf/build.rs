//! Compiles every `*.bpf.c` of this folder with clang; the objects are built into the crate.

use std::path::Path;
use std::process::Command;

fn main() {
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    println!("cargo::rerun-if-changed=.");
    let sources = std::fs::read_dir(".").expect("the crate's folder can be read");
    for source in sources.map(|entry| entry.expect("the crate's folder can be read").path()) {
        let name = source.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(stem) = name.strip_suffix(".bpf.c") else { continue };
        compile(&source, &Path::new(&out).join(format!("{stem}.bpf.o")));
    }
}

/// Ends the build with clang's own words if it fails. Debian keeps `asm/types.h` in a folder named by architecture.
fn compile(source: &Path, object: &Path) {
    let architecture = std::env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    let status = Command::new("clang")
        .args(["-O2", "-g", "-target", "bpf", "-Wall", "-Werror"])
        .arg(format!("-I/usr/include/{architecture}-linux-gnu"))
        .arg("-c")
        .arg(source)
        .arg("-o")
        .arg(object)
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("clang on {}: {status}", source.display()),
        Err(error) => {
            panic!("clang is needed to build the XDP programs (apt-get install clang libbpf-dev): {error}")
        }
    }
}
