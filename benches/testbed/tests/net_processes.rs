//! How gateways are started, killed and stopped, with a stand-in for the gateway's programs.

use spindle_testbed::*;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

/// `up` leaves two processes running and says ready; `events` and `stats` answer as the gateway would.
const STAND_IN: &str = r#"#!/bin/sh
verb=$1
while [ $# -gt 0 ]; do
    case $1 in --config | --run-dir) directory=$(dirname "$2") ;; esac
    shift
done
case $verb in
up)
    trap 'kill $child; exit 0' TERM
    echo life >>"$directory/state/lives"
    touch "$directory/run/socket"
    printf '[{"at_us":%s,"event":"ready","detail":"stand-in"}]' "$(date +%s%6N)" >"$directory/run/events"
    sleep 100 & child=$!
    wait
    ;;
events) cat "$directory/run/events" ;;
stats) echo '{"control":{"tokens-sent":0}}' ;;
initiate) [ "$(wc -l <"$directory/state/lives")" = 1 ] || { echo "a later life" >&2; exit 1; } ;;
esac
"#;

fn testbed(folder: &Path, script: &str) -> Testbed {
    let program = folder.join("spindle");
    std::fs::write(&program, script).expect("the folder is writable");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    let options = Options { programs: Some(folder.to_owned()), ..Options::default() };
    Testbed::two_gateways(options).expect("root and network namespaces")
}

#[test]
fn a_killed_gateway_loses_all_but_its_state_directory_and_starts_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut testbed = testbed(folder.path(), STAND_IN);
    testbed.start(Duration::from_secs(10)).expect("both say ready");
    testbed.gateway(Side::B).initiate().expect("the first life initiates");
    let gateway = testbed.gateway_mut(Side::B);
    let first = gateway.pid().expect("it runs");
    let killed = gateway.kill_group().expect("nothing of it lives on");
    assert_eq!(gateway.pid(), None);
    assert!(!Path::new(&format!("/proc/{first}")).exists());
    assert!(!gateway.directory().join("run/socket").exists());
    assert!(gateway.directory().join("state/lives").exists());
    assert!(testbed.topology().gateway(Side::B).processes().is_empty());
    assert!(!testbed.topology().gateway(Side::A).processes().is_empty());

    let gateway = testbed.gateway_mut(Side::B);
    let started = gateway.start().expect("it starts");
    let ready = gateway.wait_ready(Duration::from_secs(10)).expect("it says ready");
    assert!(killed < started && started <= ready && ready <= now());
    let error = gateway.initiate().expect_err("the second life does not");
    assert!(error.to_string().contains("a later life"), "{error}");
    gateway.stop().expect("it ends on SIGTERM");
    assert!(testbed.topology().gateway(Side::B).processes().is_empty());
}

#[test]
fn a_gateway_that_ends_by_itself_is_reported_with_its_log() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut testbed = testbed(folder.path(), "#!/bin/sh\necho 'no such interface' >&2\nexit 2\n");
    let error = testbed.start(Duration::from_secs(10)).expect_err("it ended");
    assert!(error.to_string().contains("ended by itself"), "{error}");
    assert!(error.to_string().contains("no such interface"), "{error}");
}
