//! Answers as tables for people.

use crate::protocol::{
    Connection, IkeSa, LoggedEvent, Reload, Replaced, Secret, Stats, Status, TakenDown, Upgraded,
};
use serde_json::{Result, Value, from_value};
use std::fmt::Write;

/// Lines of cells, each column as wide as its widest cell.
fn table(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |c: usize| lines.iter().filter_map(|l| l.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let mut row = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            // Writing to a String cannot fail.
            let _ = write!(row, "{cell:width$}  ");
        }
        text += row.trim_end();
        text.push('\n');
    }
    text
}

fn cells<const N: usize>(line: [&str; N]) -> Vec<String> {
    line.map(str::to_owned).to_vec()
}

/// What a reload changes, or would: a line for each change.
pub(super) fn reload(reload: &Reload, dry_run: bool) -> String {
    if reload.is_empty() {
        return "nothing changes\n".into();
    }
    let mut text = String::new();
    let mut line = |what: &str, name: &str, more: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{what} {name}{more}");
    };
    let none = String::new;
    reload.added.iter().for_each(|name| line("+ connection", name, none()));
    reload.removed.iter().for_each(|name| line("- connection", name, ": its SAs end".into()));
    for change in &reload.changed {
        let cost = match (change.ike_sas_end, &change.child_sas_end[..]) {
            (true, _) => "; its IKE SAs end".into(),
            (false, []) => "; its SAs stay".into(),
            (false, children) => format!("; Child SAs end of {}", children.join(", ")),
        };
        line("~ connection", &change.name, format!(": {}{cost}", change.keys.join(", ")));
    }
    reload.secrets.iter().for_each(|name| line("~ secret", name, ": from the next authentication on".into()));
    let policies = &reload.policies;
    for (what, names) in [
        ("+ policy", &policies.added),
        ("- policy", &policies.removed),
        ("> policy", &policies.moved),
        ("~ policy", &policies.changed),
    ] {
        names.iter().for_each(|name| line(what, name, none()));
    }
    reload.restart.iter().for_each(|key| line("! restart", key, none()));
    if dry_run {
        text.push_str("(nothing was changed)\n");
    }
    text
}

pub(super) fn upgraded(value: Value) -> Result<String> {
    let upgraded: Upgraded = from_value(value)?;
    let mut text = String::new();
    for process in &upgraded.processes {
        let Replaced { process, pid, version_before, version_after, away_ms } = process;
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{process}: {version_before} -> {version_after}, process {pid}, away {away_ms} ms"
        );
    }
    text.push_str(&upgraded.done);
    Ok(text)
}

pub(super) fn status(value: Value) -> Result<String> {
    let s: Status = from_value(value)?;
    let ready = match s.ready_us {
        Some(at) => format!("yes, {} ms after the start", at.saturating_sub(s.started_us) / 1000),
        None => "no".into(),
    };
    let pids = format!(
        "{} (spindle-dataplane {}, spindle-control {})",
        s.pids.supervisor, s.pids.dataplane, s.pids.control
    );
    Ok(table(&[
        cells(["gateway", &s.name]),
        cells(["version", &s.version]),
        cells(["incarnation", &s.incarnation.to_string()]),
        cells(["started", &when(s.started_us)]),
        cells(["ready", &ready]),
        cells(["taken down", if s.taken_down { "yes: peers are sent away" } else { "no" }]),
        cells(["maker id", &s.maker_id]),
        cells(["tokens", if s.tokens { "may leave" } else { "stay here" }]),
        cells(["former SPIs", &s.former_spis.to_string()]),
        cells(["IKE SAs", &s.ike_sas.to_string()]),
        cells(["Child SAs", &s.child_sas.to_string()]),
        cells(["process", &pids]),
    ]))
}

pub(super) fn sas(value: Value) -> Result<String> {
    let sas: Vec<IkeSa> = from_value(value)?;
    let mut text = String::new();
    for sa in &sas {
        let age = sa.established_s.map_or(String::new(), |s| format!(", {s} s"));
        let token = if sa.token_held { ", token held" } else { "" };
        let ticket = if sa.ticket_held { ", ticket held" } else { "" };
        let resumed = if sa.resumed { ", resumed" } else { "" };
        let peer = sa.remote_id.as_ref().map_or(String::new(), |id| format!(" '{id}'"));
        let _ = write!(
            text,
            "{}: #{}, {}{age}, {}, {}_i {}_r{resumed}{token}{ticket}\n  {} - {}{peer}\n  {}\n",
            sa.connection,
            sa.id,
            sa.state,
            sa.role,
            sa.ike_spi_i,
            sa.ike_spi_r,
            sa.local,
            sa.remote,
            sa.proposal
        );
        for child in &sa.children {
            let udp = if child.encapsulated { " in UDP" } else { "" };
            let worker = child.worker.map_or(String::new(), |worker| format!(", worker {worker}"));
            let mode = if child.mode == "transport" { ", transport mode" } else { "" };
            let _ = write!(
                text,
                "  {}: #{}, {}, {} s, ESP{udp}{mode}{worker}, {}_i {}_o, {}\n    in {} packets, {} bytes; out {} packets, {} bytes\n    {} === {}\n",
                child.name,
                child.id,
                child.state,
                child.installed_s,
                child.spi_i,
                child.spi_o,
                child.proposal,
                child.packets_i,
                child.bytes_i,
                child.packets_o,
                child.bytes_o,
                child.local_ts.join(" "),
                child.remote_ts.join(" ")
            );
        }
    }
    Ok(if text.is_empty() { "no SAs".into() } else { text })
}

pub(super) fn connections(value: Value) -> Result<String> {
    let connections: Vec<Connection> = from_value(value)?;
    let mut lines = vec![cells(["CONNECTION", "STATE", "LOCAL", "REMOTE", "IKE SAS", "CHILD SAS"])];
    for c in connections {
        let local = format!("{} '{}'", c.local, c.local_id);
        let remote = format!("{} '{}'", c.remote, c.remote_id);
        lines.push(cells([
            &c.name,
            &c.state,
            &local,
            &remote,
            &c.ike_sas.to_string(),
            &c.child_sas.to_string(),
        ]));
        for child in c.children {
            let name = format!("  {}", child.name);
            let (local, remote) = (child.local_ts.join(" "), child.remote_ts.join(" "));
            lines.push(cells([&name, &child.start_action, &local, &remote]));
        }
    }
    Ok(table(&lines))
}

pub(super) fn stats(value: Value) -> Result<String> {
    let stats: Stats = from_value(value)?;
    let mut lines = Vec::new();
    for (part, counters) in [("control", &stats.control), ("dataplane", &stats.dataplane)] {
        for (name, value) in counters.iter().filter(|(_, value)| **value != 0) {
            lines.push(cells([part, name, &value.to_string()]));
        }
    }
    let p = stats.packets;
    let verdict =
        if p.holds { "every packet has its place" } else { "the sums differ (or packets flow just now)" };
    Ok(format!(
        "{}received {} + created {} = delivered {} + dropped {} + held {}: {verdict}\n",
        table(&lines),
        p.received,
        p.created,
        p.delivered,
        p.dropped,
        p.held
    ))
}

pub(super) fn secret(value: Value) -> Result<String> {
    let secret: Secret = from_value(value)?;
    let mut lines = vec![cells(["GENERATION", "MADE", "METHOD", "IKE SAS", "NEEDED UNTIL"])];
    for (place, generation) in secret.generations.iter().enumerate() {
        let name = if place == 0 { "newest".into() } else { format!("{place} before") };
        let made = generation.made_us.map_or("unknown".into(), when);
        let until = generation.needed_until_us.map_or("-".into(), when);
        lines.push(cells([&name, &made, &generation.method, &generation.ike_sas.to_string(), &until]));
    }
    let under_way = if secret.rotating { "a rotation is under way\n" } else { "" };
    Ok(table(&lines) + under_way)
}

pub(super) fn taken_down(value: Value) -> Result<String> {
    let TakenDown { done, peers, redirected, deleted } = from_value(value)?;
    Ok(format!(
        "{done}: {peers} told to go, {redirected} of them redirected, {deleted} deleted by an exchange"
    ))
}

pub(super) fn events(value: Value) -> Result<String> {
    let events: Vec<LoggedEvent> = from_value(value)?;
    let mut lines = vec![cells(["TIME", "EVENT", "CONNECTION", "IKE SA", "SPI", "DETAIL"])];
    for e in events {
        let ike = match (e.ike_spi_i, e.ike_spi_r) {
            (Some(i), Some(r)) => format!("{i}_i {r}_r"),
            _ => String::new(),
        };
        let connection = e.connection.unwrap_or_default();
        lines.push(cells([
            &when(e.at_us),
            &e.event,
            &connection,
            &ike,
            &e.spi.unwrap_or_default(),
            &e.detail,
        ]));
    }
    Ok(table(&lines))
}

/// Microseconds since 1970 as UTC (the civil calendar by Howard Hinnant's algorithm).
fn when(us: u64) -> String {
    let (days, rest) = (us / 86_400_000_000, us % 86_400_000_000);
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (s, us) = (rest / 1_000_000, rest % 1_000_000);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}.{us:06}", s / 3600, s / 60 % 60, s % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_in_utc() {
        assert_eq!(when(0), "1970-01-01 00:00:00.000000");
        assert_eq!(when(951_827_696_789_012), "2000-02-29 12:34:56.789012");
        assert_eq!(when(1_735_689_599_000_001), "2024-12-31 23:59:59.000001");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let text = table(&[cells(["a", "b", "c"]), cells(["long", "", "x"])]);
        assert_eq!(text, "a     b  c\nlong     x\n");
    }
}
