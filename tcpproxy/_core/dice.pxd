# Dice: random numbers without a state. Header-only.
#
# A number depends only on the seed, the fault, the connection, the direction and the position in its stream. So it does not
# matter which worker asks, how often, in which order, or how TCP cut the bytes. Integers only: the numbers are the same on every
# platform. tests/unit/test_dice.py has golden vectors. A change that gives other numbers needs another DICE_VERSION, which is
# printed beside the seed.
from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef enum:
    DICE_VERSION = 1

cdef enum:                      # a direction is CLIENT or UPSTREAM of loop.pxd, the side that sends; or
    DICE_OF_CONNECTION = 2      # for a number that both directions share


cdef inline uint64_t dice_mix(uint64_t x) noexcept nogil:
    """The finalizer of splitmix64: a bijection in which every bit of `x` changes half of the bits."""
    x ^= x >> 30
    x *= <uint64_t> 0xBF58476D1CE4E5B9
    x ^= x >> 27
    x *= <uint64_t> 0x94D049BB133111EB
    return x ^ (x >> 31)


cdef inline uint64_t dice(uint64_t seed, uint64_t fault, uint64_t connection, uint32_t direction,
                          uint64_t offset) noexcept nogil:
    """A uniform number of 64 bits. `fault`: the hash of its name; `connection`: its id; `offset`: the position in the stream."""
    cdef uint64_t step = <uint64_t> 0x9E3779B97F4A7C15      # that of splitmix64; without it zeros would give 0
    cdef uint64_t x = dice_mix(seed + step)
    x = dice_mix((x ^ fault) + step)
    x = dice_mix((x ^ (connection * 4 + direction)) + step)
    return dice_mix((x ^ offset) + step)


cdef inline uint64_t dice_below(uint64_t number, uint64_t limit) noexcept nogil:
    """Scales a number of 64 bits to 0 ... limit - 1: the upper half of their product."""
    cdef uint64_t low = <uint32_t> number, high = number >> 32
    cdef uint64_t limit_low = <uint32_t> limit, limit_high = limit >> 32
    cdef uint64_t middle = high * limit_low + (low * limit_low >> 32)
    return high * limit_high + (middle >> 32) + (low * limit_high + <uint32_t> middle >> 32)


cdef inline int64_t dice_uniform(uint64_t number, uint64_t most) noexcept nogil:
    """Uniform, from -most to most. `number`: from `dice`; `most` < 2^62."""
    return <int64_t> dice_below(number, 2 * most + 1) - <int64_t> most


cdef inline int64_t dice_normal(uint64_t number, uint64_t sigma) noexcept nogil:
    """Normally distributed around 0: the sum of eight uniform numbers, so never beyond 4.9 sigma. `sigma` < 2^60."""
    cdef uint64_t more = dice_mix(number)
    cdef int64_t total = -4 * 65535     # their mean
    cdef int i
    for i in range(4):
        total += <int64_t> (number >> 16 * i & 0xFFFF) + <int64_t> (more >> 16 * i & 0xFFFF)
    # Divided by their standard deviation, 65536 * sqrt(8 / 12). In two parts: the product has more than 64 bits.
    return <int64_t> (sigma // 53510) * total + <int64_t> (sigma % 53510) * total // 53510
