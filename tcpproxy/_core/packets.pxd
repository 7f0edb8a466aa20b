# The packets of a connection, as blocks of a capture file. Pure: no socket, no file, no clock, no memory but the caller's.
#
# The packets are made from the records of the tap, because a proxy sees no packets. A connection is one TCP stream from the
# client's address to upstream's, without the proxy. The meaning of the packets:
#   segment        one read of the proxy
#   ACK            the bytes were written to the receiver's socket. Bytes that were not are never acknowledged
#   SYN            the client was accepted; SYN-ACK: upstream was connected
#   FIN, RST       the end, or the reset, was passed on
# A pure ACK is written when two segments would be unacknowledged, when bytes waited in the proxy, and at a FIN. Otherwise the
# number is in the next segment of the other direction, as with the delayed ACK of TCP.
#
# The packets avoid everything that Wireshark's analysis reports as a fault: gaps, repeated ACKs, changing or full windows, equal
# sequence numbers of two connections, wrong checksums.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from tcpproxy._core.net cimport net_addr
from tcpproxy._core.tap cimport TapRecord

cdef enum:
    PACKETS_ROOM = 63488    # the most bytes for one record: TAP_READ, and 2 KiB for headers, comments and ACKs

cdef struct Packets:        # one capture
    int64_t wall_ns         # clock_ns plus this is the time of day
    uint64_t count          # packets written

# The state of a connection between two records, 192 bytes. The index of the arrays is the side that sends: CLIENT or UPSTREAM of
# loop.pxd. Sequence numbers count the SYN, the bytes and the FIN of a stream from 0, in 64 bits, so they do not wrap at 4 GiB.
cdef struct Flow:
    uint64_t id             # 0: the beginning of the connection is not known, and its records become no packets
    uint64_t opened_ns
    uint64_t sent[2]        # the next number
    uint64_t delivered[2]   # all below this was written to the other side's socket
    uint64_t acked[2]       # all below this is acknowledged in the file
    uint64_t read_ns[2]     # of the last segment
    uint64_t reset_ns[2]    # 0: no reset was passed on from here
    uint32_t first[2]       # the initial sequence number of the packets
    uint32_t sum            # the part of the checksum for the addresses, equal in both directions
    uint32_t interface      # number of the file's interface block; set by the caller
    uint16_t port[2]        # in host order
    uint8_t ip[2][16]       # IPv4 as IPv4-mapped IPv6
    uint8_t segments[2]     # segments and FINs that are not acknowledged in the file
    uint8_t finished[2]     # a FIN was written
    uint8_t v4              # both sides are IPv4; else both are written as IPv6
    uint8_t connected
    net_addr listener
    net_addr via            # the peer that has sent the client's address; length 0: none

# Appends the packets of a record to `out`, which has PACKETS_ROOM bytes. Returns their size, often 0. `flow` is zeroed, but for
# `interface`, before the first record of its connection, and can be forgotten after TAP_END. It may miss records: a connection
# that is captured from its middle has no SYN.
cdef size_t packets_append(Packets *packets, Flow *flow, const TapRecord *record, const void *body, uint8_t *out) noexcept nogil
