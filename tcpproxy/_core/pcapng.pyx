# Blocks of pcapng: the model is in pcapng.pxd.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, strlen
from tcpproxy._core.net cimport net_addr, net_is_v4, net_unpack

cdef enum:
    BYTE_ORDER = 0x1a2b3c4d     # in the order of this machine: Wireshark reads no other from a pipe
    LINKTYPE_RAW = 101
    SNAPLEN = 262144

    OPT_END = 0
    SHB_OS = 3
    SHB_USERAPPL = 4
    IF_NAME = 2
    IF_DESCRIPTION = 3
    IF_TSRESOL = 9
    NRB_END = 0
    NRB_IPV4 = 1
    NRB_IPV6 = 2
    ISB_STARTTIME = 2
    ISB_ENDTIME = 3
    ISB_IFRECV = 4
    ISB_IFDROP = 5

cdef const char *ABOUT = (
    b"Made by a proxy from what it relayed: a segment is one read, an ACK says that the receiver's kernel has taken the bytes, "
    b"the addresses are those of the two peers."
)


cdef uint8_t *pcapng_option(uint8_t *out, int code, const void *value, size_t size) noexcept nogil:
    out = pcapng_put16(pcapng_put16(out, code), size)
    memcpy(out, value, size)
    return pcapng_pad(out + size, size)


cdef uint8_t *pcapng_text(uint8_t *out, int code, const char *text) noexcept nogil:
    # Cut, if need be, before a character and not within one: the strings are UTF-8.
    cdef size_t size = strlen(text)
    if size > PCAPNG_TEXT:
        size = PCAPNG_TEXT
        while size and text[size] & 0xc0 == 0x80:
            size -= 1
    return pcapng_option(out, code, text, size) if size else out


cdef uint8_t *pcapng_time(uint8_t *out, uint64_t time_ns) noexcept nogil:
    return pcapng_put32(pcapng_put32(out, time_ns >> 32), <uint32_t> time_ns)


cdef uint8_t *pcapng_begin(uint8_t *out, uint32_t block) noexcept nogil:
    return pcapng_put32(pcapng_put32(out, block), 0)


cdef size_t pcapng_finish(uint8_t *block, uint8_t *out) noexcept nogil:
    out = pcapng_put32(out, OPT_END)
    cdef uint32_t length = out - block + 4
    pcapng_put32(block + 4, length)
    pcapng_put32(out, length)
    return length


cdef size_t pcapng_start(uint8_t *out, const char *application, const char *system) noexcept nogil:
    cdef int64_t unknown = -1               # length of the section
    cdef uint8_t *to = pcapng_put32(pcapng_begin(out, PCAPNG_SECTION), BYTE_ORDER)
    to = pcapng_put16(pcapng_put16(to, 1), 0)           # version 1.0
    memcpy(to, &unknown, 8)
    to = pcapng_text(to + 8, PCAPNG_COMMENT, ABOUT)
    to = pcapng_text(to, SHB_OS, system)
    return pcapng_finish(out, pcapng_text(to, SHB_USERAPPL, application))


cdef size_t pcapng_interface(uint8_t *out, const char *name, const char *description) noexcept nogil:
    cdef uint8_t nanoseconds = 9
    cdef uint8_t *to = pcapng_put16(pcapng_put16(pcapng_begin(out, PCAPNG_INTERFACE), LINKTYPE_RAW), 0)
    to = pcapng_text(pcapng_put32(to, SNAPLEN), IF_NAME, name)
    to = pcapng_text(to, IF_DESCRIPTION, description)
    return pcapng_finish(out, pcapng_option(to, IF_TSRESOL, &nanoseconds, 1))


cdef size_t pcapng_name(uint8_t *out, const net_addr *addr, const char *name) noexcept nogil:
    cdef uint8_t value[16 + PCAPNG_TEXT + 1]
    cdef uint16_t port
    cdef size_t size = strlen(name)
    if not net_unpack(addr, value, &port) or not size or size > PCAPNG_TEXT:
        return 0
    cdef int skip = 12 if net_is_v4(value) else 0
    memcpy(value + 16, name, size + 1)
    cdef uint8_t *to = pcapng_begin(out, PCAPNG_NAME)
    to = pcapng_option(to, NRB_IPV4 if skip else NRB_IPV6, value + skip, 16 - skip + size + 1)
    return pcapng_finish(out, pcapng_put32(to, NRB_END))


cdef size_t pcapng_end(uint8_t *out, uint32_t interface, uint64_t since_ns, uint64_t until_ns, uint64_t count) noexcept nogil:
    cdef uint8_t value[8]
    cdef uint64_t dropped = 0               # the tap leaves nothing out
    cdef uint8_t *to = pcapng_time(pcapng_put32(pcapng_begin(out, PCAPNG_STATISTICS), interface), until_ns)
    pcapng_time(value, since_ns)
    to = pcapng_option(to, ISB_STARTTIME, value, 8)
    pcapng_time(value, until_ns)
    to = pcapng_option(to, ISB_ENDTIME, value, 8)
    to = pcapng_option(to, ISB_IFRECV, &count, 8)
    return pcapng_finish(out, pcapng_option(to, ISB_IFDROP, &dropped, 8))
