# One direction of a relay: bytes from `source` to `sink`. Both directions run the same code, half_pump. half.pyx has its
# contract.
#
#   open --EOF read--> draining --everything sent, FIN passed on--> shut
#   open or draining --source or sink failed--> broken
#
# WHAT THE FLAGS OF A SIDE MEAN
#
# A side is one of the two sockets. `eof_read` is about the bytes that it sends, `fin_sent` about those that it receives; `error`
# and `error_pending` are about the whole socket. In RELAY_RELAYING (closing.pyx has the later states):
#
#   eof_read  fin_sent  error_pending  error    meaning, and what the relay does
#   0         0         0              0        both directions are open
#   1         0         0              0        the side has ended its direction (half-close): its bytes are delivered,
#                                               then FIN is sent to the other side. It still receives
#   0         1         0              0        the other side has ended its direction. This side may send until no byte has
#                                               moved for --half-close-timeout
#   1         1         0              0        both its directions have ended. Once those of the other side have too, the
#                                               relay closes both sockets
#   0         any       1              0        the poller has announced an error. Bytes that came before it may be unread:
#                                               reads go on until recv reports the error, or until TIMER_LINGER fires
#                                               because no byte has left our kernel for 5 s
#   1         any       1              0        an RST after its FIN. No recv follows, so _after_turn in relay.pyx takes the
#                                               error from the socket, and the next row applies
#   any       any       any            not 0    the side has failed. Bytes that are queued for it are dropped. Bytes that it has
#                                               sent are still read and delivered. Then the other side is reset, or closed
#                                               with FIN if both its directions had ended
#   (both sides: error not 0)                   both are reset at once
#
# With --half-close-timeout 0 the first EOF makes both halves draining. `fin_sent` is then set on both sides, while one of them
# has no `eof_read`; the relay reads and discards the bytes of that one (lingering).
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from tcpproxy._core.buffer cimport Buffer
from tcpproxy._core.poller cimport Poller, Watch, poller_rearm
from tcpproxy._core.shaper cimport Shaper, shaper_holds
from tcpproxy._core.splice cimport Pipe, Pipes
from tcpproxy._core.tap cimport Tap

cdef enum:                      # Half.state
    HALF_OPEN = 0
    HALF_DRAINING               # the source has ended, or with a shaper failed; its last bytes may wait in buffer or pipe
    HALF_SHUT                   # the end was passed on
    HALF_BROKEN                 # ended by a failure or by the end of the relay, without an end of file passed on

cdef enum:                      # what half_pump returns, as bits
    PUMP_WAIT = 0               # nothing to do before the next event
    PUMP_MORE = 1               # call again after the other relays: the budget is used up, or recv gave nothing yet
    PUMP_MOVED = 2              # bytes were copied from the source or taken by the sink, or an end was passed on
    PUMP_STALLED = 4            # the tap has no room for a read: call again when it has
    PUMP_SHAPED = 8             # the half has a shaper: it may say that the relay ends, or when to call again

cdef enum:
    # A splice of less is small: it takes two calls and a pipe, where one copy of the scratch buffer would do. A choice, not a
    # measurement.
    SPLICE_WORTH_BYTES = 16384
    # The bytes that one half reads in a turn, so that a bulk stream starves nobody; beside interactive traffic half of it.
    # Measured: docs/decisions.md, "Budget of a turn".
    TURN_LEAST_BYTES = 262144

cdef enum:                      # Pump.zero_copy
    ZERO_COPY_OFF = 0
    ZERO_COPY_AUTO              # a half splices while its reads are large
    ZERO_COPY_ALWAYS            # from the first byte: for tests

cdef enum:                      # Half.mode
    MODE_COPY = 0
    MODE_SPLICE
    MODE_REFUSED                # the system refused to splice these sockets: copy until the end

cdef struct Side:               # one socket of a relay and its state
    Watch watch
    int32_t error               # errno of its failure; 0: none
    uint32_t probes_at_ack      # see net_unacked
    uint8_t ready               # READY_IN, READY_OUT: the next call may succeed
    uint8_t read_to_eagain      # an end or an urgent mark was announced: a short read no longer means "drained"
    uint8_t eof_read            # its EOF was read
    uint8_t error_pending       # an error was announced; unread bytes may come before it
    uint8_t fin_sent            # the other side's EOF was passed on to it
    uint8_t no_delay            # TCP_NODELAY is set. Set late: it costs a call, and Nagle does not delay the first send
    uint8_t pacing_off          # it has taken bulk, and net_pacing_off was called
    uint8_t is_unix             # a UNIX socket, which has nothing that only TCP has

cdef struct Half:
    Buffer buffer
    Pipe *pipe                  # holds bytes that come after those in the buffer; NULL: none
    Shaper *shaper              # applies faults; the bytes in its line come after those in the buffer. NULL: no faults
    uint64_t delivered          # bytes that were written to the sink's socket
    uint8_t state
    uint8_t mode
    uint8_t streak              # reads in a row whose sizes favour the other mode
    uint8_t ask_recv            # the next read is a recv: the last splice has probably emptied the source
    uint32_t left_kernel        # bytes that had left our kernel for the sink at the last check (modulo 2^32)

cdef struct Pump:               # what all halves of a worker share
    Poller *poller
    char *scratch               # every recv goes here first, so that an idle relay owns no buffer
    char *into                  # the same, or with a tap the memory of the ring where the last recv went
    const uint64_t *now_ns      # the time of the batch
    Tap *tap                    # records what passes; NULL: nothing does. With a tap no half splices
    uint32_t size               # bytes of the scratch buffer, and so the most that a half buffers
    uint32_t budget             # bytes that a half may read in one turn; its last read may exceed it
    uint32_t splice_size        # the most bytes of one splice
    uint8_t zero_copy
    Pipes pipes
    uint64_t spliced            # bytes delivered by splice
    uint64_t may_read           # bytes that a half with a shaper may read now: see metering.pxd

cdef inline uint64_t half_waiting(const Half *half) noexcept nogil:
    """Bytes that the half has read and could not deliver yet."""
    return half.buffer.end - half.buffer.start + (half.pipe.held if half.pipe != NULL else 0) \
        + (half.shaper.held if half.shaper != NULL else 0)


cdef inline bint half_holds(const Half *half) noexcept nogil:
    """The half has read bytes, or the end of a shaped source, and has not delivered them yet."""
    return half.buffer.memory != NULL or half.pipe != NULL or (half.shaper != NULL and shaper_holds(half.shaper))


cdef inline void half_not_ready(Side *side, uint32_t bit, Pump *pump) noexcept nogil:
    """Clears READY_IN after a read that has emptied the socket, or READY_OUT when it is full: an event sets it again."""
    side.ready &= ~bit
    poller_rearm(pump.poller, &side.watch, bit)


cdef int half_pump(Half *half, Side *source, Side *sink, Pump *pump) noexcept nogil
# Parts of half_pump, which shaped_pump uses, too
cdef int half_drain_buffer(Half *half, Side *source, Side *sink, Pump *pump) noexcept nogil    # PUMP_MOVED, or PUMP_WAIT
cdef void half_pass_on_end(Half *half, Side *source, Side *sink, Pump *pump) noexcept nogil
cdef void half_read_nothing(Half *half, Side *source, int64_t got, Pump *pump) noexcept nogil  # recv returned `got` <= 0
cdef void half_give_pipe(Half *half, Pump *pump) noexcept nogil
cdef void half_break(Half *half, Pump *pump) noexcept nogil    # drops what is queued; nothing more will be delivered
