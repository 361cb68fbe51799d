// SPDX-License-Identifier: MIT OR GPL-2.0-only
//
// Who takes a packet: the dataplane (this queue's AF_XDP socket), the kernel, or nobody.
//
// `outside` stands on the unprotected side: ESP for us, in UDP or not, over IPv4 or IPv6, goes to a socket: the first one
// if its SPI has a state, the one in the background if it is unknown, so that a storm of unknown SPIs fills its own ring
// and leaves the other's alone. To the background go also fragments of ESP, of which the later ones show no SPI, and ICMP
// errors about ESP that we are said to have sent: anybody can make these. IKE and what else is for this host
// passes, and so does what no router forwards, such as neighbour discovery; what isn't for us is dropped, for the kernel
// must not forward it, unless a policy may let it by in clear: then it goes to the background too, and the dataplane
// decides. Of a fragmented datagram only the first fragment shows UDP's ports, so the later ones go where the first one
// went, and before it to the kernel: IKE in fragments is the kernel's always.
// `inside` stands on the protected side: what the host would have to forward goes to the socket. A socket
// that isn't there means drop, never pass.
// Either side may be a VLAN (IEEE 802.1Q): then frames with its tag alone are the gateway's, and are looked at behind the
// tag, which stays in them. All others, and without a VLAN all that have a tag, are of other networks: the kernel's.
// Each decision is counted; the order of the counts is known to steer.rs.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/types.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "Dual MIT/GPL";

#define QUEUES 64
#define FRAGMENT 0x3fff      // more fragments, or an offset
#define OFFSET 0x1fff
#define FRAGMENT6 0xfff9     // the same in IPv6's fragment header
#define EXTENSIONS 8         // IPv6 extension headers at most, as spindle_wire::ipv6
#define ICMP_HEADER 8
#define DEST_UNREACH 3       // ICMP type and code of RFC 1191 section 4
#define FRAG_NEEDED 4
#define TOO_BIG 2            // ICMPv6 type of RFC 4443 section 3.2
#define DATAGRAMS 4096       // fragmented ones that are remembered
#define SPI_UNKNOWN 0        // as spindle_abi::SpiState

enum decision {
    TO_SOCKET,
    PASSED,               // to the kernel
    DROPPED_NO_SOCKET,    // the dataplane is not there
    DROPPED_NOT_OURS,     // outside: to an address that isn't ours
    TO_BACKGROUND,        // an unknown SPI, a fragment of ESP, an ICMP error about ESP
    DROPPED_KEEPALIVE,    // RFC 3948 section 2.3: consumed
    DROPPED_MALFORMED,    // no whole IP, UDP or ESP header
    IN_CLEAR,             // outside: to the background, for a BYPASS policy may match
    DECISIONS = 16
};

enum side { OUTSIDE, INSIDE };

// IEEE 802.1Q section 9.3: behind the addresses a TPID, ETH_P_8021Q, then the VID in the lower bits of two octets.
#define VID 0x0fff

struct vlan {
    __u32 id;     // 0: none, frames have no tag
    __u32 octets; // of its tag: 4, or 0
};

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 2); // by side
    __type(key, __u32);
    __type(value, struct vlan);
} vlans SEC(".maps");

struct counts {
    __u64 decisions[DECISIONS];
};

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 2); // by side
    __type(key, __u32);
    __type(value, struct counts);
} steer_counts SEC(".maps");

// UDP port of IKE and ESP (RFC 3948 section 2.1).
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, __u32);
} nat_port SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 1024);
    __type(key, __be32);
    __type(value, __u8);
} local_addresses SEC(".maps");

// Addresses that BYPASS policies name: those behind us and those of others. IPv4 as RFC 4291 section 2.5.5.2 maps it.
enum end { LOCAL, REMOTE };

struct in_clear_key {
    __u32 prefix; // of what follows
    __be32 end;
    __be32 address[4];
};

struct {
    __uint(type, BPF_MAP_TYPE_LPM_TRIE);
    __uint(max_entries, 65536);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __type(key, struct in_clear_key);
    __type(value, __u8);
} in_clear SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 1024);
    __type(key, struct in6_addr);
    __type(value, __u8);
} local_addresses6 SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_XSKMAP);
    __uint(max_entries, QUEUES);
    __type(key, __u32);
    __type(value, __u32);
} outside_sockets SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_XSKMAP);
    __uint(max_entries, QUEUES);
    __type(key, __u32);
    __type(value, __u32);
} background_sockets SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_XSKMAP);
    __uint(max_entries, QUEUES);
    __type(key, __u32);
    __type(value, __u32);
} inside_sockets SEC(".maps");

// Inbound SPIs that have a state; memory follows what is in it.
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 1); // the loader's choice
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __type(key, __be32);
    __type(value, __u8);
} spi_states SEC(".maps");

// Datagrams in fragments that are ESP in UDP, by their first fragments. IPv4 as RFC 4291 section 2.5.5.2 maps it.
struct datagram {
    __be32 source[4];
    __be32 destination[4];
    __u32 identification;
};

struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, DATAGRAMS);
    __type(key, struct datagram);
    __type(value, __u8);
} esp_datagrams SEC(".maps");

static __always_inline int decide(enum side side, enum decision decision, int action)
{
    __u32 key = side;
    struct counts *counts = bpf_map_lookup_elem(&steer_counts, &key);

    if (counts)
        counts->decisions[decision]++;
    return action;
}

static __always_inline int pass(enum side side)
{
    return decide(side, PASSED, XDP_PASS);
}

static __always_inline int drop(enum side side, enum decision decision)
{
    return decide(side, decision, XDP_DROP);
}

// Is a frame of the side's own network? TO_SOCKET: it may be for us; `header` is the Ethernet header as if the tag were not
// there: its type, and the packet behind it. Else what is to be decided of it.
static __always_inline enum decision find_header(enum side side, struct ethhdr *ethernet, void *end,
                                                 struct ethhdr **header)
{
    __u32 key = side;
    struct vlan *vlan = bpf_map_lookup_elem(&vlans, &key);
    void *shifted;

    if (!vlan || (void *)(ethernet + 1) > end)
        return DROPPED_MALFORMED;
    if (vlan->id && ethernet->h_proto != bpf_htons(ETH_P_8021Q))
        return PASSED;
    // One pointer of which the verifier knows that it is 0 or 4 octets on, so that it looks at what follows once.
    shifted = (void *)ethernet + (vlan->octets & 4);
    asm volatile("" : "+r"(shifted));
    *header = shifted;
    if (shifted + sizeof(**header) > end)
        return PASSED;
    if (vlan->id && (bpf_ntohs(((__be16 *)shifted)[5]) & VID) != vlan->id)
        return PASSED;
    return TO_SOCKET;
}

static __always_inline int to_socket(struct xdp_md *ctx, enum side side, void *sockets, enum decision decision)
{
    int action = bpf_redirect_map(sockets, ctx->rx_queue_index, XDP_DROP);

    return decide(side, action == XDP_REDIRECT ? decision : DROPPED_NO_SOCKET, action);
}

static __always_inline int is_local(__be32 address)
{
    return bpf_map_lookup_elem(&local_addresses, &address) != 0;
}

static __always_inline int is_local6(struct in6_addr address)
{
    return bpf_map_lookup_elem(&local_addresses6, &address) != 0;
}

static __always_inline int is_in_clear(enum end end, __be32 a, __be32 b, __be32 c, __be32 d)
{
    struct in_clear_key key = {.prefix = 32 + 128, .end = bpf_htonl(end), .address = {a, b, c, d}};

    return bpf_map_lookup_elem(&in_clear, &key) != 0;
}

static __always_inline int is_in_clear4(enum end end, __be32 address)
{
    return is_in_clear(end, 0, 0, bpf_htonl(0xffff), address);
}

static __always_inline int is_in_clear6(enum end end, struct in6_addr *address)
{
    __be32 *word = address->s6_addr32;

    return is_in_clear(end, word[0], word[1], word[2], word[3]);
}

// For a group, or for all: the kernel neither forwards these nor do we.
static __always_inline int is_for_many(struct ethhdr *ethernet, struct iphdr *ip)
{
    return (ethernet->h_dest[0] & 1) || (bpf_ntohl(ip->daddr) >> 28) == 14 || ip->daddr == 0xffffffff;
}

// For a group, or for a link-local address, ff00::/8 and fe80::/10: no router forwards these (RFC 4291 section 2.5.6).
static __always_inline int is_for_link(struct ethhdr *ethernet, struct ipv6hdr *ip)
{
    __u8 *to = ip->daddr.s6_addr;

    return (ethernet->h_dest[0] & 1) || to[0] == 0xff || (to[0] == 0xfe && (to[1] & 0xc0) == 0x80);
}

static __always_inline int esp(struct xdp_md *ctx, __be32 *spi, void *end)
{
    __be32 key;
    __u8 *state;

    if ((void *)(spi + 2) > end)
        return drop(OUTSIDE, DROPPED_MALFORMED);
    key = *spi;
    state = bpf_map_lookup_elem(&spi_states, &key);
    if (state && *state != SPI_UNKNOWN)
        return to_socket(ctx, OUTSIDE, &outside_sockets, TO_SOCKET);
    return to_socket(ctx, OUTSIDE, &background_sockets, TO_BACKGROUND);
}

// RFC 3948 section 2: four zero octets are the non-ESP marker, one octet 0xff is a keepalive.
static __always_inline int udp(struct xdp_md *ctx, struct udphdr *udp, void *end)
{
    __u8 *payload = (void *)(udp + 1);
    __be32 *marker = (void *)payload;
    __u32 only = 0, *port = bpf_map_lookup_elem(&nat_port, &only);

    if ((void *)payload > end)
        return drop(OUTSIDE, DROPPED_MALFORMED);
    if (!port || udp->dest != bpf_htons(*port))
        return pass(OUTSIDE);
    if (bpf_ntohs(udp->len) == sizeof(*udp) + 1 && (void *)(payload + 1) <= end && *payload == 0xff)
        return drop(OUTSIDE, DROPPED_KEEPALIVE);
    if (bpf_ntohs(udp->len) < sizeof(*udp) + sizeof(*marker) || (void *)(marker + 1) > end)
        return drop(OUTSIDE, DROPPED_MALFORMED);
    if (*marker == 0)
        return pass(OUTSIDE);
    return esp(ctx, marker, end);
}

// Of ESP in UDP, or of something else, which is the kernel's. `later`: not the datagram's first fragment.
static __always_inline int udp_fragment(struct xdp_md *ctx, struct datagram *datagram, int later, struct udphdr *udp,
                                        void *end)
{
    __be32 *marker = (void *)(udp + 1);
    __u32 only = 0, *port = bpf_map_lookup_elem(&nat_port, &only);
    __u8 one = 1;

    if (later) {
        if (!bpf_map_lookup_elem(&esp_datagrams, datagram))
            return pass(OUTSIDE);
    } else if (port && (void *)(marker + 1) <= end && udp->dest == bpf_htons(*port) && *marker != 0) {
        bpf_map_update_elem(&esp_datagrams, datagram, &one, BPF_ANY);
    } else {
        bpf_map_delete_elem(&esp_datagrams, datagram);
        return pass(OUTSIDE);
    }
    return to_socket(ctx, OUTSIDE, &background_sockets, TO_BACKGROUND);
}

static __always_inline int is_quoted_esp(__u8 protocol, void *upper, void *end)
{
    struct udphdr *udp = upper;
    __be32 *spi = (void *)(udp + 1);
    __u32 only = 0, *port = bpf_map_lookup_elem(&nat_port, &only);

    if (protocol == IPPROTO_ESP)
        return 1;
    return protocol == IPPROTO_UDP && port && (void *)(spi + 1) <= end && udp->source == bpf_htons(*port)
        && *spi != 0;
}

// Does an ICMP error say that ESP of ours was too big (RFC 1191 section 4)?
static __always_inline int is_about_esp(struct iphdr *ip, void *end)
{
    __u8 *icmp = (void *)ip + ip->ihl * 4;
    struct iphdr *quoted = (void *)(icmp + ICMP_HEADER);

    if ((void *)(quoted + 1) > end || quoted->version != 4 || quoted->ihl < 5)
        return 0;
    if (icmp[0] != DEST_UNREACH || icmp[1] != FRAG_NEEDED || quoted->saddr != ip->daddr)
        return 0;
    return is_quoted_esp(quoted->protocol, (void *)quoted + quoted->ihl * 4, end);
}

// The same over IPv6 (RFC 8201 section 4).
static __always_inline int is_about_esp6(struct ipv6hdr *ip, __u8 *icmp, void *end)
{
    struct ipv6hdr *quoted = (void *)(icmp + ICMP_HEADER);

    if ((void *)(quoted + 1) > end || quoted->version != 6 || icmp[0] != TOO_BIG)
        return 0;
    for (int word = 0; word < 4; word++)
        if (quoted->saddr.s6_addr32[word] != ip->daddr.s6_addr32[word])
            return 0;
    return is_quoted_esp(quoted->nexthdr, quoted + 1, end);
}

// What is for an address of ours.
static __always_inline int for_us(struct xdp_md *ctx, __u8 protocol, int fragment, void *upper, void *end)
{
    if (protocol == IPPROTO_ESP) {
        if (fragment)
            return to_socket(ctx, OUTSIDE, &background_sockets, TO_BACKGROUND);
        return esp(ctx, upper, end);
    }
    if (protocol == IPPROTO_UDP && !fragment)
        return udp(ctx, upper, end);
    return pass(OUTSIDE);
}

static __always_inline int outside4(struct xdp_md *ctx, struct ethhdr *ethernet, struct iphdr *ip, void *end)
{
    int fragment;

    if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5)
        return drop(OUTSIDE, DROPPED_MALFORMED);
    if (is_for_many(ethernet, ip))
        return pass(OUTSIDE);
    if (!is_local(ip->daddr)) {
        if (is_in_clear4(REMOTE, ip->saddr) && is_in_clear4(LOCAL, ip->daddr))
            return to_socket(ctx, OUTSIDE, &background_sockets, IN_CLEAR);
        return drop(OUTSIDE, DROPPED_NOT_OURS);
    }
    fragment = ip->frag_off & bpf_htons(FRAGMENT);
    if (ip->protocol == IPPROTO_UDP && fragment) {
        struct datagram datagram = {
            .source = {0, 0, bpf_htonl(0xffff), ip->saddr},
            .destination = {0, 0, bpf_htonl(0xffff), ip->daddr},
            .identification = ip->id,
        };

        return udp_fragment(ctx, &datagram, (ip->frag_off & bpf_htons(OFFSET)) != 0, (void *)ip + ip->ihl * 4, end);
    }
    if (ip->protocol == IPPROTO_ICMP && !fragment && is_about_esp(ip, end))
        return to_socket(ctx, OUTSIDE, &background_sockets, TO_BACKGROUND);
    return for_us(ctx, ip->protocol, fragment, (void *)ip + ip->ihl * 4, end);
}

struct extension {
    __u8 next;
    __u8 length;           // in units of 8 octets, beyond the first
    __be16 offset;         // of a fragment header
    __be32 identification; // of a fragment header
};

// What is for an IPv6 address of ours. `offset`: of its fragment header, 0 if it has none or is whole all the same.
static __always_inline int for_us6(struct xdp_md *ctx, struct ipv6hdr *ip, __u8 protocol, __be16 offset,
                                   __u32 identification, void *upper, void *end)
{
    if (protocol == IPPROTO_UDP && offset) {
        __be32 *from = ip->saddr.s6_addr32, *to = ip->daddr.s6_addr32;
        struct datagram datagram = {
            .source = {from[0], from[1], from[2], from[3]},
            .destination = {to[0], to[1], to[2], to[3]},
            .identification = identification,
        };

        return udp_fragment(ctx, &datagram, bpf_ntohs(offset) >> 3 != 0, upper, end);
    }
    if (protocol == IPPROTO_ICMPV6 && !offset && is_about_esp6(ip, upper, end))
        return to_socket(ctx, OUTSIDE, &background_sockets, TO_BACKGROUND);
    return for_us(ctx, protocol, offset != 0, upper, end);
}

// Walks the extension headers (RFC 8200 section 4) as spindle_wire::ipv6 does; what is refused there is malformed.
static __always_inline int outside6(struct xdp_md *ctx, struct ethhdr *ethernet, struct ipv6hdr *ip, void *end)
{
    struct extension *header = (void *)(ip + 1);
    int fragment_header = 0;
    __be16 fragment = 0;
    __u32 identification = 0;
    __u8 protocol;

    if ((void *)header > end || ip->version != 6)
        return drop(OUTSIDE, DROPPED_MALFORMED);
    if (is_for_link(ethernet, ip))
        return pass(OUTSIDE);
    if (!is_local6(ip->daddr)) {
        if (is_in_clear6(REMOTE, &ip->saddr) && is_in_clear6(LOCAL, &ip->daddr))
            return to_socket(ctx, OUTSIDE, &background_sockets, IN_CLEAR);
        return drop(OUTSIDE, DROPPED_NOT_OURS);
    }
    protocol = ip->nexthdr;
    for (int i = 0; i <= EXTENSIONS; i++) {
        int is_fragment = protocol == IPPROTO_FRAGMENT;

        if (!is_fragment && protocol != IPPROTO_HOPOPTS && protocol != IPPROTO_ROUTING && protocol != IPPROTO_DSTOPTS)
            return for_us6(ctx, ip, protocol, fragment, identification, header, end);
        if ((void *)(header + 1) > end || (is_fragment && fragment_header) || (protocol == IPPROTO_HOPOPTS && i))
            break;
        protocol = header->next;
        if (is_fragment) {
            fragment_header = 1;
            fragment = header->offset & bpf_htons(FRAGMENT6);
            identification = header->identification;
            if (bpf_ntohs(header->offset) >> 3) // not the first: no more headers
                return for_us6(ctx, ip, protocol, fragment, identification, header + 1, end);
            header++;
        } else {
            header = (void *)header + (header->length + 1) * 8;
        }
    }
    return drop(OUTSIDE, DROPPED_MALFORMED);
}

SEC("xdp")
int outside(struct xdp_md *ctx)
{
    void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    struct ethhdr *ethernet = data, *header;
    enum decision decision = find_header(OUTSIDE, ethernet, end, &header);

    if (decision == DROPPED_MALFORMED)
        return drop(OUTSIDE, decision);
    if (decision == PASSED)
        return pass(OUTSIDE);
    if (header->h_proto == bpf_htons(ETH_P_IP))
        return outside4(ctx, ethernet, (void *)(header + 1), end);
    if (header->h_proto == bpf_htons(ETH_P_IPV6))
        return outside6(ctx, ethernet, (void *)(header + 1), end);
    return pass(OUTSIDE);
}

SEC("xdp")
int inside(struct xdp_md *ctx)
{
    void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    struct ethhdr *ethernet = data, *header;
    enum decision decision = find_header(INSIDE, ethernet, end, &header);
    struct iphdr *ip;
    struct ipv6hdr *ip6;

    if (decision == DROPPED_MALFORMED)
        return drop(INSIDE, decision);
    if (decision == PASSED)
        return pass(INSIDE);
    ip = (void *)(header + 1);
    ip6 = (void *)ip;
    if (header->h_proto == bpf_htons(ETH_P_IP)) {
        if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5)
            return drop(INSIDE, DROPPED_MALFORMED);
        if (is_for_many(ethernet, ip) || is_local(ip->daddr))
            return pass(INSIDE);
    } else if (header->h_proto == bpf_htons(ETH_P_IPV6)) {
        if ((void *)(ip6 + 1) > end || ip6->version != 6)
            return drop(INSIDE, DROPPED_MALFORMED);
        if (is_for_link(ethernet, ip6) || is_local6(ip6->daddr))
            return pass(INSIDE);
    } else {
        return pass(INSIDE);
    }
    return to_socket(ctx, INSIDE, &inside_sockets, TO_SOCKET);
}
