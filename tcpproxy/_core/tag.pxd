# The tag of an event, by which the poller names one of our sockets. Header-only.
#
#   relay:     generation (32 bits) | index in the table (28 bits) | socket (4 bits)
#   listener:  number (60 bits) | 15
#   wake-up:   tag_wake(), all ones, with ready bits 0 (poller.pxd): test the bits first
#
# The generation distinguishes a relay from an earlier one in the same slot.
from libc.stdint cimport uint32_t, uint64_t

cdef enum:                  # the low four bits
    TAG_CLIENT = 0          # 1 to 14: connection attempt (value - 1); the winner's value stays the tag of upstream's socket
    TAG_LISTENER = 15


cdef inline uint64_t tag_relay(uint32_t index, uint32_t generation) noexcept nogil:
    return <uint64_t> generation << 32 | <uint64_t> index << 4 | TAG_CLIENT


cdef inline uint64_t tag_attempt(uint64_t relay, uint32_t number) noexcept nogil:
    return relay + number + 1


cdef inline uint64_t tag_listener(uint32_t number) noexcept nogil:
    return <uint64_t> number << 4 | TAG_LISTENER


cdef inline uint64_t tag_wake() noexcept nogil:
    return <uint64_t> -1


cdef inline uint32_t tag_socket(uint64_t tag) noexcept nogil:
    return <uint32_t> tag & 0xf


cdef inline uint32_t tag_listener_number(uint64_t tag) noexcept nogil:
    return <uint32_t> (tag >> 4)


cdef inline uint32_t tag_index(uint64_t tag) noexcept nogil:
    return <uint32_t> (tag >> 4) & 0x0fffffff


cdef inline uint32_t tag_generation(uint64_t tag) noexcept nogil:
    return <uint32_t> (tag >> 32)
