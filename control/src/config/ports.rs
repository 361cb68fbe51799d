//! What may follow a selector's addresses, as in swanctl.conf: `[protocol]` or `[protocol/port]`, the port one, a range,
//! `any` or `opaque`. A selector's text is cut here first; [`show`] writes it again.

use spindle_abi::Selector;

/// By name (IANA's). Where one has two, the first is shown.
const PROTOCOLS: &[(&str, u8)] = &[
    ("any", 0),
    ("icmp", 1),
    ("igmp", 2),
    ("tcp", 6),
    ("udp", 17),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("ipv6-icmp", 58),
    ("icmpv6", 58),
    ("ospf", 89),
    ("pim", 103),
    ("vrrp", 112),
    ("sctp", 132),
];
/// Whose headers begin with a source and a destination port.
const WITH_PORTS: &[u8] = &[6, 17, 132];
/// Whose type and code take the port's place (RFC 7296 section 3.13.1).
const WITH_TYPES: &[u8] = &[1, 58];

const ANY: (u16, u16) = (0, 65535);
/// RFC 7296 section 3.13.1: what shows no port.
const OPAQUE: (u16, u16) = (65535, 0);

type Result<T> = std::result::Result<T, String>;

/// Protocol and ports of a selector.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Limits {
    protocol: u8,
    ports: (u16, u16),
}

impl Limits {
    pub(super) fn of(self, addresses: Selector) -> Selector {
        let (start_port, end_port) = self.ports;
        Selector { protocol: self.protocol, start_port, end_port, ..addresses }
    }
}

/// A selector's addresses, and what is in brackets behind them.
pub(super) fn split(text: &str) -> Result<(&str, Limits)> {
    let Some((addresses, rest)) = text.split_once('[') else {
        return Ok((text, Limits { protocol: 0, ports: ANY }));
    };
    let limits = rest.strip_suffix(']').ok_or(
        "has no bracket at its end; write protocol and port as in \"10.1.0.0/24[tcp/443]\"".to_owned(),
    )?;
    let (protocol, ports) = match limits.split_once('/') {
        Some((protocol, ports)) => (self::protocol(protocol)?, Some(ports)),
        None => (self::protocol(limits)?, None),
    };
    let ports = ports.map_or(Ok(ANY), |text| self::ports(protocol, text))?;
    Ok((addresses, Limits { protocol, ports }))
}

fn protocol(text: &str) -> Result<u8> {
    let named = PROTOCOLS.iter().find(|(name, _)| *name == text).map(|(_, number)| *number);
    named.or_else(|| text.parse().ok()).ok_or_else(|| {
        let names: Vec<_> = PROTOCOLS.iter().map(|(name, _)| *name).collect();
        format!("names the protocol \"{text}\"; write a number from 0 to 255 or one of {}", names.join(", "))
    })
}

fn ports(protocol: u8, text: &str) -> Result<(u16, u16)> {
    let types = WITH_TYPES.contains(&protocol);
    match text {
        "any" => return Ok(ANY),
        _ if !types && !WITH_PORTS.contains(&protocol) => {
            let name = name(protocol);
            return Err(format!(
                "names ports, which only tcp, udp and sctp have (and types, icmp and icmpv6); write [{name}]"
            ));
        }
        "opaque" => return Ok(OPAQUE),
        _ => {}
    }
    let fix = if types {
        "a type from 0 to 255, type times 256 plus code, or a range of them"
    } else {
        "a port from 0 to 65535, a range such as 4500-4600, any or opaque"
    };
    let number = |text: &str| {
        text.parse::<u16>().map_err(|_| format!("has \"{text}\" where a port is expected; write {fix}"))
    };
    let (start, end) = text.split_once('-').unwrap_or((text, text));
    let (start, end) = match (number(start)?, number(end)?) {
        // A type alone is one with any code, as strongSwan has it.
        (start, end) if types => {
            (if start < 256 { start << 8 } else { start }, if end < 256 { (end << 8) | 0xff } else { end })
        }
        range => range,
    };
    if start > end {
        return Err("has ports that end before they start; swap them".into());
    }
    Ok((start, end))
}

fn name(protocol: u8) -> String {
    let named = PROTOCOLS.iter().find(|(_, number)| *number == protocol);
    named.map_or(protocol.to_string(), |(name, _)| (*name).into())
}

/// Protocol and ports as they are written; empty where neither is limited.
pub(crate) fn show(selector: &Selector) -> String {
    let protocol = name(selector.protocol);
    let types = WITH_TYPES.contains(&selector.protocol);
    match (selector.start_port, selector.end_port) {
        ANY if selector.protocol == 0 => String::new(),
        ANY => format!("[{protocol}]"),
        OPAQUE => format!("[{protocol}/opaque]"),
        (start, end) if types && start & 0xff == 0 && end == start | 0xff => {
            format!("[{protocol}/{}]", start >> 8)
        }
        (start, end) if start == end => format!("[{protocol}/{start}]"),
        (start, end) => format!("[{protocol}/{start}-{end}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(text: &str) -> Result<Selector> {
        let (addresses, limits) = split(text)?;
        assert_eq!(addresses, "10.1.0.0/24");
        Ok(limits.of(Selector::addresses([10, 1, 0, 0].into(), [10, 1, 0, 255].into())))
    }

    #[test]
    fn protocols_and_ports_are_read_and_written_alike() {
        for (text, protocol, ports, shown) in [
            ("", 0, ANY, ""),
            ("[any]", 0, ANY, ""),
            ("[tcp]", 6, ANY, "[tcp]"),
            ("[tcp/any]", 6, ANY, "[tcp]"),
            ("[tcp/443]", 6, (443, 443), "[tcp/443]"),
            ("[6/443]", 6, (443, 443), "[tcp/443]"),
            ("[udp/4500-4600]", 17, (4500, 4600), "[udp/4500-4600]"),
            ("[udp/opaque]", 17, OPAQUE, "[udp/opaque]"),
            ("[gre]", 47, ANY, "[gre]"),
            ("[253]", 253, ANY, "[253]"),
            // A type with any code; type and code (destination unreachable, port unreachable); types.
            ("[icmp/8]", 1, (0x800, 0x8ff), "[icmp/8]"),
            ("[icmp/771]", 1, (0x303, 0x303), "[icmp/771]"),
            ("[icmp/3-5]", 1, (0x300, 0x5ff), "[icmp/768-1535]"),
            ("[icmpv6/128]", 58, (0x8000, 0x80ff), "[ipv6-icmp/128]"),
        ] {
            let selector = selector(&format!("10.1.0.0/24{text}")).unwrap();
            assert_eq!(
                (selector.protocol, (selector.start_port, selector.end_port)),
                (protocol, ports),
                "{text}"
            );
            assert_eq!(show(&selector), shown);
            let again = split(&format!("10.1.0.0/24{shown}")).unwrap().1;
            assert_eq!(again, Limits { protocol, ports }, "what is shown can be written");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_fix() {
        for (text, fix) in [
            ("[tcp/443", "[tcp/443]"),
            ("[tpc/443]", "tcp, udp"),
            ("[]", "a number from 0 to 255"),
            ("[256]", "from 0 to 255"),
            ("[tcp/https]", "a port from 0 to 65535"),
            ("[tcp/]", "a port from 0 to 65535"),
            ("[tcp/65536]", "a port from 0 to 65535"),
            ("[tcp/443-80]", "swap"),
            ("[icmp/echo]", "a type from 0 to 255"),
            ("[gre/1]", "write [gre]"),
            ("[any/53]", "write [any]"),
            ("[89/opaque]", "write [ospf]"),
        ] {
            let problem = selector(&format!("10.1.0.0/24{text}")).expect_err(text);
            assert!(problem.contains(fix), "{text}: {problem}");
        }
    }
}
