//! Of the inside and virtual interfaces.

use super::*;

const HOST: &str = r#"[gateway]
name = "b"
inside = "tun"
outside = ["b-out"]
[gateway.interfaces.spindle0]
addresses = ["10.2.0.1/32"]
[gateway.interfaces.ipsec1]
addresses = ["169.254.0.2/30"]
routes = ["10.7.0.0/16", "0.0.0.0/0"]
[connections.ab]
local = { address = "192.0.2.2", psk = "secret" }
remote = { address = "192.0.2.1" }
[connections.ab.children.zero]
local_ts = ["10.2.0.1"]
remote_ts = ["10.1.0.0/24"]
[connections.ab.children.one]
interface = "ipsec1"
local_ts = ["0.0.0.0/0"]
remote_ts = ["0.0.0.0/0"]
[connections.ab.children.two]
interface = "ipsec2"
local_ts = ["0.0.0.0/0"]
remote_ts = ["0.0.0.0/0"]
[connections.ab.children.more]
interface = "ipsec1"
local_ts = ["10.2.0.0/24"]
remote_ts = ["10.1.0.0/24"]
"#;

fn parse(source: &str) -> Result<Settings> {
    Settings::parse(Path::new("/etc/spindle/b.toml"), source)
}

/// With `more` standing behind another child of the same interface, and without.
fn good() -> String {
    HOST.split("[connections.ab.children.more]").next().unwrap().into()
}

#[test]
fn devices_have_the_numbers_that_children_name() {
    let s = parse(&good()).unwrap();
    let devices: Vec<_> = s.devices().into_iter().map(|device| (device.number, device.name)).collect();
    assert_eq!(devices, [(0, "spindle0".into()), (1, "ipsec1".into()), (2, "ipsec2".into())]);
    let numbers: Vec<_> = s.connections[0].children.iter().map(|child| child.interface).collect();
    assert_eq!(numbers, [0, 1, 2]);
    let device = &s.devices()[1];
    assert_eq!(device.addresses, [("169.254.0.2".parse().unwrap(), 30)]);
    assert_eq!(device.routes[1], ("0.0.0.0".parse().unwrap(), 0));
    assert_eq!(s.by_address().len(), 1, "those with interfaces are chosen by routes");
    let named = parse(&good().replace("\"tun\"", "\"tun:host0\"").replace("spindle0", "host0")).unwrap();
    assert_eq!(named.gateway.inside, Inside::Host("host0".into()));
}

#[test]
fn each_error_says_where_and_how_to_mend_it() {
    let cases = [
        ("\"tun\"", "\"eth1\"", 3, "gateway.inside", "\"tun\""),
        ("\"tun\"", "7", 3, "gateway.inside", "an array, as in"),
        ("\"tun\"", "\"tun:a b\"", 3, "gateway.inside", "1 to 15 letters"),
        ("\"tun\"", "\"tun:b-out\"", 4, "gateway.outside", "name another one"),
        ("s.spindle0]", "s.spindle1]", 5, "gateway.interfaces.spindle1", "take it out"),
        ("10.2.0.1/32", "10.2.0.1", 6, "gateway.interfaces.spindle0.addresses", "prefix length"),
        ("10.7.0.0/16", "10.7.0.1/16", 9, "gateway.interfaces.ipsec1.routes[0]", "has host bits"),
        ("\"ipsec2\"", "\"spindle0\"", 21, "connections.ab.children.two.interface", "another name"),
        ("\"ipsec2\"", "\"b-out\"", 21, "connections.ab.children.two.interface", "another name"),
        ("\"ipsec2\"", "\"ipsec2/x\"", 21, "connections.ab.children.two.interface", "1 to 15 letters"),
        ("routes =", "route =", 9, "gateway.interfaces.ipsec1.route", "did you mean `routes`"),
    ];
    for (from, to, line, key, fix) in cases {
        assert!(good().contains(from), "{from}");
        let e = parse(&good().replacen(from, to, 1)).expect_err(to);
        assert_eq!((e.line, e.key.as_str()), (line, key), "{e}");
        assert!(e.problem.contains(fix), "{e}");
    }
}

/// RFC 4301 section 4.4.1: of one interface, as of the inside, the first policy that matches takes the packet.
#[test]
fn what_stands_behind_another_one_of_its_interface_is_never_asked() {
    let e = parse(HOST).unwrap_err();
    assert_eq!(e.key, "connections.ab.children.more");
    assert!(e.problem.contains("connections.ab.children.one"), "{e}");
}
