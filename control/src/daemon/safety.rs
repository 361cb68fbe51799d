//! Configurations in which a token could be shown for an IKE SA that another gateway holds (RFC 6290 section 9.2), as far
//! as one gateway can see; the token maker is switched off then, loudly (section 8.1).
//!
//! Others are noticed elsewhere: a state directory that the anchor does not know ([`spindle_recovery::store`]), a secret
//! that others may read ([`super::disk`]), a peer that makes the same tokens as we (the report `maker-off`).

use crate::config::Settings;
use std::path::{Path, PathBuf};

/// Why this gateway must not show tokens, and what to do; `None` if nothing speaks against it.
pub(super) fn unsafe_for_tokens(settings: &Settings) -> Option<String> {
    let (gateway, recovery) = (&settings.gateway, &settings.recovery);
    match (&gateway.cluster, &recovery.secret_file) {
        (None, Some(file)) => Some(format!(
            "recovery.secret_file shares {} with other gateways, and gateway.cluster does not say with which: a standby could \
             not make this gateway's tokens; set gateway.cluster on all members, or take secret_file out",
            file.display()
        )),
        (Some(cluster), None) => Some(format!(
            "gateway.cluster is \"{cluster}\", and its members have no recovery.secret_file in common: a standby could not \
             make this gateway's tokens; name the shared secret on all members, or take cluster out"
        )),
        _ if is_within(&gateway.anchor, &gateway.state_dir) => Some(format!(
            "gateway.anchor {} lies, by a link, inside of state_dir: a copied or rolled back state_dir would not be noticed; \
             name a file outside",
            gateway.anchor.display()
        )),
        _ => None,
    }
}

/// Is a file inside of a directory, all links followed?
fn is_within(file: &Path, directory: &Path) -> bool {
    let parent = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let real = |path: &Path| -> Option<PathBuf> { path.canonicalize().ok() };
    let of = |path: PathBuf| real(directory).is_some_and(|directory| path.starts_with(directory));
    real(file).is_some_and(of) || real(parent).is_some_and(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: &str = r#"[gateway]
name = "b"
inside = ["b-in"]
outside = ["b-out"]
MORE
[recovery]
RECOVERY
[connections.ab]
local = { address = "192.0.2.2", id = "b.example", psk = "secret" }
remote = { address = "192.0.2.1", id = "a.example" }
[connections.ab.children.net]
local_ts = ["10.2.0.0/24"]
remote_ts = ["10.1.0.0/24"]
"#;

    fn settings(gateway: &str, recovery: &str) -> Settings {
        let text = GATEWAY.replace("MORE", gateway).replace("RECOVERY", recovery);
        Settings::parse(Path::new("/etc/spindle/b.toml"), &text).unwrap()
    }

    /// RFC 6290 section 8.1 (unsafe configurations are noticed), section 9.2.
    #[test]
    fn half_a_cluster_is_unsafe_and_a_whole_one_is_not() {
        let (cluster, secret) = ("cluster = \"pair\"", "secret_file = \"/etc/spindle/qcd-secret\"");
        let why = |gateway, recovery| unsafe_for_tokens(&settings(gateway, recovery));
        assert_eq!((why("", ""), why(cluster, secret)), (None, None));
        assert!(why(cluster, "").is_some_and(|why| why.contains("recovery.secret_file")));
        assert!(why("", secret).is_some_and(|why| why.contains("gateway.cluster")));
    }

    #[test]
    fn an_anchor_that_a_link_puts_into_the_state_directory_is_unsafe() {
        let root = std::env::temp_dir().join(format!("spindle-safety-{}", std::process::id()));
        let (state, elsewhere) = (root.join("state"), root.join("elsewhere"));
        std::fs::create_dir_all(&state).unwrap();
        std::fs::create_dir_all(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&state, root.join("link")).unwrap();
        let with = |anchor: &str| {
            let (state, anchor) = (state.display(), root.join(anchor));
            let keys = format!("state_dir = \"{state}\"\nanchor = \"{}\"", anchor.display());
            unsafe_for_tokens(&settings(&keys, "")).is_some()
        };
        let found = [with("elsewhere/anchor"), with("link/anchor")];
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(found, [false, true]);
    }
}
