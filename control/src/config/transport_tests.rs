//! Of `mode`.

use super::*;
use spindle_ike::api::TransportMode;

const HOST: &str = r#"[gateway]
name = "b"
inside = "tun"
outside = ["b-out"]
[connections.ab]
local = { address = "192.0.2.2", psk = "secret" }
remote = { address = "192.0.2.1" }
[connections.ab.children.host]
mode = "transport"
local_ts = ["192.0.2.2[gre]", "192.0.2.2[tcp/80]"]
remote_ts = ["192.0.2.1"]
[connections.ab.children.net]
local_ts = ["10.2.0.1"]
remote_ts = ["10.1.0.0/24"]
"#;

fn parse(source: &str) -> Result<Settings> {
    Settings::parse(Path::new("/etc/spindle/b.toml"), source)
}

#[test]
fn transport_mode_is_for_the_outer_addresses() {
    let modes = |s: &Settings| s.connections[0].children.iter().map(|c| c.transport).collect::<Vec<_>>();
    let s = parse(HOST).unwrap();
    assert_eq!(modes(&s), [TransportMode::Required, TransportMode::Never]);
    let s = parse(&HOST.replace("mode = \"transport\"", "mode = \"tunnel\"")).unwrap();
    assert_eq!(modes(&s), [TransportMode::Never; 2]);
}

/// By an interface of its own too: there is but one way to the peer's address.
#[test]
fn its_routes_are_made_whatever_its_device() {
    let with_hosts = HOST
        .replace("\"tun\"", "[\"b-in\"]")
        .replace("mode = \"transport\"", "mode = \"transport\"\ninterface = \"ipsec0\"");
    let s = parse(&with_hosts).unwrap();
    let numbers: Vec<_> = s.by_address().into_iter().map(|(number, _)| number).collect();
    assert_eq!((numbers, s.devices()[0].name.as_str()), (vec![1, 0], "ipsec0"));
    let rules = crate::guard::Guard::new(&s).ruleset();
    let pair = "ip saddr { 10.2.0.1, 192.0.2.2 } ip daddr { 10.1.0.0-10.1.0.255, 192.0.2.1 } drop";
    let ike = rules.find("ip saddr { 192.0.2.2 } udp sport { 500, 4500 } accept").unwrap();
    assert!(rules.find(pair).is_some_and(|pair| ike < pair), "{rules}");
}

#[test]
fn each_error_says_where_and_how_to_mend_it() {
    let remote = "address = \"192.0.2.1\"";
    let cases = [
        ("\"transport\"", "\"beet\"", 9, "connections.ab.children.host.mode", "\"tunnel\" or \"transport\""),
        ("\"tun\"", "[\"b-in\"]", 9, "connections.ab.children.host.mode", "inside = \"tun\""),
        (
            remote,
            "address = \"%any\", id = \"a\"",
            9,
            "connections.ab.children.host.mode",
            "its address there",
        ),
        (
            "\"192.0.2.2[gre]\"",
            "\"192.0.2.3\"",
            10,
            "connections.ab.children.host.local_ts",
            "[\"192.0.2.2\"]",
        ),
        (
            "\"192.0.2.1\"]",
            "\"192.0.2.0/24\"]",
            11,
            "connections.ab.children.host.remote_ts",
            "[\"192.0.2.1\"]",
        ),
        (
            "[connections.ab.children.host]",
            "redirect_to = [\"192.0.2.7\"]\n[connections.ab.children.host]",
            8,
            "connections.ab.redirect_to",
            "take it out",
        ),
    ];
    for (from, to, line, key, fix) in cases {
        assert!(HOST.contains(from), "{from}");
        let e = parse(&HOST.replacen(from, to, 1)).expect_err(to);
        assert_eq!((e.line, e.key.as_str()), (line, key), "{e}");
        assert!(e.problem.contains(fix), "{e}");
    }
}
