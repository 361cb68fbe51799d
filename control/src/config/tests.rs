use super::*;
use spindle_ike::api::{Identity, StartAction};

const GOOD: &str = r#"[gateway]
name = "b"
inside = ["b-in"]
outside = ["b-out"]
[connections.ab]
local = { address = "192.0.2.2", id = "b.example", psk = "secret" }
remote = { address = "192.0.2.1", id = "a.example" }
dpd_delay = "2s"
retransmit = { timeout = "400ms", base = 2, tries = 3 }
[connections.ab.children.zulu]
local_ts = ["10.2.0.0/24"]
remote_ts = ["10.1.0.0/24", "10.9.0.1-10.9.0.7"]
[connections.ab.children.alpha]
local_ts = ["10.2.1.0/24"]
remote_ts = ["0.0.0.0/0"]
start_action = "start"
"#;

fn parse(source: &str) -> Result<Settings> {
    Settings::parse(Path::new("/etc/spindle/b.toml"), source)
}

/// The error of `GOOD` with one line replaced.
fn broken(from: &str, to: &str) -> ConfigError {
    assert!(GOOD.contains(from), "{from}");
    parse(&GOOD.replacen(from, to, 1)).expect_err(to)
}

#[test]
fn a_good_file_is_understood_and_its_defaults_filled_in() {
    let s = parse(GOOD).unwrap();
    assert_eq!(s.gateway.state_dir, Path::new("/var/lib/spindle"));
    assert_eq!(s.gateway.anchor, Path::new("/var/lib/spindle-anchor"));
    assert_eq!((s.gateway.ike_port, s.gateway.natt_port), (500, 4500));
    assert_eq!(s.recovery.methods, [Method::Qcd, Method::Liveness]);
    assert_eq!(s.recovery.limits, Limits::default());
    let c = &s.connections[0];
    assert_eq!(c.local_id, Identity::Fqdn("b.example".into()));
    assert_eq!(c.retransmission.timeout, Duration::from_millis(400));
    assert_eq!((c.retransmission.base, c.retransmission.tries), (2.0, 3));
    assert_eq!(c.start_action, StartAction::None);
    // Policies are in the order of the file, not of the alphabet.
    assert_eq!((c.children[0].name.as_str(), c.children[0].policy), ("zulu", 1));
    assert_eq!((c.children[1].name.as_str(), c.children[1].policy), ("alpha", 2));
    assert_eq!(c.children[1].start_action, StartAction::Start);
    assert_eq!(s.protected_ranges().1.len(), 3);
    assert_eq!(c.children[0].selectors.remote[1].addresses.end, IpAddr::from([10, 9, 0, 7]));
}

#[test]
fn every_error_names_file_line_and_key_and_says_the_fix() {
    // (replace, by, line, key, part of the fix)
    let cases = [
        ("name = \"b\"", "name = \"b c\"", 2, "gateway.name", "letters, digits"),
        ("name = \"b\"", "nam = \"b\"\nname = \"b\"", 2, "gateway.nam", "did you mean `name`"),
        ("name = \"b\"", "colour = \"b\"\nname = \"b\"", 2, "gateway.colour", "take it out"),
        ("name = \"b\"\n", "", 1, "gateway.name", "add `name = "),
        ("inside = [\"b-in\"]", "inside = \"b-in\"", 3, "gateway.inside", "an array, as in"),
        ("inside = [\"b-in\"]", "inside = [\"a\", \"b\"]", 3, "gateway.inside", "exactly one"),
        ("outside = [\"b-out\"]", "outside = [\"b-in\"]", 4, "gateway.outside", "name another one"),
        ("outside = [\"b-out\"]", "outside = [\"b-out\"]\ncore = -1", 5, "gateway.core", "from 0 to"),
        (
            "outside = [\"b-out\"]",
            "outside = [\"b-out\"]\npolling = \"lazy\"",
            5,
            "gateway.polling",
            "\"adaptive\" or",
        ),
        ("outside = [\"b-out\"]", "outside = [\"b-out\"]\nike_port = 4500", 1, "gateway", "different ports"),
        (
            "outside = [\"b-out\"]",
            "outside = [\"b-out\"]\nstate_dir=\"/s\"\nanchor=\"/s/a\"",
            6,
            "gateway.anchor",
            "file outside",
        ),
        (
            "id = \"b.example\", psk = \"secret\"",
            "id = \"b.example\"",
            6,
            "connections.ab.local.psk",
            "add `psk",
        ),
        ("psk = \"secret\"", "psk = \"\"", 6, "connections.ab.local.psk", "write a value"),
        ("psk = \"secret\"", "psk = \"0xzz\"", 6, "connections.ab.local.psk", "hexadecimal"),
        (
            "psk = \"secret\"",
            "psk_file = \"/does/not/exist\"",
            6,
            "connections.ab.local.psk_file",
            "readable file",
        ),
        ("psk = \"secret\"", "psk = \"a\", psk_file = \"b\"", 6, "connections.ab.local.psk_file", "keep one"),
        ("\"192.0.2.2\"", "\"192.0.2.256\"", 6, "connections.ab.local.address", "such as"),
        ("\"192.0.2.2\"", "\"2001:db8::1\"", 6, "connections.ab.local.address", "IPv6 is not supported yet"),
        ("\"192.0.2.1\"", "\"192.0.2.2\"", 7, "connections.ab.remote.address", "write the peer's"),
        ("dpd_delay = \"2s\"", "dpd_delay = \"2 s\"", 8, "connections.ab.dpd_delay", "as in \"30s\""),
        ("dpd_delay = \"2s\"", "dpd_delay = 2", 8, "connections.ab.dpd_delay", "a time in quotes"),
        (
            "dpd_delay = \"2s\"",
            "dpd_delay = \"99999999999d\"",
            8,
            "connections.ab.dpd_delay",
            "36500d at most",
        ),
        ("dpd_delay = \"2s\"", "encap = \"yes\"", 8, "connections.ab.encap", "true or false"),
        (
            "dpd_delay = \"2s\"",
            "proposals = [\"aes128gcm16-x25519\"]",
            8,
            "connections.ab.proposals",
            "lacks one of prfsha256",
        ),
        (
            "dpd_delay = \"2s\"",
            "proposals = [\"aes128-sha1-modp1024\"]",
            8,
            "connections.ab.proposals",
            "not supported; write from",
        ),
        ("base = 2", "base = 0.5", 9, "connections.ab.retransmit.base", "from 1 to 10"),
        ("timeout = \"400ms\"", "timeout = \"0s\"", 9, "connections.ab.retransmit.timeout", "1ms or more"),
        ("local_ts = [\"10.2.0.0/24\"]\n", "", 10, "connections.ab.children.zulu.local_ts", "add `local_ts"),
        (
            "\"10.2.0.0/24\"",
            "\"10.2.0.1/24\"",
            11,
            "connections.ab.children.zulu.local_ts",
            "write \"10.2.0.0/24\"",
        ),
        (
            "\"10.9.0.1-10.9.0.7\"",
            "\"10.9.0.7-10.9.0.1\"",
            12,
            "connections.ab.children.zulu.remote_ts[1]",
            "swap",
        ),
        (
            "start_action = \"start\"",
            "start_action = \"route\"",
            16,
            "connections.ab.children.alpha.start_action",
            "\"none\" or",
        ),
        (
            "start_action = \"start\"",
            "replay_window = 100",
            16,
            "connections.ab.children.alpha.replay_window",
            "power of two",
        ),
        ("start_action = \"start\"", "[recovery]\nmethods = [\"qcd\"]", 17, "recovery.methods", "add it"),
        (
            "start_action = \"start\"",
            "[recovery.limits]\nprobes_total = \"many\"",
            17,
            "recovery.limits.probes_total",
            "whole number",
        ),
        ("start_action = \"start\"", "[recovery]\njournal = true\njournal = true", 18, "journal", "not TOML"),
        ("start_action = \"start\"", "start_action = start", 16, "start_action", "not TOML"),
    ];
    for (from, to, line, key, fix) in cases {
        let e = broken(from, to);
        let text = e.to_string();
        assert_eq!((e.line, e.key.as_str()), (line, key), "{text}");
        assert!(text.starts_with(&format!("/etc/spindle/b.toml:{line}: {key}: ")), "{text}");
        assert!(text.contains(fix), "{text}");
        assert!(!text.contains('\n'), "one line: {text}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let text = Settings::load(Path::new("/does/not/exist.toml")).unwrap_err().to_string();
    assert!(text.starts_with("/does/not/exist.toml: cannot be read") && text.contains("--config"), "{text}");
}

#[test]
fn a_configuration_without_connections_is_refused() {
    let e = parse("[gateway]\nname='b'\ninside=['i']\noutside=['o']\n").unwrap_err();
    assert!(e.key == "connections" && e.problem.contains("[connections.office]"), "{e}");
}

#[test]
fn debug_shows_no_key() {
    assert!(!format!("{:?}", parse(GOOD).unwrap()).contains("secret\""));
}

#[test]
fn the_examples_are_understood() {
    let mut count = 0;
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "toml") {
            Settings::load(&path).unwrap_or_else(|e| panic!("{e}"));
            count += 1;
        }
    }
    assert!(count >= 5, "one example per feature, found {count}");
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(noise in "[\\[\\]a-z=\".{}0-9\n ,]{0,80}", at in 0usize..600) {
        let at = at.min(GOOD.len());
        let _ = parse(&format!("{}{noise}{}", &GOOD[..at], &GOOD[at..]));
    }
}
