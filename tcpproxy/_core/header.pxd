# Parses and writes headers of the PROXY protocol, without sockets. Versions 1 (a line of text) and 2 (binary), as specified in
# https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt.
#
# Parsing is strict: if two parsers understand a header differently, a client can forge its address. The parser does not look at
# bytes after the header. It needs the whole header from its first byte on in one piece of memory.
from libc.stdint cimport uint8_t
from tcpproxy._core.net cimport net_addr

cdef enum:
    HEADER_MOST = 4096          # the most bytes of a header that is read; one with a certificate has one or two thousand
    HEADER_ROOM = 108           # the most bytes of a header that is written

cdef enum:                      # results of header_read other than the size of the header; header_problem has their texts
    HEADER_PARTIAL = 0          # a valid beginning of a header; all the bytes belong to it
    HEADER_NO_SIGNATURE = -1
    HEADER_NO_CRLF = -2         # version 1
    HEADER_LINE_END = -3
    HEADER_PROTOCOL = -4
    HEADER_FIELDS = -5
    HEADER_ADDRESS = -6
    HEADER_PORT = -7
    HEADER_VERSION = -8         # version 2
    HEADER_COMMAND = -9
    HEADER_FAMILY = -10
    HEADER_SHORT = -11
    HEADER_LONG = -12
    HEADER_TLV = -13
    HEADER_CRC = -14
    HEADER_ENDED = -15          # not returned by header_read: end of file inside the header
    HEADER_LATE = -16           # not returned by header_read: the header was not complete in time
    HEADER_PROBLEMS = 17

cdef struct HeaderAddresses:
    net_addr client             # length 0: the connection is the peer's own (LOCAL, UNKNOWN, not TCP or UDP over IP)
    net_addr destination        # the address that the client connected to

cdef int header_read(const uint8_t *data, int size, HeaderAddresses *said) noexcept nogil
cdef const char *header_problem(int code) noexcept nogil
# Writes a header of this version, and returns its size. Unless both addresses are IP, the header is UNKNOWN or LOCAL
cdef int header_write(int version, const net_addr *client, const net_addr *destination, uint8_t *to) noexcept nogil
