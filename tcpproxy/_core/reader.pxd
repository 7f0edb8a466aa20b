# The thread that reads the taps of all workers of a proxy, as long as they run. It gives their records to the recordings, to the
# file of a capture and, for a dump, to the log thread. It holds no GIL and never waits for Python. So a program that holds the
# GIL, or stands still, does not delay the traffic that it records. The exception is a rotation of files: Python opens each next
# file.
from libc.stdint cimport uint32_t, uint64_t
from tcpproxy._core.loop cimport WORKERS, Loop
from tcpproxy._core.net cimport net_socket
from tcpproxy._core.packets cimport Flow
from tcpproxy._core.pieces cimport Missing, Pieces
from tcpproxy._core.recordings cimport Recording, Recordings
from tcpproxy._core.savefile cimport SaveFile

cdef enum:
    READER_BUCKETS = 4096       # of the table of connections

cdef struct Seen:               # a live connection
    Seen *next
    uint64_t id
    Recording *recording        # NULL: none
    Flow flow                   # of the capture
    Missing *missing            # of pieces.pxd

cdef struct Reader:
    Loop *loops[WORKERS]
    int count
    bint capturing
    bint abandoned              # in a forked child, where nothing of it is freed
    bint told                   # `slow` has been set
    net_socket bell             # a byte wakes the reader
    net_socket bell_writer
    uint64_t live               # connections in `seen`
    uint64_t lost               # Tap.lost of all taps, as far as SaveFile.left_out includes it
    Seen *seen[READER_BUCKETS]
    Recordings store
    SaveFile file
    Pieces pieces
    # shared with other threads
    uint64_t running            # 1 until the reader has ended, also before its thread begins
    uint64_t finishing          # no worker runs any more
    uint64_t passes             # grows when the reader has taken records
    uint64_t hurry              # number of threads that wait for records
    uint64_t slow               # the capture delays the traffic, and the log thread is to report it

cdef enum:                      # why reader_run returns
    READER_ENDED = 0
    READER_FULL                 # the file of the capture has the size at which another one begins
    READER_FAILED               # a write to it has failed

# 0 or -errno; in both cases reader_free is needed. `record`: bytes to keep of each direction of a connection, 0: none. `show`:
# bytes of each read that become pieces, 0: none.
cdef int reader_init(Reader *reader, uint64_t record, bint capture, uint32_t show) noexcept nogil
cdef void reader_close(Reader *reader) noexcept nogil       # its descriptors
cdef void reader_free(Reader *reader) noexcept nogil
cdef void reader_add(Reader *reader, Loop *loop) noexcept nogil     # adds a worker's tap. To be called before both run

# Runs until reader_finish was called and everything is taken. READER_FULL and READER_FAILED: the caller handles the file, and
# calls it again.
cdef int reader_run(Reader *reader) noexcept nogil
# The following are for other threads.
cdef void reader_finish(Reader *reader) noexcept nogil
cdef void reader_wake(Reader *reader) noexcept nogil
cdef void reader_mark(Reader *reader, uint64_t *marks) noexcept nogil      # sets how far the taps are written; wakes the reader
# Returns when the reader has taken everything up to the marks. False: it has not by that time of clock_ns.
cdef bint reader_await(Reader *reader, const uint64_t *marks, uint64_t until_ns) noexcept nogil
# Waits until records were taken since `passes` was `seen`, or until a time of clock_ns. Returns `passes`.
cdef uint64_t reader_wait_change(Reader *reader, uint64_t seen, uint64_t until_ns) noexcept nogil
