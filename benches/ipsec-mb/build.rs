//! Compiles the shim, if the library is asked for.

fn main() {
    println!("cargo:rerun-if-changed=shim.c");
    #[cfg(feature = "link")]
    {
        cc::Build::new().file("shim.c").opt_level(2).warnings(true).compile("spindle-ipsec-mb-shim");
        // Debian has no static one.
        println!("cargo:rustc-link-lib=dylib=IPSec_MB");
    }
}
