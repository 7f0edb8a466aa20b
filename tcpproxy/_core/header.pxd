# The PROXY protocol's header, read and written: no sockets here. Versions 1 (a line of text) and 2 (binary), as
# https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt has them.
#
# Reading is strict: who passes two readers a header that they understand differently can pretend to be somebody else. It
# looks at no byte behind the header, and needs all bytes from its first one on in one place.
from libc.stdint cimport uint8_t
from tcpproxy._core.net cimport net_addr

cdef enum:
    HEADER_MOST = 4096          # bytes that are read of a header at most; those with a certificate have one or two thousand
    HEADER_ROOM = 108           # for one that is written

cdef enum:                      # what header_read returns, if not the size of the header; texts in header_problem
    HEADER_PARTIAL = 0          # so far it is one; all these bytes belong to it
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
    HEADER_ENDED = -15          # not of header_read: the peer ended
    HEADER_LATE = -16           # or was too slow
    HEADER_PROBLEMS = 17

cdef struct HeaderAddresses:
    net_addr client             # no address: the connection is the peer's own (LOCAL, UNKNOWN, not TCP or UDP)
    net_addr destination        # that the client connected to

cdef int header_read(const uint8_t *data, int size, HeaderAddresses *said) noexcept nogil
cdef const char *header_problem(int code) noexcept nogil
# Writes a header of this version, and returns its size. Not both an IP address: the header says that nothing is known
cdef int header_write(int version, const net_addr *client, const net_addr *destination, uint8_t *to) noexcept nogil
