# Bytes from socket to socket inside the kernel: splice(2) through a pipe. On systems without splice (splice_none.pyx)
# pipe_take always returns NULL, and the pump copies.
#
# A half takes a pipe for a read and returns it to the worker's pool as soon as it is empty; while its sink is full, the half
# keeps the pipe. A pipe is filled only when it is empty, so that "would block" is about the socket and never means "the pipe
# is full". There is no call that tells how full a pipe is: small segments use up its slots long before its bytes.
from libc.stdint cimport int64_t, uint32_t
from tcpproxy._core.net cimport net_socket

cdef enum:
    # Pipes of one worker at most: each costs two descriptors and up to PIPE_BYTES of kernel memory. Halves whose sink is full
    # hold them; further ones copy. A choice, not a measurement.
    PIPES_PER_WORKER = 32
    PIPE_BYTES = 1048576        # size of a pipe, and so of one splice: the cheapest for bulk alone (docs/decisions.md)

cdef struct Pipe:
    int reader, writer
    uint32_t held           # bytes in it

cdef struct Pipes:          # the pipes of one worker
    Pipe *idle[PIPES_PER_WORKER]
    int idle_count
    int count               # idle ones and those that halves have

cdef bint splice_here() noexcept nogil                                 # compiled in? The system may still refuse it
cdef Pipe *pipe_take(Pipes *pipes) noexcept nogil                      # NULL: none available, copy instead
cdef void pipe_give(Pipes *pipes, Pipe *pipe) noexcept nogil           # pools or closes it; closes it if it has bytes
cdef void pipes_free(Pipes *pipes) noexcept nogil                      # closes the idle ones
# Moves up to `most` bytes from the socket into an empty pipe: their number; 0: perhaps the end of file; or -errno
cdef int64_t pipe_fill(Pipe *pipe, net_socket source, uint32_t most) noexcept nogil
cdef int64_t pipe_drain(Pipe *pipe, net_socket sink) noexcept nogil    # number of bytes the sink took, or -errno
cdef int64_t pipe_read(Pipe *pipe, char *to, uint32_t size) noexcept nogil     # copies out of the pipe: bytes, or -errno
cdef bint splice_refused(int64_t rc) noexcept nogil                    # not supported, or not for these sockets
