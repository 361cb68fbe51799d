#!/usr/bin/env python3
"""A peer for tests of Safe IKE Recovery, written from draft-detienne-ikev2-recovery-03 in another language than the
gateway, so that a mistake in one of them shows. Python's standard library alone; needs root for raw sockets.

  sir_peer.py x --local ADDRESS --remote ADDRESS --interface NAME [--answer nack|ack|both|wrong-cookie|stranger]
                [--cookie HEX] [--seconds N]
      plays X, which has lost all SAs: says INVALID_SPI to ESP, INVALID_IKE_SPI to protected requests, answers a query,
      and ends when an IKE_SA_INIT request comes, or after N seconds.

  sir_peer.py y --local ADDRESS --remote ADDRESS [--spis SPIi,SPIr] [--port N] [--limit N]
      plays Y, which still has its SAs: sends ESP, a protected request, queries good and bad, and compares each answer
      with what the draft asks for, octet by octet. With --spis, asks about that IKE SA, which the other side has.

Each event is a line of JSON on standard output. Exit code 0: all as the draft says; 1: not, with one line that says what.
"""
import argparse
import json
import os
import select
import socket
import struct
import sys
import time

# RFC 7296 section 3.1, 3.2, 3.10.
IKE_SA_INIT, INFORMATIONAL = 34, 37
NOTIFY, SK, NONE = 41, 46, 0
INVALID_IKE_SPI, INVALID_SPI, COOKIE = 4, 11, 16390
RESPONSE, INITIATOR = 0x20, 0x08
ESP_PROTOCOL = 3

# The draft leaves these open or names numbers that are not free; private ones stand in (RFC 7296 section 3.1, 3.10.1).
SIR, CHECK_SPI = 240, 40970
QUERY, ACK, NACK = 0, 1, 2


def fail(text):
    print(json.dumps({"event": "failure", "text": text}), flush=True)
    sys.exit(1)


def tell(event, **more):
    print(json.dumps({"event": event, **more}), flush=True)


def expect(condition, text):
    if not condition:
        fail(text)


def header(spis, first, exchange, flags, message_id, length):
    return spis[0] + spis[1] + struct.pack("!BBBBII", first, 0x20, exchange, flags, message_id, length)


def notify(kind, data, protocol=0, spi=b"", following=NONE):
    return struct.pack("!BBHBBH", following, 0, 8 + len(spi) + len(data), protocol, len(spi), kind) + spi + data


def message(spis, exchange, flags, payloads, message_id=0, first=NOTIFY):
    body = b"".join(payloads)
    return header(spis, first if payloads else NONE, exchange, flags, message_id, 28 + len(body)) + body


def check_spi(subtype, cookie, protocol=0, spi=b"", following=NONE):
    """Section 6: subtype, size of the cookie, two octets reserved, the cookie."""
    return notify(CHECK_SPI, struct.pack("!BBH", subtype, len(cookie), 0) + cookie, protocol, spi, following)


class Message:
    """A message in clear: its header's fields and its payloads, each (type, body)."""

    def __init__(self, octets):
        expect(len(octets) >= 28, f"a message of {len(octets)} octets")
        self.spis = (octets[0:8], octets[8:16])
        kind, version, self.exchange, self.flags, self.message_id, length = struct.unpack("!BBBBII", octets[16:28])
        expect(version == 0x20 and length == len(octets), f"version {version:#x}, length {length} of {len(octets)}")
        self.payloads, at = [], 28
        self.protected = False
        while kind != NONE:
            following, _, size = struct.unpack("!BBH", octets[at:at + 4])
            expect(4 <= size and at + size <= len(octets), "a payload that is too long")
            self.payloads.append((kind, octets[at + 4:at + size]))
            at += size
            if kind == SK:
                self.protected = True
                break
            kind = following

    def notifies(self):
        """(type, protocol, SPI, data) of each Notify payload."""
        found = []
        for kind, body in self.payloads:
            if kind == NOTIFY:
                protocol, size, number = struct.unpack("!BBH", body[:4])
                found.append((number, protocol, body[4:4 + size], body[4 + size:]))
        return found


def udp_socket(address, port):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    return sock


# X: lost everything.

def play_x(options):
    ike = udp_socket(options.local, 500)
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    wire.bind((options.interface, 0))
    peer = (options.remote, 500)
    stranger = udp_socket(options.local, 4501)
    cookie_x = bytes.fromhex(options.cookie)
    ends = (socket.inet_aton(options.remote), socket.inet_aton(options.local))
    end, told = time.monotonic() + options.seconds, 0.0
    tell("started")
    while time.monotonic() < end:
        readable, _, _ = select.select([ike, wire], [], [], 0.1)
        if wire in readable:
            frame = wire.recv(4096)
            packet = frame[14:]
            if packet[9] == 50 and (packet[12:16], packet[16:20]) == ends and time.monotonic() >= told:
                spi = packet[20:24]
                told = time.monotonic() + 1.0
                tell("esp", spi=spi.hex())
                # Section 3.4.2: HDR(0,0) INVALID_SPI(SPI), in clear.
                zero = (bytes(8), bytes(8))
                ike.sendto(message(zero, INFORMATIONAL, INITIATOR, [notify(INVALID_SPI, spi)]), peer)
        if ike not in readable:
            continue
        octets, source = ike.recvfrom(4096)
        got = Message(octets)
        if got.exchange == IKE_SA_INIT:
            first = got.notifies()[0] if got.payloads and got.payloads[0][0] == NOTIFY else None
            shown = first[3].hex() if first and first[0] == COOKIE else None
            expect(got.spis[1] == bytes(8), "an IKE_SA_INIT request with a responder's SPI")
            tell("init", spi_i=got.spis[0].hex(), cookie=shown)
            return
        if got.protected:
            # Section 3.2.2: HDR(A,B) INVALID_IKE_SPI(A,B), in clear; RFC 7296 section 2.21.4: as a response.
            expect(not got.flags & RESPONSE, "a response that nobody asked for")
            tell("protected", spis=[spi.hex() for spi in got.spis], exchange=got.exchange)
            flags = RESPONSE | (got.flags ^ INITIATOR) & INITIATOR
            lost = message(got.spis, got.exchange, flags, [notify(INVALID_IKE_SPI, b"")], got.message_id)
            ike.sendto(lost, source)
            continue
        expect(got.exchange == SIR, f"a message in clear of exchange {got.exchange}")
        answer_query(options, ike, stranger, got, source, cookie_x)
    tell("end")


def answer_query(options, ike, stranger, got, source, cookie_x):
    """Section 3.2.2: HDR(A,B) CHECK_SPI(QUERY,(A,B),Cookie_Y); the cookie is opaque here and goes back as it came."""
    found = got.notifies()
    expect(len(found) == 1 and len(got.payloads) == 1, f"a query with {len(got.payloads)} payloads")
    number, protocol, spi, data = found[0]
    expect((number, protocol, spi) == (CHECK_SPI, 0, b""), f"notification {number}, protocol {protocol}, SPI {spi.hex()}")
    subtype, size, reserved = struct.unpack("!BBH", data[:4])
    cookie = data[4:]
    expect((subtype, reserved) == (QUERY, 0), f"subtype {subtype}, reserved {reserved}")
    expect(size == len(cookie), f"a cookie of {len(cookie)} octets that says it has {size}")
    expect(not got.flags & RESPONSE and got.message_id == 0, f"flags {got.flags:#x}, Message ID {got.message_id}")
    expect(source[1] == 500, f"a query from port {source[1]}")
    tell("query", spis=[spi.hex() for spi in got.spis], cookie=cookie.hex())
    flags = RESPONSE | (got.flags ^ INITIATOR) & INITIATOR

    def say(subtype, reflected=cookie, by=ike):
        more = [notify(COOKIE, cookie_x)] if cookie_x and subtype == NACK else []
        check = check_spi(subtype, reflected, following=NOTIFY if more else NONE)
        by.sendto(message(got.spis, SIR, flags, [check] + more), source)

    if options.answer == "nack":
        say(NACK)
    elif options.answer == "ack":
        say(ACK)
    elif options.answer == "both":
        say(NACK)
        time.sleep(0.01)
        say(ACK)
    elif options.answer == "wrong-cookie":
        say(NACK, bytes(len(cookie)))
        say(NACK, b"")
        say(NACK, cookie[:-1] + bytes([cookie[-1] ^ 1]))
    elif options.answer == "stranger":
        say(NACK, by=stranger)
    tell("answered", how=options.answer)


# Y: still has its SAs, it thinks.

class Asker:
    def __init__(self, options):
        self.sock = udp_socket(options.local, options.port)
        self.peer = (options.remote, 500)

    def drain(self):
        while select.select([self.sock], [], [], 0)[0]:
            self.sock.recv(4096)

    def ask(self, octets, patience=2.0):
        """The answer, or None."""
        self.drain()
        self.sock.sendto(octets, self.peer)
        if not select.select([self.sock], [], [], patience)[0]:
            return None
        answer, source = self.sock.recvfrom(4096)
        expect(source == self.peer, f"an answer from {source}")
        return answer

    def until_answered(self, octets, what):
        """The first one may meet a neighbour that is not resolved yet."""
        for _ in range(5):
            answer = self.ask(octets, 1.0)
            if answer is not None:
                return answer
        fail(f"no answer to {what}")


def play_y(options):
    asker = Asker(options)
    if options.spis:
        spis = tuple(bytes.fromhex(spi) for spi in options.spis.split(","))
        return ask_about_living(asker, spis)
    esp_on_unknown(asker, options)
    spis = (os.urandom(8), os.urandom(8))
    protected_on_unknown(asker, spis)
    queries_about_unknown(asker, spis)
    unanswered(asker, spis)
    flood(asker, options)


def esp_on_unknown(asker, options):
    """Section 3.4.2."""
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 50)
    raw.bind((options.local, 0))
    spi = struct.pack("!I", 0x7ead0001)
    for _ in range(5):
        asker.drain()
        raw.sendto(spi + struct.pack("!I", 1) + os.urandom(64), (options.remote, 0))
        if select.select([asker.sock], [], [], 1.2)[0]:
            break
    else:
        fail("no INVALID_SPI to ESP on an unknown SPI")
    got = asker.sock.recv(4096)
    want = message((bytes(8), bytes(8)), INFORMATIONAL, INITIATOR, [notify(INVALID_SPI, spi)])
    expect(got == want, f"INVALID_SPI is {got.hex()}, not {want.hex()}")
    tell("invalid-spi", spi=spi.hex())


def protected_on_unknown(asker, spis):
    """Section 3.2.2: any message that isn't IKE_SA_INIT; its protected CHECK_SPI cannot be read by who lost the keys."""
    body = os.urandom(57)
    sealed = struct.pack("!BBH", NOTIFY, 0, 4 + len(body)) + body
    request = message(spis, INFORMATIONAL, INITIATOR, [sealed], message_id=7, first=SK)
    got = asker.until_answered(request, "a protected request on unknown SPIs")
    want = message(spis, INFORMATIONAL, RESPONSE, [notify(INVALID_IKE_SPI, b"")], message_id=7)
    expect(got == want, f"INVALID_IKE_SPI is {got.hex()}, not {want.hex()}")
    tell("invalid-ike-spi")


def query(spis, cookie, flags=INITIATOR):
    return message(spis, SIR, flags, [check_spi(QUERY, cookie)])


def answered_with(subtype, spis, cookie, flags):
    return message(spis, SIR, RESPONSE | (flags ^ INITIATOR), [check_spi(subtype, cookie)])


def queries_about_unknown(asker, spis):
    """Section 3.2.2: NACK, and the cookie as it came, whatever it is; both flags inverted."""
    for flags in (INITIATOR, 0):
        for size in (0, 1, 24, 64, 255):
            cookie = os.urandom(size)
            got = asker.until_answered(query(spis, cookie, flags), f"a query with a cookie of {size} octets")
            want = answered_with(NACK, spis, cookie, flags)
            expect(got == want, f"the answer is {got.hex()}, not {want.hex()}")
            tell("nack", size=size)


def unanswered(asker, spis):
    """What must not be answered, or two peers would go on for ever; and what makes no sense."""
    cookie = os.urandom(24)
    child = check_spi(QUERY, cookie, ESP_PROTOCOL, bytes(4))
    two = [check_spi(QUERY, cookie, following=NOTIFY), check_spi(QUERY, cookie)]
    short = notify(CHECK_SPI, struct.pack("!BBH", QUERY, 25, 0) + cookie)
    cases = {
        "a response": message(spis, SIR, RESPONSE | INITIATOR, [check_spi(QUERY, cookie)]),
        "an ACK": message(spis, SIR, INITIATOR, [check_spi(ACK, cookie)]),
        "a NACK": message(spis, SIR, INITIATOR, [check_spi(NACK, cookie)]),
        "a NACK in a response": message(spis, SIR, RESPONSE, [check_spi(NACK, cookie)]),
        "a Message ID": message(spis, SIR, INITIATOR, [check_spi(QUERY, cookie)], message_id=1),
        "an INFORMATIONAL in clear": message(spis, INFORMATIONAL, INITIATOR, [check_spi(QUERY, cookie)]),
        "a Child SPI in clear": message(spis, SIR, INITIATOR, [child]),
        "two queries": message(spis, SIR, INITIATOR, two),
        "a cookie too short": message(spis, SIR, INITIATOR, [short]),
        "no SPIs": message((bytes(8), bytes(8)), SIR, INITIATOR, [check_spi(QUERY, cookie)]),
        "nothing": message(spis, SIR, INITIATOR, []),
    }
    for name, octets in cases.items():
        got = asker.ask(octets, 0.3)
        expect(got is None, f"{name} is answered with {got and got.hex()}")
        tell("silence", case=name)


def flood(asker, options):
    """Section 4: limited."""
    asker.drain()
    time.sleep(1.1)
    spis, sent, answers = (os.urandom(8), os.urandom(8)), 2000, 0
    begun = time.monotonic()
    for n in range(sent):
        asker.sock.sendto(query(spis, struct.pack("!I", n)), asker.peer)
        if n % 50 == 49:
            # No more at once than the gateway's socket holds.
            time.sleep(0.01)
    took = time.monotonic() - begun
    while select.select([asker.sock], [], [], 0.5)[0]:
        answers += Message(asker.sock.recv(4096)).exchange == SIR
    most = options.limit * (took + 2)
    expect(1 <= answers <= most, f"{answers} answers to {sent} queries in {took:.3f} s, with {options.limit} a second allowed")
    tell("flood", sent=sent, answers=answers)


def ask_about_living(asker, spis):
    """Section 3.2.2: ACK; whoever asks for half of the pair, or with its halves exchanged, gets no NACK."""
    for size in (0, 24):
        cookie = os.urandom(size)
        got = asker.until_answered(query(spis, cookie), "a query about a living IKE SA")
        want = answered_with(ACK, spis, cookie, INITIATOR)
        expect(got == want, f"the answer is {got.hex()}, not {want.hex()}")
        tell("ack", size=size)
    got = asker.until_answered(query((spis[1], spis[0]), b"", 0), "a query about an exchanged pair")
    expect(got == answered_with(ACK, (spis[1], spis[0]), b"", 0), f"an exchanged pair is answered with {got.hex()}")
    unknown = (os.urandom(8), os.urandom(8))
    got = asker.until_answered(query(unknown, b"c"), "a query about another pair")
    expect(got == answered_with(NACK, unknown, b"c", INITIATOR), f"another pair is answered with {got.hex()}")
    tell("living")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", choices=["x", "y"])
    parser.add_argument("--local", required=True)
    parser.add_argument("--remote", required=True)
    parser.add_argument("--interface", default="")
    parser.add_argument("--answer", default="nack", choices=["nack", "ack", "both", "wrong-cookie", "stranger"])
    parser.add_argument("--cookie", default="")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--spis", default="")
    parser.add_argument("--port", type=int, default=500)
    parser.add_argument("--limit", type=int, default=2)
    options = parser.parse_args()
    (play_x if options.role == "x" else play_y)(options)


if __name__ == "__main__":
    main()
