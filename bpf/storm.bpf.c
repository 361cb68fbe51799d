// SPDX-License-Identifier: MIT OR GPL-2.0-only
//
// The two ends of a storm, for measurements only.
//
// `storm` runs on XDP live frames (BPF_PROG_TEST_RUN): no packet arrives here, the kernel calls it again and again
// on pages that it recycles, and every frame that it redirects really leaves by `egress`. Frames come back as the
// receiving stack left them, so the whole header is written each time.
// `plain` sends what a gateway is to encapsulate instead: IPv4 with UDP from one host to another.
// `sink` stands on the far end of a veth pair: it counts what arrives, looks at it if asked to, and drops it.

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "Dual MIT/GPL";

#define ETHERNET 14
#define IPV4 20
#define UDP 8
#define ESP 8
#define HEADER_MAX (ETHERNET + IPV4 + UDP + ESP)
#define PROTOCOL_ESP 50
#define PROTOCOL_UDP 17
#define RESERVED_SPIS 256 // RFC 4303 section 2.1
#define PLAIN_FLOWS 64

// Written by the loader before the program is loaded.
volatile const __u8 header[HEADER_MAX]; // Ethernet, IPv4, UDP if encapsulated or plain, ESP; source and SPI are filled in
volatile const __u32 encapsulated;      // ESP in UDP (RFC 3948)?
volatile const __u32 checksum_base;     // the IPv4 header's 16-bit words without checksum and source, added up
volatile const __u32 source;            // host order
volatile const __u32 source_mask;       // bits of the source address that vary
volatile const __u32 key;               // another key, another sequence of SPIs
volatile const __u32 egress;            // interface index
volatile const __u64 limit;             // frames to send
volatile const __u64 interval;          // nanoseconds times 1024 between two frames; 0 is as fast as possible
volatile const __u64 slack;             // the same unit: how far a late storm may catch up in one go

// One generator runs at a time, on one core, so plain arithmetic is exact.
struct storm_state {
    __u64 sent;      // frames redirected (whether the veth took them, its own counters say)
    __u64 next;      // when the next frame is due, in nanoseconds times 1024
    __u32 counter;   // what the next SPI is made from
    __u32 reserved;  // counter values skipped, for their SPI is a reserved one
};

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct storm_state);
} storm_state SEC(".maps");

// A bijection of 32 bits (MurmurHash3's finalizer): distinct counters give distinct SPIs that look random.
static __always_inline __u32 mix(__u32 x)
{
    x ^= x >> 16;
    x *= 0x85ebca6b;
    x ^= x >> 13;
    x *= 0xc2b2ae35;
    x ^= x >> 16;
    return x;
}

// Is it too early for another frame? A storm that was held up does not catch up by more than `slack`.
static __always_inline int early(struct storm_state *state)
{
    __u64 now = bpf_ktime_get_ns() << 10;

    if (now < state->next)
        return 1;
    state->next = (now - state->next > slack ? now - slack : state->next) + interval;
    return 0;
}

static __always_inline void copy(__u8 *to, int from, int octets)
{
#pragma unroll
    for (int i = 0; i < octets; i += 2)
        *(__u16 *)(to + i) = *(volatile const __u16 *)(header + from + i);
}

SEC("xdp")
int storm(struct xdp_md *ctx)
{
    __u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end, *esp;
    __u32 zero = 0, spi, address, sum;
    struct storm_state *state = bpf_map_lookup_elem(&storm_state, &zero);

    // XDP_DROP gives the page back; the kernel calls again at once.
    if (!state || state->sent >= limit || data + HEADER_MAX > end)
        return XDP_DROP;
    if (interval && early(state))
        return XDP_DROP;
    spi = mix(state->counter++ ^ key);
    if (spi < RESERVED_SPIS) {
        state->reserved++;
        return XDP_DROP;
    }
    address = source | (mix(spi ^ 0x9e3779b9) & source_mask);

    copy(data, 0, ETHERNET + IPV4);
    esp = data + ETHERNET + IPV4;
    if (encapsulated) {
        copy(esp, ETHERNET + IPV4, UDP);
        esp += UDP;
    }
    sum = checksum_base + (address >> 16) + (address & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    sum += sum >> 16;
    *(__u16 *)(data + ETHERNET + 10) = bpf_htons((__u16)~sum);
    *(__u32 *)(data + ETHERNET + 12) = bpf_htonl(address);
    *(__u32 *)esp = bpf_htonl(spi);
    *(__u32 *)(esp + 4) = bpf_htonl((__u32)state->sent + 1);

    state->sent++;
    return bpf_redirect(egress, 0);
}

// The host's port differs from frame to frame, so that this is more than one flow. There is no UDP checksum.
SEC("xdp")
int plain(struct xdp_md *ctx)
{
    __u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    __u32 zero = 0;
    struct storm_state *state = bpf_map_lookup_elem(&storm_state, &zero);

    if (!state || state->sent >= limit || data + ETHERNET + IPV4 + UDP > end)
        return XDP_DROP;
    copy(data, 0, ETHERNET + IPV4 + UDP);
    *(__u16 *)(data + ETHERNET + IPV4) = bpf_htons(1024 + (state->sent & (PLAIN_FLOWS - 1)));
    state->sent++;
    return bpf_redirect(egress, 0);
}

struct sink_counts {
    __u64 frames;
    __u64 octets;
    __u64 esp;        // frames that hold ESP, in UDP or not; counted if `inspect`, as all below
    __u64 bad;        // IPv4 checksum wrong
    __u64 reserved;   // a reserved SPI
    __u64 duplicates; // an SPI that was seen before
    __u64 unrecorded; // no room to remember the SPI
};

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct sink_counts);
} sink_counts SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 1); // the loader's choice
    __type(key, __u32);
    __type(value, __u8);
} sink_spis SEC(".maps");

volatile const __u32 inspect; // parse frames and remember their SPIs?

static __always_inline void look(struct sink_counts *counts, __u8 *data, __u8 *end)
{
    __u8 *ip = data + ETHERNET, *esp = ip + IPV4, one = 1;
    __u32 sum = 0, spi;
    long result;

    if (esp + ESP > end || *(__u16 *)(data + 12) != bpf_htons(0x0800) || ip[0] != 0x45)
        return;
#pragma unroll
    for (int i = 0; i < IPV4; i += 2)
        sum += *(__u16 *)(ip + i);
    sum = (sum >> 16) + (sum & 0xffff);
    sum += sum >> 16;
    if ((sum & 0xffff) != 0xffff)
        counts->bad++;
    if (ip[9] == PROTOCOL_UDP)
        esp += UDP;
    else if (ip[9] != PROTOCOL_ESP)
        return;
    if (esp + ESP > end)
        return;
    counts->esp++;
    spi = bpf_ntohl(*(__u32 *)esp);
    if (spi < RESERVED_SPIS)
        counts->reserved++;
    result = bpf_map_update_elem(&sink_spis, &spi, &one, BPF_NOEXIST);
    if (result == -17 /* EEXIST */)
        counts->duplicates++;
    else if (result)
        counts->unrecorded++;
}

SEC("xdp")
int sink(struct xdp_md *ctx)
{
    __u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    __u32 zero = 0;
    struct sink_counts *counts = bpf_map_lookup_elem(&sink_counts, &zero);

    if (!counts)
        return XDP_DROP;
    counts->frames++;
    counts->octets += end - data;
    if (inspect)
        look(counts, data, end);
    return XDP_DROP;
}
