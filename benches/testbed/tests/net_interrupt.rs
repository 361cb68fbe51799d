//! The demonstration, interrupted at each of its steps as by Ctrl-C: nothing is left behind.

use spindle_testbed::PREFIX;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What of a process' testbeds is still there: namespaces and their mounts, files, and processes.
fn remains(pid: u32) -> Vec<String> {
    let name = format!("{PREFIX}-{pid}-");
    let named = |text: &str| text.contains(&name);
    let folders = ["/run/netns".into(), std::env::temp_dir()];
    let entries = folders.iter().flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten());
    let mut found: Vec<String> =
        entries.map(|entry| entry.path().display().to_string()).filter(|path| named(path)).collect();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    found.extend(mounts.lines().filter(|line| named(line)).map(str::to_owned));
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        // Every process of a gateway has its configuration, in the testbed's directory, among its arguments.
        let arguments = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
        found.extend(Some(arguments).filter(|arguments| named(arguments)));
    }
    found
}

#[test]
fn an_interrupted_demonstration_leaves_nothing_behind_at_any_step() {
    let steps = [
        "liveness, RTT 20 ms",
        "starting both gateways",
        "packets flow",
        "killing gateway B",
        "starting gateway B again",
        "waiting for recovery",
    ];
    for (number, step) in steps.iter().enumerate() {
        let mut demo = Command::new(env!("CARGO_BIN_EXE_spindle-demo"))
            .args(["--methods", "liveness", "--runs", "1"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the demonstration starts");
        let stderr = BufReader::new(demo.stderr.take().expect("it is piped"));
        let mut told = stderr.lines().map_while(Result::ok);
        assert!(told.by_ref().any(|line| line.contains(step)), "{step}: it did not come to that");
        // Sometime within the step.
        std::thread::sleep(Duration::from_millis(40 * number as u64));
        assert!(
            number == 0 || !remains(demo.id()).is_empty(),
            "{step}: nothing is found, so nothing is shown"
        );
        let signalled = Command::new("kill").args(["-s", "INT", &demo.id().to_string()]).status();
        assert!(signalled.expect("kill runs").success());
        let code = demo.wait().expect("it ends").code();
        assert_eq!(code, Some(130), "{step}: {:?}", told.collect::<Vec<_>>());
        // The kernel ends killed processes in its own time.
        let deadline = Instant::now() + Duration::from_secs(5);
        while !remains(demo.id()).is_empty() {
            assert!(Instant::now() < deadline, "{step}: {:#?}", remains(demo.id()));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
