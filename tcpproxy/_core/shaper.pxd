# A shaper: what faults do to the bytes of one direction of a connection. It uses no socket and no clock. The caller passes the
# time, puts in the bytes that it has read, and takes out the bytes that are due.
#
#   read -> put -> [cut] -> [latency] -> line of chunks -> [bandwidth] -> [slicer] -> [stall] -> take -> send
#
# THE RULES
#
#   Order        Bytes leave in the order in which they arrived, each exactly once and never early. The end of file or the
#                failure of the source is the last entry of the queue (`line`): it overtakes no byte, and latency delays it, too.
#   Positions    are offsets in the stream: exactly the bytes before a cut leave, whatever the sizes of reads. Nothing is
#                discarded before a cut has acted, so a limit that is raised before it is reached has no effect.
#   Bound        shaper_room returns how much may be read. With latency the line holds at most LINE_BYTES. With latency and a
#                rate it holds the bytes that the rate lets pass during the latency, plus `small`: otherwise a slow link would
#                have a queue of minutes. Without latency it holds at most `small`, and the socket is the queue.
#   Change       shaping_adopt gives a connection the rules of another plan. A rule with the same key keeps its state. Bytes in
#                the line are then due at their arrival plus the new delay.
#   Acting       A rule acts on a connection when it first holds, cuts or discards something. Its bit is then set in
#                Shaping.acted, and Tally.fired counts the connection. A rule that has acted on `times` connections has no
#                effect on others.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from tcpproxy._core.bucket cimport Limit
from tcpproxy._core.buffer cimport Buffer
from tcpproxy._core.plan cimport Plan, Rule, Tally
from tcpproxy._core.timers cimport Alarm

cdef enum:
    LINE_BYTES = 4194304    # the most that a line holds. So a latency limits the rate to LINE_BYTES per latency
    CHUNK_BYTES = 96        # the overhead of a chunk, which counts toward LINE_BYTES

cdef enum:                  # how a source ends, for shaper_end
    SOURCE_EOF = 1
    SOURCE_FAILED

cdef struct Grip:           # the state of a rule in a direction of a connection that the rule has taken
    const Rule *rule
    const Limit *limit
    Tally *tally
    uint64_t start          # the position at which it begins
    uint64_t start_ns       # the time at which it begins
    uint64_t bucket         # the token bucket of a rate that is not shared: bucket.pxd
    uint64_t slice_end      # the position at which the slice ends
    uint64_t slice_ns       # the next slice is not due before this time
    uint32_t bit            # the bit of the rule in Shaping.acted

cdef struct Chunk:          # the bytes of one read
    Chunk *next
    uint64_t arrival_ns
    Buffer buffer

cdef struct Shaper:         # one direction
    Shaping *shaping
    Grip *grips
    uint32_t count
    uint32_t direction      # CLIENT or UPSTREAM of loop.pxd: the side that sends
    Chunk *first
    Chunk *last
    uint64_t held           # bytes in the line
    uint64_t recorded       # for the caller: the tap already has the bytes before this position
    uint64_t chunks         # in the line
    uint64_t bound          # the most bytes in the line
    uint64_t small          # the bound without latency
    uint64_t passed         # position in the stream of the next byte that is taken out
    uint64_t discarded      # bytes
    uint64_t due_ns         # when the first entry is due, by its arrival and latency
    uint64_t left_ns        # when the last byte was taken out
    uint64_t heard_ns       # when the last byte was put in
    uint64_t ended_ns       # when the source ended
    uint64_t over_ns        # when the connection ends, after a cut has acted
    uint8_t ended           # SOURCE_, until it is taken out
    uint8_t over            # END_: a cut has acted, and no byte leaves any more

cdef struct Shaping:        # the shapers of a relay that a plan takes
    Plan *plan
    uint64_t id             # of the connection
    uint64_t client_high    # the address of the client, as an IPv6 one
    uint64_t client_low
    uint32_t acted          # bits of the rules that have acted on the connection: their indexes in the plan
    uint32_t told           # bits of `acted` that were reported
    uint32_t spent          # rules without effect here, because others have used up their `times`
    Shaper halves[2]
    Alarm alarm

cdef void shaper_begin(Shaper *shaper, uint64_t passed, uint64_t now_ns) noexcept nogil     # `passed`: bytes before it began
cdef uint32_t shaper_room(Shaper *shaper, uint64_t now_ns) noexcept nogil   # bytes that may be read now
cdef int shaper_put(Shaper *shaper, const char *data, uint32_t size, uint64_t now_ns) noexcept nogil    # 0, or -1: no memory
cdef void shaper_end(Shaper *shaper, uint8_t how, uint64_t now_ns) noexcept nogil
cdef bint shaper_discards(Shaper *shaper, uint64_t now_ns) noexcept nogil   # bytes that are read now are discarded
cdef bint shaper_discard(Shaper *shaper, uint64_t now_ns) noexcept nogil    # the same, when something is discarded: the rules act
# To be called when a rule is about to hold, cut or discard something. False: it must not, because `times` is used up
cdef bint shaper_act(Shaper *shaper, Grip *grip) noexcept nogil
cdef void shaper_aim(Shaper *shaper) noexcept nogil         # sets due_ns, after the first entry of the line or the rules changed
cdef void shaper_clear(Shaper *shaper) noexcept nogil       # empties the line


cdef inline bint shaper_holds(const Shaper *shaper) noexcept nogil:
    """The line holds bytes or the end of the source."""
    return shaper.first != NULL or shaper.ended != 0


cdef inline bint shaper_waits(const Shaper *shaper) noexcept nogil:
    """As shaper_holds, and they will leave at some time, because they are not discarded."""
    return shaper_holds(shaper) and not shaper.over and not shaper.discarded
