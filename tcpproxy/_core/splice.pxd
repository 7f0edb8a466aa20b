# Bytes from socket to socket inside the kernel: splice(2) through a pipe. Where that does not exist (splice_none.pyx), no
# pipe is ever handed out, and the pump copies.
#
# A pipe is taken for a read, and goes back to the worker's pool as soon as it is empty; while its sink is full it stays
# with its half. It is filled only when it is empty: "would block" then says something about the socket alone, and not
# that the pipe is full. How full a pipe is cannot be asked: small segments fill its slots long before its bytes.
from libc.stdint cimport int64_t, uint32_t
from tcpproxy._core.net cimport net_socket

cdef enum:
    PIPES = 32              # of one worker at a time: two descriptors each, and up to PIPE_SIZE of kernel memory
    PIPE_SIZE = 1048576     # bytes, also the most of one splice; see bench/README.md

cdef struct Pipe:
    int reader, writer
    uint32_t held           # bytes in it

cdef struct Pipes:          # those of one worker
    Pipe *idle[PIPES]
    int idle_count
    int count               # idle or with a half

cdef bint splice_here() noexcept nogil                                  # compiled in? The system may still refuse it
cdef Pipe *pipe_take(Pipes *pipes) noexcept nogil                      # NULL: none to be had, copy instead
cdef void pipe_give(Pipes *pipes, Pipe *pipe) noexcept nogil           # kept or closed; always closed with bytes in it
cdef void pipes_free(Pipes *pipes) noexcept nogil                      # the idle ones
# Fills an empty pipe with `most` bytes at the most: bytes, 0: perhaps the end, or -errno
cdef int64_t pipe_fill(Pipe *pipe, net_socket source, uint32_t most) noexcept nogil
cdef int64_t pipe_drain(Pipe *pipe, net_socket sink) noexcept nogil    # bytes that the sink took, or -errno
cdef int64_t pipe_read(Pipe *pipe, char *to, uint32_t size) noexcept nogil     # out of the pipe by copying: bytes or -errno
cdef bint splice_refused(int64_t rc) noexcept nogil                    # not here, not these sockets; nothing was consumed
