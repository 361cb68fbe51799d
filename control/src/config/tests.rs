mod errors;

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use spindle_ike::api::{Identity, StartAction};
use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::sync::LazyLock;

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

/// As in swanctl.conf: hard limits are a tenth beyond the soft ones unless they are named, octets have units.
#[test]
fn lifetimes_are_read_with_their_units_and_defaults() {
    let of = |text: &str| {
        let settings = parse(&GOOD.replacen("start_action = \"start\"", text, 1)).unwrap();
        settings.connections[0].children[1].lifetime
    };
    let limits = |packets, bytes| spindle_abi::Limits { packets, bytes };
    let default = of("");
    assert_eq!(default.life_time, Duration::from_secs(3960));
    assert_eq!((default.rekey, default.life), (limits(0, 0), limits(0, 0)));
    assert_eq!(of("rekey_time = \"0s\"").life_time, Duration::ZERO);
    let soft = of("rekey_bytes = \"500m\"\nrekey_packets = 1000");
    assert_eq!((soft.rekey, soft.life), (limits(1000, 500 << 20), limits(1100, 550 << 20)));
    let hard = of("life_time = \"2h\"\nlife_bytes = \"1g\"\nrekey_packets = 7\nlife_packets = 0");
    assert_eq!(hard.life_time, Duration::from_secs(7200));
    assert_eq!((hard.rekey, hard.life), (limits(7, 0), limits(0, 1 << 30)));
}

/// RFC 9611 section 7: not by default.
#[test]
fn a_child_has_as_many_sas_for_workers_as_there_are_where_it_says_so() {
    let of = |more: &str| {
        let source =
            GOOD.replacen("outside", "workers = 3\noutside", 1).replacen("start_action = \"start\"", more, 1);
        parse(&source).unwrap().connections[0].children[1].resources
    };
    assert_eq!((of(""), of("per_cpu_sas = false"), of("per_cpu_sas = true")), (0, 0, 3));
}

#[test]
fn a_good_file_is_understood_and_its_defaults_filled_in() {
    let s = parse(GOOD).unwrap();
    assert_eq!(s.gateway.state_dir, Path::new("/var/lib/spindle"));
    assert_eq!(s.gateway.workers, 1);
    assert_eq!(s.gateway.anchor, Path::new("/var/lib/spindle-anchor"));
    assert_eq!(s.gateway.ticket_lifetime, Duration::from_secs(3600));
    assert!(!s.gateway.capture_keys, "a secret leaves by no command alone");
    assert!(!s.connections[0].resumption, "it costs forward secrecy");
    assert!(s.connections[0].redirect_to.is_empty(), "the peer sends us nowhere unless we say where");
    assert_eq!((s.gateway.ike_port, s.gateway.natt_port), (500, 4500));
    assert_eq!(s.recovery.methods, [Method::Qcd, Method::Liveness]);
    assert_eq!(s.recovery.limits, Limits::default());
    assert!(!s.recovery.proactive && s.connection_methods.is_empty());
    assert_eq!((s.recovery.token_method, s.recovery.secret_rotation), (TokenMethod::Spis, Duration::ZERO));
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
fn networks_and_addresses_may_be_of_ipv6() {
    let source = GOOD
        .replace("192.0.2.", "2001:db8::")
        .replace("\"10.2.0.0/24\"", "\"10.2.0.0/24\", \"2001:db8:2::/48\"")
        .replace("\"10.9.0.1-10.9.0.7\"", "\"2001:db8:9::1-2001:db8:9::7\", \"2001:db8:1::7\"")
        .replace("\"10.2.1.0/24\"", "\"::/0\"")
        .replace("\"0.0.0.0/0\"", "\"2001:db8:7::/64\"");
    let s = parse(&source).unwrap();
    let c = &s.connections[0];
    assert_eq!((c.local.to_string(), c.remote), ("2001:db8::2".into(), "2001:db8::1".parse().ok()));
    let range = |selector: &spindle_abi::Selector| {
        (selector.addresses.start.to_string(), selector.addresses.end.to_string())
    };
    let [zulu, alpha] = &c.children[..] else { panic!("{:?}", c.children) };
    let last = "2001:db8:2:ffff:ffff:ffff:ffff:ffff".to_owned();
    assert_eq!(range(&zulu.selectors.local[1]), ("2001:db8:2::".into(), last));
    assert_eq!(range(&zulu.selectors.remote[1]), ("2001:db8:9::1".into(), "2001:db8:9::7".into()));
    assert_eq!(range(&zulu.selectors.remote[2]), ("2001:db8:1::7".into(), "2001:db8:1::7".into()));
    let last = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".to_owned();
    assert_eq!(range(&alpha.selectors.local[0]), ("::".into(), last));

    for (from, to, fix) in [
        ("\"10.2.0.0/24\"", "\"2001:db8:2::1/48\"", "write \"2001:db8:2::/48\""),
        ("\"10.2.0.0/24\"", "\"2001:db8:2::/129\"", "2001:db8:1::/64"),
        ("\"10.2.0.0/24\"", "\"10.0.0.1-2001:db8::1\"", "two of one version"),
        ("\"10.2.0.0/24\"", "\"2001:db8:2::/48\"", "protocol and IP version"),
    ] {
        let error = broken(from, to).to_string();
        assert!(error.contains(fix), "{error}");
    }
}

/// Who prefers what is each connection's own matter; the rest follow the gateway.
#[test]
fn a_connection_may_have_methods_of_its_own() {
    let own = "dpd_delay = \"0s\"\nrecovery = [\"initial-contact\", \"qcd\", \"liveness\"]";
    let s = parse(&GOOD.replacen("dpd_delay = \"2s\"", own, 1)).unwrap();
    assert_eq!(s.connection_methods["ab"], [Method::InitialContact, Method::Qcd, Method::Liveness]);
    assert_eq!(s.recovery.methods, [Method::Qcd, Method::Liveness]);
}

/// RFC 4301 section 4.4.1: one order of PROTECT, BYPASS and DISCARD; here the file's, wherever a section stands.
#[test]
fn all_policies_are_in_the_order_of_the_file() {
    let pass = "[policies.printer]\nmode = \"pass\"\nlocal_ts = [\"10.2.0.0/24[tcp]\"]\n\
                remote_ts = [\"198.51.100.9[tcp/631]\"]\n";
    let drop = "[policies.mail]\nmode = \"drop\"\nlocal_ts = [\"10.2.0.0/16\"]\nremote_ts = [\"0.0.0.0/0[tcp/25]\"]\n";
    let alpha = "[connections.ab.children.alpha]\n";
    let s = parse(&format!("{}{pass}", GOOD.replacen(alpha, &format!("{drop}{alpha}"), 1))).unwrap();
    let children = s.connections[0].children.iter().map(|c| (c.name.as_str(), c.policy));
    assert_eq!(children.collect::<Vec<_>>(), [("zulu", 1), ("alpha", 3)]);
    let others = s.policies.iter().map(|p| (p.name.as_str(), p.id, p.action));
    let (discard, bypass) = (spindle_abi::PolicyAction::Discard, spindle_abi::PolicyAction::Bypass);
    assert_eq!(others.collect::<Vec<_>>(), [("mail", 2, discard), ("printer", 4, bypass)]);
    let printer = &s.policies[1].selectors;
    assert_eq!(
        (printer.remote[0].protocol, printer.remote[0].start_port, printer.remote[0].end_port),
        (6, 631, 631)
    );
    // In clear passes what no selector of a child holds: the guard knows the children's alone.
    assert_eq!(s.protected_ranges(), parse(GOOD).unwrap().protected_ranges());
}

#[test]
fn the_pace_of_handshakes_begins_and_ends_where_it_is_said() {
    let limits = |text: &str| {
        let limits = parse(&format!("{GOOD}[recovery.limits]\n{text}")).unwrap().recovery.limits;
        (limits.handshakes_total, limits.handshakes_max)
    };
    assert_eq!(limits(""), (200, 1_000_000));
    assert_eq!(limits("handshakes_total = 50"), (50, 1_000_000));
    assert_eq!(limits("handshakes_max = 700"), (200, 700));
    assert_eq!(limits("handshakes_total = 50\nhandshakes_max = 50"), (50, 50));
}

/// An experiment: only who asks for it gets it.
#[test]
fn sir_is_off_by_default_and_its_limits_are_read() {
    let more = "[recovery]\nmethods = [\"sir\", \"qcd\", \"liveness\"]\n[recovery.sir]\ndampen_new = \"0s\"\n\
                queries_per_sa = 3\n[recovery.limits]\nprobes_total = 7\n";
    let s = parse(&format!("{GOOD}{more}")).unwrap();
    assert_eq!(s.recovery.methods, [Method::Sir, Method::Qcd, Method::Liveness]);
    let sir = SirLimits { dampen_new: Duration::ZERO, queries_per_sa: 3, ..SirLimits::default() };
    assert_eq!(s.recovery.limits, Limits { sir, probes_total: 7, ..Limits::default() });
    assert!(!parse(GOOD).unwrap().recovery.methods.contains(&Method::Sir));
    let own = "dpd_delay = \"0s\"\nrecovery = [\"sir\", \"liveness\"]";
    let s = parse(&GOOD.replacen("dpd_delay = \"2s\"", own, 1)).unwrap();
    assert_eq!(s.connection_methods["ab"], [Method::Sir, Method::Liveness]);
    assert_eq!(s.recovery.methods, [Method::Qcd, Method::Liveness]);
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

/// The examples as an operator has them who followed their comments; the key's file is for its owner alone.
fn examples() -> (tempfile::TempDir, Vec<PathBuf>) {
    let directory = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples")).unwrap() {
        let path = entry.unwrap().path();
        let copy = directory.path().join(path.file_name().unwrap());
        std::fs::copy(&path, &copy).unwrap();
        std::fs::set_permissions(&copy, Permissions::from_mode(0o600)).unwrap();
        files.extend(Some(copy).filter(|path| path.extension().is_some_and(|e| e == "toml")));
    }
    (directory, files)
}

#[test]
fn the_examples_are_understood() {
    let (_directory, files) = examples();
    assert!(files.len() >= 5, "one example per feature, found {}", files.len());
    for file in files {
        Settings::load(&file).unwrap_or_else(|e| panic!("{e}"));
    }
}

#[test]
fn the_example_of_limits_has_them_all_at_their_defaults() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/limits.toml");
    let settings = Settings::load(Path::new(path)).unwrap();
    assert_eq!(settings.recovery.limits, Limits::default());
    let text = std::fs::read_to_string(path).unwrap();
    let Limits { sir, .. } = Limits::default();
    let budgets = format!("{:?}", Limits::default()).replace(&format!("sir: {sir:?}"), "");
    for key in budgets.split([' ', '{', ',']).filter_map(|word| word.strip_suffix(':')) {
        assert!(text.contains(&format!("\n{key} = ")), "{key}");
    }
}

#[test]
fn a_key_that_others_may_read_is_refused() {
    let (directory, _files) = examples();
    std::fs::set_permissions(directory.path().join("site-to-site.psk"), Permissions::from_mode(0o640))
        .unwrap();
    let e = Settings::load(&directory.path().join("site-to-site.toml")).unwrap_err();
    assert_eq!((e.line, e.key.as_str()), (9, "connections.east.local.psk_file"));
    assert!(e.problem.contains("chmod 0600 ") && e.problem.contains("site-to-site.psk"), "{e}");
}

#[test]
fn no_error_shows_a_secret() {
    for broken in ["psk \"secret\"", "psk = \"secret", "psk = \n\"secret\"", "psk = \"secret\" \"secret\""] {
        let e = broken_key(broken);
        assert!(!e.to_string().contains("secret"), "{e}");
    }
}

/// The error of a connection whose key, on a line of its own, is written like this.
fn broken_key(key: &str) -> ConfigError {
    let from = "local = { address = \"192.0.2.2\", id = \"b.example\", psk = \"secret\" }";
    broken(from, &format!("[connections.ab.local]\naddress = \"192.0.2.2\"\n{key}\n"))
}

#[test]
fn what_shows_later_names_its_line_too() {
    let s = parse(GOOD).unwrap();
    let text = s.error("connections.ab.local.address", "is not here").to_string();
    assert_eq!(text, "/etc/spindle/b.toml:6: connections.ab.local.address: is not here");
    let text = s.error("gateway.state_dir", "is full").to_string();
    assert_eq!(text, "/etc/spindle/b.toml: gateway.state_dir: is full", "a default stands on no line");
}

/// The keys that the README's tables have for a section.
fn documented(section: &str) -> BTreeSet<String> {
    let readme = include_str!("../../../README.md");
    let heading = format!("`[{section}]`");
    let rest = readme.lines().skip_while(|line| !line.trim_start_matches("#### ").starts_with(&heading));
    let rows =
        rest.skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|')).skip(2);
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[test]
fn the_readme_has_every_key_and_no_other() {
    let all = format!(
        "{GOOD}[policies.p]\nmode = \"drop\"\nlocal_ts = [\"10.4.0.0/24\"]\nremote_ts = [\"10.5.0.0/24\"]\n\
         [recovery]\njournal = true\n[recovery.limits]\nprobes_total = 1\n[recovery.sir]\nqueries_total = 1\n"
    );
    for (section, documented_as, sections) in [
        ("gateway", "gateway", &[][..]),
        ("recovery", "recovery", &["limits", "sir"]),
        ("recovery.limits", "recovery.limits", &[]),
        ("recovery.sir", "recovery.sir", &[]),
        ("connections.ab", "connections.NAME", &["children"]),
        ("connections.ab.children.zulu", "connections.NAME.children.NAME", &[]),
        ("policies.p", "policies.NAME", &[]),
    ] {
        let header = format!("[{section}]\n");
        let e = parse(&all.replacen(&header, &format!("{header}unheard_of = 1\n"), 1)).unwrap_err();
        let known = e.problem.split_once("(the keys here are ").expect("it says so").1.trim_end_matches(')');
        let known = known.split(", ").filter(|key| !sections.contains(key)).map(str::to_owned);
        assert_eq!(documented(documented_as), known.collect(), "{section}");
    }
}

/// A whole configuration, or an error of one line that says where.
fn judge(octets: &[u8]) -> std::result::Result<(), TestCaseError> {
    match Settings::read(Path::new("/etc/spindle/b.toml"), octets) {
        Ok(settings) => {
            let children: Vec<_> = settings.connections.iter().flat_map(|c| &c.children).collect();
            let others = settings.policies.iter().map(|policy| policy.id);
            let ids: BTreeSet<u32> = children.iter().map(|child| child.policy).chain(others).collect();
            prop_assert!(!children.is_empty());
            prop_assert!(ids.into_iter().eq(1..=(children.len() + settings.policies.len()) as u32));
            prop_assert!(settings.gateway.inside != Inside::Interface(settings.gateway.outside));
        }
        Err(e) => {
            let lines = octets.iter().filter(|octet| **octet == b'\n').count() + 1;
            let text = e.to_string();
            prop_assert!((1..=lines).contains(&e.line), "{text}");
            prop_assert!(text.starts_with(&format!("/etc/spindle/b.toml:{}: ", e.line)), "{text}");
            prop_assert!(!text.contains(char::is_control) && !e.problem.is_empty(), "{text:?}");
        }
    }
    Ok(())
}

/// One change: what of it is done depends on the first number.
type Change = (u8, u16, u16, Vec<u8>);

fn change(text: &mut Vec<u8>, (what, from, to, octets): &Change) {
    let place = |n: u16| usize::from(n) % (text.len() + 1);
    let (start, end) = (place(*from).min(place(*to)), place(*from).max(place(*to)));
    match what % 5 {
        // Other octets, no octets, the same octets twice, octets from elsewhere.
        0 => drop(text.splice(start..(start + octets.len()).min(text.len()), octets.iter().copied())),
        1 => drop(text.drain(start..end.min(start + 40))),
        2 => drop(text.splice(end..end, text[start..end.min(start + 200)].to_vec())),
        3 => drop(text.splice(end..end, octets.iter().copied())),
        // Lines change places.
        _ => {
            let mut lines: Vec<Vec<u8>> = text.split(|octet| *octet == b'\n').map(<[u8]>::to_vec).collect();
            let (a, b) = (usize::from(*from) % lines.len(), usize::from(*to) % lines.len());
            lines.swap(a, b);
            *text = lines.join(&b'\n');
        }
    }
}

proptest! {
    #[test]
    fn any_octets_make_a_configuration_or_an_error_that_says_where(octets in vec(any::<u8>(), 0..400)) {
        judge(&octets)?;
    }

    #[test]
    fn any_words_make_a_configuration_or_an_error_that_says_where(
        noise in "[\\[\\]a-z=\".{}0-9\n ,]{0,80}",
        at in 0usize..600,
    ) {
        let at = at.min(GOOD.len());
        judge(format!("{}{noise}{}", &GOOD[..at], &GOOD[at..]).as_bytes())?;
    }

    #[test]
    fn a_changed_example_makes_a_configuration_or_an_error_that_says_where(
        which in any::<prop::sample::Index>(),
        changes in vec((any::<u8>(), any::<u16>(), any::<u16>(), vec(any::<u8>(), 0..8)), 1..5),
    ) {
        let mut text = which.get(&EXAMPLES).clone();
        judge(&text)?;
        for one in &changes {
            change(&mut text, one);
            judge(&text)?;
        }
    }
}

/// [`GOOD`] and the committed examples.
static EXAMPLES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let (_directory, files) = examples();
    let files = files.iter().map(|file| std::fs::read(file).unwrap());
    files.chain([GOOD.as_bytes().to_vec()]).collect()
});
