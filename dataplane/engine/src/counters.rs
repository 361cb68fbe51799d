//! Every packet is counted: a drop reason *is* its counter's index.

use std::fmt;

macro_rules! counted {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        #[repr(u8)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            /// All of them, in the order of their indexes.
            pub const ALL: &[$name] = &[$($name::$variant),*];
            const NAMES: &[&str] = &[$($text),*];

            /// The name in metrics.
            pub fn name(self) -> &'static str {
                Self::NAMES[self as usize]
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

counted! {
    /// What the engine counts beside the reasons of [`DropReason`].
    Counter {
        /// Frames received from inside.
        ReceivedInside = "received_inside",
        /// Frames received from outside.
        ReceivedOutside = "received_outside",
        /// Frames that the engine made (ICMP errors, fragments).
        Created = "created",
        /// Frames handed to transmit towards the inside.
        DeliveredInside = "delivered_inside",
        /// Frames handed to transmit towards the outside.
        DeliveredOutside = "delivered_outside",
        /// Frames at present held for want of a next hop or of an SA (goes up and down).
        Held = "held",
        /// Packets that authenticated and passed all checks.
        Decapsulated = "decapsulated",
        /// Packets put into ESP.
        Encapsulated = "encapsulated",
        /// Packets forwarded in clear by a BYPASS policy.
        Bypassed = "bypassed",
        /// ESP packets on unknown SPIs that were detected.
        UnknownSpiDetected = "unknown_spi_detected",
        /// Events on unknown SPIs for which the noise ring had no room.
        NoiseLost = "noise_lost",
        /// Events on former SPIs that were reported.
        FormerSpiReported = "former_spi_reported",
        /// Partial checksums that were completed.
        ChecksumsCompleted = "checksums_completed",
        /// SYNs whose MSS was lowered.
        MssClamped = "mss_clamped",
        /// ICMP errors sent to the inside (fragmentation needed, packet too big, time exceeded).
        IcmpErrorsSent = "icmp_errors_sent",
        /// Packets that were fragmented.
        Fragmented = "fragmented",
        /// Packets that were put together from fragments.
        Reassembled = "reassembled",
        /// Packets of which not all fragments came in time, or which gave way to others.
        ReassemblyAbandoned = "reassembly_abandoned",
        /// ICMP errors from outside by which a path's MTU was lowered, or holds for longer.
        PathMtuLearned = "path_mtu_learned",
        /// ESP that left in fragments, around IPv6 that a tunnel must carry.
        FragmentedOutside = "fragmented_outside",
        /// Frames that came to the wrong worker and were handed to the one whose they are.
        HandedOver = "handed_over",
        /// Frames that other workers handed to this one.
        TakenOver = "taken_over",
        /// ESP that came encapsulated in UDP on an SA that isn't, or the reverse (RFC 7296 section 2.23).
        OtherEncapsulation = "other_encapsulation",
    }
}

counted! {
    /// Why a frame's way ended in the engine.
    DropReason {
        /// Consumed: ESP on an SPI that is unknown.
        UnknownSpi = "unknown_spi",
        /// Consumed: ESP on an SPI of an earlier incarnation.
        FormerSpi = "former_spi",
        /// Consumed: a NAT keepalive (RFC 3948 section 2.3).
        NatKeepalive = "nat_keepalive",
        /// Consumed: a fragment of ESP, or of what transport mode is to carry, which is kept until its packet is whole.
        FragmentKept = "fragment_kept",
        /// Consumed: an ICMP error that quotes ESP of an SA of ours.
        IcmpAboutEsp = "icmp_about_esp",
        /// Consumed: a dummy packet (RFC 4303 section 2.6).
        DummyPacket = "dummy_packet",
        /// The frame is no Ethernet frame that the gateway forwards (ARP, VLAN, too short).
        NotIp = "not_ip",
        /// The IPv4 header is malformed or its checksum wrong, or the IPv6 headers are malformed.
        MalformedIp = "malformed_ip",
        /// To one of our own addresses, and nothing that the dataplane handles.
        ForHost = "for_host",
        /// From or to no single host beyond the link: multicast, broadcast, loopback, "this network", IPv6 link-local.
        NotUnicast = "not_unicast",
        /// From outside in clear, and no policy lets it by.
        CleartextFromOutside = "cleartext_from_outside",
        /// A fragment of ESP that cannot be one: cut wrongly, beyond the longest packet, or at odds with another.
        FragmentInvalid = "fragment_invalid",
        /// A fragment of ESP that is longer than a frame once it is whole.
        FragmentTooLong = "fragment_too_long",
        /// An ICMP error that quotes ESP, but nothing that an SA of ours could have sent lately.
        IcmpUnknownSa = "icmp_unknown_sa",
        /// Too short for ESP or the UDP around it, or a reserved SPI.
        MalformedEsp = "malformed_esp",
        /// ESP on an SPI that is still being negotiated.
        LarvalSpi = "larval_spi",
        /// ESP on an SPI whose SA was removed in this incarnation.
        RetiredSpi = "retired_spi",
        /// The sequence number was seen, or is left of the replay window (RFC 4303 section 3.4.3).
        Replayed = "replayed",
        /// The ICV is wrong.
        AuthenticationFailed = "authentication_failed",
        /// Authentic, but padding or next header are not as RFC 4303 says.
        MalformedInner = "malformed_inner",
        /// Congestion was marked on a packet that does not support it (RFC 6040 section 4.2).
        EcnMismatch = "ecn_mismatch",
        /// The inner packet is not within its SA's selectors (RFC 4301 section 5.2).
        SelectorMismatch = "selector_mismatch",
        /// A fragment does not show its ports, and a policy or an SA that has specific ones may be its own (RFC 4301
        /// section 7).
        FragmentWithoutPorts = "fragment_without_ports",
        /// A fragment that transport mode does not carry (RFC 4303 section 3.3.4): of a packet with options or extension
        /// headers from inside, or what came in ESP.
        FragmentInTransport = "fragment_in_transport",
        /// An inbound SA beyond its hard limit.
        InboundExpired = "inbound_expired",
        /// No policy matches.
        NoPolicy = "no_policy",
        /// A DISCARD policy matches.
        PolicyDiscard = "policy_discard",
        /// A PROTECT policy matches and has no SA for the packet.
        NoSa = "no_sa",
        /// The SA's sequence numbers or its packets are used up.
        SequenceExhausted = "sequence_exhausted",
        /// The time to live is used up.
        TtlExpired = "ttl_expired",
        /// Larger than the path allows.
        TooBig = "too_big",
        /// The frame's memory has no room for the headers.
        NoRoom = "no_room",
        /// The next hop lies on the other side than the policy demands.
        WrongSide = "wrong_side",
        /// The next hop could not be resolved, or too many wait for it.
        NoNextHop = "no_next_hop",
        /// Too many frames wait for the worker whose it is.
        HandoverFull = "handover_full",
        /// Another worker handed it over, and this one's it is not either: the SA has just come or gone.
        WrongWorker = "wrong_worker",
        /// The port could not send it.
        TransmitFailed = "transmit_failed",
    }
}

impl DropReason {
    /// Did the packet serve its purpose by being looked at? (The others were lost.)
    pub fn is_consumed(self) -> bool {
        self <= DropReason::DummyPacket
    }
}

/// All counts since the engine was made.
#[derive(Clone, PartialEq, Eq)]
pub struct Counters {
    counts: [u64; Counter::ALL.len()],
    drops: [u64; DropReason::ALL.len()],
}

/// The equation of [`Counters::check`] does not hold: a fault in the engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Imbalance {
    /// Received and created.
    pub came: u64,
    /// Delivered, dropped, consumed, held.
    pub went: u64,
}

impl fmt::Display for Imbalance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} frames came and {} went", self.came, self.went)
    }
}

impl std::error::Error for Imbalance {}

impl Counters {
    pub(crate) fn new() -> Counters {
        Counters { counts: [0; Counter::ALL.len()], drops: [0; DropReason::ALL.len()] }
    }

    pub(crate) fn add(&mut self, counter: Counter, count: u64) {
        self.counts[counter as usize] += count;
    }

    pub(crate) fn subtract(&mut self, counter: Counter, count: u64) {
        let value = &mut self.counts[counter as usize];
        *value = value.saturating_sub(count);
    }

    pub(crate) fn drop(&mut self, reason: DropReason, count: u64) {
        self.drops[reason as usize] += count;
    }

    /// This counter's value.
    pub fn count(&self, counter: Counter) -> u64 {
        self.counts[counter as usize]
    }

    /// Frames that ended for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// Every counter and drop reason with its name in metrics and its value.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = Counter::ALL.iter().map(|c| (c.name(), self.count(*c)));
        counts.chain(DropReason::ALL.iter().map(|r| (r.name(), self.dropped(*r))))
    }

    /// Received + created + taken over = delivered + dropped + consumed + held + handed over, at any time between two calls
    /// of the engine.
    /// (Frames that pass to the kernel are counted by the XDP program; the engine never sees them.)
    pub fn check(&self) -> Result<(), Imbalance> {
        let sum = |counters: &[Counter]| counters.iter().map(|c| self.count(*c)).sum::<u64>();
        let came =
            sum(&[Counter::ReceivedInside, Counter::ReceivedOutside, Counter::Created, Counter::TakenOver]);
        let stays = [Counter::DeliveredInside, Counter::DeliveredOutside, Counter::Held, Counter::HandedOver];
        let went = sum(&stays) + self.drops.iter().sum::<u64>();
        if came == went { Ok(()) } else { Err(Imbalance { came, went }) }
    }
}

impl fmt::Debug for Counters {
    /// Only what isn't zero.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().filter(|(_, value)| *value != 0)).finish()
    }
}
