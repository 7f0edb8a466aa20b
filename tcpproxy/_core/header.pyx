# The PROXY protocol's header: the model is in header.pxd.
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stdio cimport snprintf
from libc.string cimport memchr, memcmp, memcpy, memset
from tcpproxy._core.net cimport net_is_v4, net_pack, net_unpack

cdef extern from "net.h" nogil:
    int AF_INET, AF_INET6
    int inet_pton(int family, const char *text, void *ip)
    const char *inet_ntop(int family, const void *ip, char *text, size_t size)

cdef extern from * nogil:
    """
    static const unsigned char HEADER_SIGNATURE[12] = {13, 10, 13, 10, 0, 13, 10, 'Q', 'U', 'I', 'T', 10};
    /* CRC-32C (Castagnoli), of four bits. */
    static const unsigned int HEADER_CRC_STEPS[16] = {
        0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
        0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9, 0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75,
    };
    static const char *const HEADER_PROBLEM_TEXTS[] = {
        "", "neither version of the header begins so", "a line of version 1 without CRLF in 107 bytes",
        "a line of version 1 with a CR or LF that does not end it",
        "a line of version 1 of another protocol than TCP4, TCP6 or UNKNOWN",
        "a line of version 1 with fields that are missing, too many or not one space apart",
        "a line of version 1 with an address that is none of its protocol", "a line of version 1 with a port that is none",
        "another version than 1 or 2", "version 2 with another command than LOCAL or PROXY",
        "version 2 with an unknown family or transport", "version 2, shorter than its addresses",
        "version 2 with more than 4096 bytes",
        "version 2 with a field (TLV) that runs over the end", "version 2 with a wrong checksum",
        "it ended inside of the header", "the header was not complete in time",
    };
    """
    const uint8_t *HEADER_SIGNATURE
    const uint32_t *HEADER_CRC_STEPS
    const char **HEADER_PROBLEM_TEXTS

cdef enum:
    LINE_MOST = 107             # of version 1, with CRLF
    LINE_BEGIN = 6              # "PROXY "
    FIXED = 16                  # of version 2: signature, version and command, family, length
    COMMAND_PROXY = 1
    TLV_CRC32C = 3


cdef const char *header_problem(int code) noexcept nogil:
    return HEADER_PROBLEM_TEXTS[-code if 0 < -code < HEADER_PROBLEMS else 0]


cdef int header_read(const uint8_t *data, int size, HeaderAddresses *said) noexcept nogil:
    cdef int common
    said.client.length = said.destination.length = 0
    if size == 0:
        return HEADER_PARTIAL
    if data[0] == c"P":
        common = min(size, LINE_BEGIN)
        return _read_line(data, size, said) if memcmp(data, b"PROXY ", common) == 0 else HEADER_NO_SIGNATURE
    common = min(size, 12)
    return _read_binary(data, size, said) if memcmp(data, HEADER_SIGNATURE, common) == 0 else HEADER_NO_SIGNATURE


# --- version 1 ---

cdef int _read_line(const uint8_t *data, int size, HeaderAddresses *said) noexcept nogil:
    cdef int length = min(size, LINE_MOST), end
    cdef const uint8_t *lf = <const uint8_t *> memchr(data, c"\n", length)
    cdef const uint8_t *cr = <const uint8_t *> memchr(data, c"\r", length)
    if lf == NULL and (cr == NULL or cr == data + length - 1):
        return HEADER_PARTIAL if size < LINE_MOST else HEADER_NO_CRLF
    if lf == NULL or cr == NULL or lf != cr + 1:
        return HEADER_LINE_END
    end = <int> (cr - data)
    if end >= 13 and memcmp(data + LINE_BEGIN, b"UNKNOWN", 7) == 0 and (end == 13 or data[13] == c" "):
        return end + 2
    if end < 11 or memcmp(data + LINE_BEGIN, b"TCP", 3) != 0 or data[10] != c" " or data[9] != c"4" and data[9] != c"6":
        return HEADER_PROTOCOL
    return _read_fields(data, 11, end, AF_INET if data[9] == c"4" else AF_INET6, said)


cdef int _read_fields(const uint8_t *data, int at, int end, int family, HeaderAddresses *said) noexcept nogil:
    """Source, destination and their ports, one space between them. Returns the size of the line, or a problem."""
    cdef char fields[4][46]             # an IPv6 address that ends with an IPv4 one has 45 characters
    cdef uint8_t ips[2][16]
    cdef int ports[2]
    cdef int field = 0, length = 0, i
    for i in range(at, end + 1):
        if i < end and data[i] != c" ":
            if length == 45 or data[i] < c"!" or data[i] > c"~":
                return HEADER_ADDRESS if field < 2 else HEADER_PORT
            fields[field][length] = <char> data[i]
            length += 1
            continue
        if length == 0 or (i < end) != (field < 3):
            return HEADER_FIELDS
        fields[field][length] = 0
        field, length = field + 1, 0
    for i in range(2):
        if inet_pton(family, fields[i], ips[i]) != 1:
            return HEADER_ADDRESS
        ports[i] = _port(fields[2 + i])
        if ports[i] < 0:
            return HEADER_PORT
    net_pack(&said.client, ips[0], 4 if family == AF_INET else 16, ports[0], 0)
    net_pack(&said.destination, ips[1], 4 if family == AF_INET else 16, ports[1], 0)
    return end + 2


cdef int _port(const char *text) noexcept nogil:
    """Parses a number from 0 to 65535 without leading zeros. -1: it is invalid."""
    cdef int number = 0, i = 0
    while text[i]:
        if text[i] < c"0" or text[i] > c"9" or i == 5 or (i == 1 and number == 0):
            return -1
        number = 10 * number + text[i] - c"0"
        i += 1
    return number if number <= 65535 else -1


# --- version 2 ---

cdef int _addresses_size(uint8_t family) noexcept nogil:
    """Size of the addresses of a family and transport; -1: an unknown family or transport."""
    if family == 0:
        return 0
    if not 1 <= family & 15 <= 2:
        return -1
    if family >> 4 == 1:
        return 12
    if family >> 4 == 2:
        return 36
    return 216 if family >> 4 == 3 else -1


cdef int _read_binary(const uint8_t *data, int size, HeaderAddresses *said) noexcept nogil:
    cdef int length, addresses
    if size > 12 and data[12] >> 4 != 2:
        return HEADER_VERSION
    if size > 12 and data[12] & 15 > COMMAND_PROXY:
        return HEADER_COMMAND
    if size < FIXED:
        return HEADER_PARTIAL
    length = FIXED + (data[14] << 8 | data[15])
    if length > HEADER_MOST:
        return HEADER_LONG
    addresses = _addresses_size(data[13]) if data[12] & 15 == COMMAND_PROXY else 0    # LOCAL: its addresses are ignored
    if addresses < 0:
        return HEADER_FAMILY
    if length < FIXED + addresses:
        return HEADER_SHORT
    if size < length:
        return HEADER_PARTIAL
    return _read_addresses(data, length, addresses, said) if addresses else length


cdef int _read_addresses(const uint8_t *data, int length, int addresses, HeaderAddresses *said) noexcept nogil:
    """Reads addresses and TLVs of a PROXY command. Returns the size of the header, or a problem."""
    cdef int at = FIXED + addresses, end, ip = 4 if addresses == 12 else 16
    cdef const uint8_t *ports = data + FIXED + 2 * ip
    while at < length:
        end = at + 3 + (data[at + 1] << 8 | data[at + 2]) if at + 3 <= length else length + 1
        if end > length or (data[at] == TLV_CRC32C and end != at + 7):
            return HEADER_TLV
        if data[at] == TLV_CRC32C and not _is_crc(data, length, at + 3):
            return HEADER_CRC
        at = end
    if addresses != 216:        # the paths of UNIX sockets are of no use here
        net_pack(&said.client, data + FIXED, ip, ports[0] << 8 | ports[1], 0)
        net_pack(&said.destination, data + FIXED + ip, ip, ports[2] << 8 | ports[3], 0)
    return length


cdef bint _is_crc(const uint8_t *data, int length, int at) noexcept nogil:
    """Is the checksum at `at` right? It is computed over the header with zeros in place of the checksum."""
    cdef uint32_t crc = 0xffffffff, told
    cdef int i
    for i in range(length):
        crc ^= 0 if at <= i < at + 4 else data[i]
        crc = crc >> 4 ^ HEADER_CRC_STEPS[crc & 15]
        crc = crc >> 4 ^ HEADER_CRC_STEPS[crc & 15]
    told = <uint32_t> data[at] << 24 | <uint32_t> data[at + 1] << 16 | <uint32_t> data[at + 2] << 8 | data[at + 3]
    return ~crc == told


# --- writing ---

cdef int header_write(int version, const net_addr *client, const net_addr *destination, uint8_t *to) noexcept nogil:
    cdef uint8_t ips[32]
    cdef uint16_t ports[2]
    cdef bint known = net_unpack(client, ips, &ports[0]) and net_unpack(destination, ips + 16, &ports[1])
    cdef bint v4 = known and net_is_v4(ips) and net_is_v4(ips + 16)
    return _write_line(known, v4, ips, ports, <char *> to) if version == 1 else _write_binary(known, v4, ips, ports, to)


cdef int _write_line(bint known, bint v4, const uint8_t *ips, const uint16_t *ports, char *to) noexcept nogil:
    cdef char source[46]
    cdef char destination[46]
    cdef int family = AF_INET if v4 else AF_INET6, skip = 12 if v4 else 0, number = 4 if v4 else 6
    if not known:
        return snprintf(to, HEADER_ROOM, b"PROXY UNKNOWN\r\n")
    inet_ntop(family, ips + skip, source, sizeof(source))
    inet_ntop(family, ips + 16 + skip, destination, sizeof(destination))
    return snprintf(to, HEADER_ROOM, b"PROXY TCP%d %s %s %u %u\r\n", number, source, destination, ports[0], ports[1])


cdef int _write_binary(bint known, bint v4, const uint8_t *ips, const uint16_t *ports, uint8_t *to) noexcept nogil:
    """Without IP addresses it is LOCAL: receivers have bugs in the handling of the family UNIX."""
    cdef int ip = 4 if v4 else 16, skip = 12 if v4 else 0, length = 2 * ip + 4 if known else 0, i
    cdef uint8_t *after = to + FIXED + 2 * ip
    memcpy(to, HEADER_SIGNATURE, 12)
    memset(to + 12, 0, 4)
    to[12] = 0x20 | known
    to[15] = <uint8_t> length
    if known:
        to[13] = 0x11 if v4 else 0x21
        memcpy(to + FIXED, ips + skip, ip)
        memcpy(to + FIXED + ip, ips + 16 + skip, ip)
        for i in range(2):
            after[2 * i] = <uint8_t> (ports[i] >> 8)
            after[2 * i + 1] = <uint8_t> (ports[i] & 255)
    return FIXED + length
