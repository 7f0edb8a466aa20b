# What faults do to one direction of a connection. Pure: no socket and no clock; the caller says what time it is, puts in what it
# has read, and takes out what is to be sent now.
#
#   read -> put -> [cut] -> [latency] -> line of chunks -> [bandwidth] -> [slicer] -> [stall] -> take -> send
#
# THE RULES
#
#   Order        Bytes leave in the order in which they came, none twice, none left out, never early. The end of file or the
#                failure of the source is the last entry of the line: it overtakes no byte, and latency delays it as well.
#   Positions    are those of the stream: a cut lets exactly the bytes before it leave, however they were read. Nothing is
#                discarded before a cut has acted, so a limit that is raised in time has no effect.
#   Bound        shaper_room says how much may be read. With latency the line has LINE_BYTES at most; with a rate besides, what
#                the rate lets pass in that time, and `small` more: else a slow link would have a queue of minutes. Without
#                latency `small`: the socket is the queue.
#   Change       shaping_adopt gives a connection the rules of another plan. A rule of the same key goes on where it was. What
#                the line holds is due at its arrival plus the new delay.
#   Acting       A rule acts on a connection when it first holds, cuts or discards something: `acted` of Shaping has a bit for
#                it, and Tally.fired is the number of connections. With `times` a rule that has acted so often has no effect on
#                others.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from tcpproxy._core.bucket cimport Limit
from tcpproxy._core.buffer cimport Buffer
from tcpproxy._core.plan cimport Plan, Rule, Tally
from tcpproxy._core.timers cimport Alarm

cdef enum:
    LINE_BYTES = 4194304    # that one direction holds at most. So latency allows LINE_BYTES per latency, and no more
    CHUNK_BYTES = 96        # what a chunk costs besides its bytes, for that bound

cdef enum:                  # what shaper_end is told
    SOURCE_EOF = 1
    SOURCE_FAILED

cdef enum:                  # what shaper_take returns
    TAKE_NOTHING = 0        # before shaper_due_ns
    TAKE_BYTES              # `out` has them
    TAKE_EOF                # the source's, behind the last byte
    TAKE_FAILED             # the same
    TAKE_CLOSE              # end the connection: an end of file for both peers
    TAKE_RESET              # end the connection: reset both peers
    TAKE_NO_MEMORY          # bytes could not be taken out

cdef struct Grip:           # a rule that has taken a direction of a connection
    const Rule *rule
    const Limit *limit
    Tally *tally
    uint64_t start          # position from which on it acts
    uint64_t start_ns
    uint64_t bucket
    uint64_t slice_end      # position
    uint64_t slice_ns       # the next slice is not due before
    uint32_t bit            # of Shaping.acted

cdef struct Chunk:          # what one read brought
    Chunk *next
    uint64_t arrival_ns
    Buffer buffer

cdef struct Shaper:         # one direction
    Shaping *shaping
    Grip *grips
    uint32_t count
    uint32_t direction      # 0: what the client sends
    Chunk *first
    Chunk *last
    uint64_t held           # bytes in the line
    uint64_t recorded       # for the caller: the tap has the bytes before this position already
    uint64_t chunks
    uint64_t bound
    uint64_t small          # the bound without latency
    uint64_t passed         # position in the stream of the next byte that is taken out
    uint64_t discarded
    uint64_t due_ns         # of the first entry, by its arrival and latency
    uint64_t left_ns        # when the last byte was taken out
    uint64_t heard_ns       # when the last byte was put in
    uint64_t ended_ns
    uint64_t over_ns        # when the connection ends, once a cut has acted
    uint8_t ended           # SOURCE_, until it was taken out
    uint8_t over            # END_: a cut has acted, and nothing leaves any more

cdef struct Shaping:        # what a relay has, if a plan takes it
    Plan *plan
    uint64_t id
    uint64_t client_high
    uint64_t client_low
    uint32_t acted          # rules of the plan
    uint32_t told           # those of `acted` that were reported
    uint32_t spent          # rules whose `times` were used up before
    Shaper halves[2]
    Alarm alarm

cdef void shaper_begin(Shaper *shaper, uint64_t passed, uint64_t now_ns) noexcept nogil     # so many bytes have passed before
cdef uint32_t shaper_room(Shaper *shaper, uint64_t now_ns) noexcept nogil   # bytes that may be read now
cdef int shaper_put(Shaper *shaper, const char *data, uint32_t size, uint64_t now_ns) noexcept nogil    # 0, or -1: no memory
cdef void shaper_end(Shaper *shaper, uint8_t how, uint64_t now_ns) noexcept nogil
# Up to `most` bytes, into the empty `out`; or the end of the source
cdef int shaper_take(Shaper *shaper, uint32_t most, Buffer *out, uint64_t now_ns) noexcept nogil
cdef int shaper_verdict(Shaper *shaper, uint64_t now_ns) noexcept nogil         # TAKE_CLOSE, TAKE_RESET or TAKE_NOTHING
# When to take again, or (`blocked`: the sink takes nothing) when to ask for the verdict; UINT64_MAX: not by time
cdef uint64_t shaper_due_ns(Shaper *shaper, bint blocked, uint64_t now_ns) noexcept nogil
cdef bint shaper_discards(Shaper *shaper, uint64_t now_ns) noexcept nogil   # what is read is not kept
# Of a rule that is about to hold, cut or discard something. False: it may not, others have used up its `times`
cdef bint shaper_act(Shaper *shaper, Grip *grip) noexcept nogil
cdef void shaper_aim(Shaper *shaper) noexcept nogil         # the first entry of the line, or its rules, are others: sets due_ns
cdef void shaper_clear(Shaper *shaper) noexcept nogil       # drops what is held


cdef inline bint shaper_holds(const Shaper *shaper) noexcept nogil:
    """Bytes or an end are still to come out."""
    return shaper.first != NULL or shaper.ended != 0


cdef inline bint shaper_waits(const Shaper *shaper) noexcept nogil:
    """The same, and they will come out some time: they are not discarded."""
    return shaper_holds(shaper) and not shaper.over and not shaper.discarded
