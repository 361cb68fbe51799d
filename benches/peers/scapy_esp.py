"""ESP by scapy's layer, a peer that shares no code with Spindle: it opens what it is given, and makes what it is asked for.

Orders come on standard input, one on each line, and each is answered by one line. Octets are in hexadecimal.
  sa SUITE KEYMAT SPI esn|noesn SOURCE DESTINATION PORT tunnel|transport    an SA; in UDP unless PORT is 0   -> ok
  open HIGH PACKET     an outer packet; the high-order half of its sequence number (RFC 4303 section 2.2.1) -> inner packet, or "refused"
  make SEQUENCE INNER  puts an inner packet into ESP, in transport mode what is behind its headers          -> outer packet
"""

import sys

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import ESP, IPSecIntegrityError, SecurityAssociation

SUITES = {
    "aes128gcm16": "AES-GCM",
    "aes192gcm16": "AES-GCM",
    "aes256gcm16": "AES-GCM",
    "chacha20poly1305": "CHACHA20-POLY1305",
}


def ip(octets):
    return IPv6(octets) if octets[0] >> 4 == 6 else IP(octets)


def security_association(suite, keymat, spi, esn, source, destination, port, mode):
    header = IPv6 if ":" in source else IP
    port = int(port)
    return SecurityAssociation(
        ESP,
        spi=int(spi, 16),
        crypt_algo=SUITES[suite],
        crypt_key=bytes.fromhex(keymat),
        tunnel_header=header(src=source, dst=destination) if mode == "tunnel" else None,
        nat_t_header=UDP(sport=port, dport=port) if port else None,
        esn_en=esn == "esn",
    )


def answer(state, order, *arguments):
    if order == "sa":
        state["sa"] = security_association(*arguments)
        return "ok"
    sa = state["sa"]
    if order == "open":
        high, packet = arguments
        # It takes zero for "not given" and its own instead, so its own is set.
        sa.esn = int(high)
        try:
            return bytes(sa.decrypt(ip(bytes.fromhex(packet)))).hex()
        except IPSecIntegrityError:
            return "refused"
    if order == "make":
        sequence, inner = int(arguments[0]), ip(bytes.fromhex(arguments[1]))
        sa.esn, sa.seq_num = sequence >> 32, sequence & 0xFFFFFFFF
        return bytes(sa.encrypt(inner, seq_num=sa.seq_num)).hex()
    raise ValueError(order)


state = {}
for line in sys.stdin:
    print(answer(state, *line.split()), flush=True)
