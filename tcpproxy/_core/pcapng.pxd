# Blocks of a capture file in the format pcapng (draft-ietf-opsawg-pcapng). Pure: no file, no clock, no memory but the caller's.
#
# All packets are IP without a link layer (LINKTYPE_RAW), because libpcap cannot read a file with more than one link type or
# snapshot length.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from tcpproxy._core.net cimport net_addr

cdef enum:
    PCAPNG_TEXT = 255       # the most bytes of a string in a block; longer ones are cut
    PCAPNG_BLOCK = 1024     # the most bytes of a block, except PCAPNG_PACKET

cdef enum:                  # types of blocks
    PCAPNG_INTERFACE = 1
    PCAPNG_NAME = 4
    PCAPNG_STATISTICS = 5
    PCAPNG_PACKET = 6
    PCAPNG_SECTION = 0x0a0d0d0a

cdef enum:                  # options
    PCAPNG_COMMENT = 1      # in all blocks; the others by block
    PCAPNG_PACKET_FLAGS = 2

# Each writes one block to `out`, which has PCAPNG_BLOCK bytes, and returns its size. Text is UTF-8. A file begins with
# pcapng_start, and has one pcapng_interface for each number in Flow.interface before the first packet.
cdef size_t pcapng_start(uint8_t *out, const char *application, const char *system) noexcept nogil
cdef size_t pcapng_interface(uint8_t *out, const char *name, const char *description) noexcept nogil
cdef size_t pcapng_name(uint8_t *out, const net_addr *addr, const char *name) noexcept nogil   # a resolved name; 0: no IP address
cdef size_t pcapng_end(uint8_t *out, uint32_t interface, uint64_t since_ns, uint64_t until_ns, uint64_t count) noexcept nogil

# Parts of blocks. Each function returns the end of the bytes that it has written.
cdef uint8_t *pcapng_begin(uint8_t *out, uint32_t block) noexcept nogil
cdef uint8_t *pcapng_time(uint8_t *out, uint64_t time_ns) noexcept nogil
cdef uint8_t *pcapng_option(uint8_t *out, int code, const void *value, size_t size) noexcept nogil
cdef uint8_t *pcapng_text(uint8_t *out, int code, const char *text) noexcept nogil      # nothing, if it is empty
# Ends the options of a block and sets its length, in front and at the end. Returns the length.
cdef size_t pcapng_finish(uint8_t *block, uint8_t *out) noexcept nogil


cdef inline uint8_t *pcapng_put32(uint8_t *out, uint32_t value) noexcept nogil:
    memcpy(out, &value, 4)
    return out + 4


cdef inline uint8_t *pcapng_put16(uint8_t *out, uint16_t value) noexcept nogil:
    memcpy(out, &value, 2)
    return out + 2


cdef inline uint8_t *pcapng_pad(uint8_t *out, size_t size) noexcept nogil:
    # Writes zeros after `size` bytes, up to a multiple of 4.
    while size & 3:
        out[0] = 0
        out += 1
        size += 1
    return out
