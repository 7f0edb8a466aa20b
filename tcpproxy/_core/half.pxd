# One direction of a relay: bytes from `source` to `sink`. The pump is written once and called for both halves.
#
#   open --EOF read--> draining --buffer empty, FIN passed on--> shut
#   open or draining --source or sink failed--> broken
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from tcpproxy._core.buffer cimport Buffer
from tcpproxy._core.poller cimport Poller, Watch
from tcpproxy._core.splice cimport Pipe, Pipes

cdef enum:                      # Half.state
    HALF_OPEN = 0
    HALF_DRAINING               # the source has ended; its last bytes wait in the buffer
    HALF_SHUT                   # the end was passed on
    HALF_BROKEN                 # ended without an end of file: the sink has to hear of it by a reset

cdef enum:                      # what half_pump returns, as bits
    PUMP_WAIT = 0               # nothing to do before the next event
    PUMP_MORE = 1               # another turn, please: the budget is used up, or bytes could not be had yet
    PUMP_MOVED = 2              # bytes reached the sink, or an end was passed on

cdef enum:                      # Pump.zero_copy
    ZERO_COPY_OFF = 0
    ZERO_COPY_AUTO              # a half splices while its reads are large
    ZERO_COPY_ALWAYS            # from the first byte: for tests

cdef enum:                      # Half.mode
    MODE_COPY = 0
    MODE_SPLICE
    MODE_REFUSED                # the system would not splice these sockets: copy for good

cdef struct Side:               # one socket of a relay and what is known of it
    Watch watch
    int32_t error               # errno that ended it; 0: alive
    uint32_t left_kernel             # bytes for it that had left our kernel at the relay's last look (modulo 2^32)
    uint8_t ready               # READY_IN, READY_OUT: the next call may succeed
    uint8_t read_to_eagain              # an end or an urgent mark was announced: a short read no longer means "drained"
    uint8_t eof_read              # its EOF was read
    uint8_t error_pending             # an error was announced for it, perhaps behind bytes still unread
    uint8_t fin_sent               # the other side's EOF was passed on to it
    uint8_t no_delay            # TCP_NODELAY is set; it costs a system call, and Nagle holds back no first send
    uint8_t pacing_off             # it has taken bulk: net_pacing_off was called

cdef struct Half:
    Buffer buffer
    Pipe *pipe                  # bytes behind those in the buffer; NULL: none
    uint64_t delivered          # bytes that the sink's kernel took
    uint8_t state
    uint8_t mode
    uint8_t streak              # reads in a row that speak for bulk, or against it
    uint8_t ask_recv            # the last splice has probably emptied the source: ask with a recv

cdef struct Pump:               # what all halves of a worker share
    Poller *poller
    char *scratch               # every read goes here first, so that an idle relay owns no buffer
    uint32_t size               # of the scratch, and so the most that a half ever buffers
    uint32_t budget             # bytes a half may read in one turn; the last of its reads may go beyond
    uint32_t splice_size              # bytes of one splice
    uint8_t zero_copy
    Pipes pipes
    uint64_t spliced            # bytes that no copy of ours has touched

cdef int half_pump(Half *half, Side *source, Side *sink, Pump *pump) noexcept nogil
cdef void half_break(Half *half, Pump *pump) noexcept nogil    # no further byte of it will be delivered
