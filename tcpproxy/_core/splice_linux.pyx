# splice(2): the model is in splice.pxd.
#
# Known traps. SPLICE_F_MORE is never set: on an open-ended stream it holds the last bytes back for 200 ms. splice has no
# MSG_NOSIGNAL: a reset sink raises SIGPIPE, so worker threads block that signal. splice stops at an urgent mark and then
# returns "would block" or 0 although bytes are unread: the caller confirms both with a recv.
from libc.errno cimport errno, EINTR, EINVAL, ENOSYS, EPERM, EOPNOTSUPP
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free

cdef extern from "net.h" nogil:
    """
    #include <fcntl.h>
    """
    int O_NONBLOCK, O_CLOEXEC, F_SETPIPE_SZ, F_GETPIPE_SZ
    unsigned int SPLICE_F_MOVE, SPLICE_F_NONBLOCK
    int pipe2(int *ends, int flags)
    int fcntl(int fd, int command, int value)
    int close(int fd)
    Py_ssize_t read(int fd, void *to, size_t size)
    Py_ssize_t splice(int source, void *no_offset, int sink, void *no_offset_either, size_t size, unsigned int flags)

cdef enum:
    # Pipes kept for later reads: a worker's turns need one at a time, full sinks hold the others. A choice.
    IDLE_PIPES = 4
    SMALLEST_PIPE_BYTES = 65536     # a smaller pipe is slower than copying; an unprivileged user beyond its quota gets 8 KiB


cdef bint splice_here() noexcept nogil:
    return True


cdef Pipe *pipe_take(Pipes *pipes) noexcept nogil:
    cdef Pipe *pipe
    cdef int ends[2]
    if pipes.idle_count:
        pipes.idle_count -= 1
        return pipes.idle[pipes.idle_count]
    if pipes.count == PIPES_PER_WORKER or pipe2(ends, O_NONBLOCK | O_CLOEXEC) < 0:
        return NULL
    fcntl(ends[1], F_SETPIPE_SZ, PIPE_BYTES)
    pipe = <Pipe *> calloc(1, sizeof(Pipe))
    if pipe == NULL or fcntl(ends[1], F_GETPIPE_SZ, 0) < SMALLEST_PIPE_BYTES:
        free(pipe)
        close(ends[0])
        close(ends[1])
        return NULL
    pipe.reader = ends[0]
    pipe.writer = ends[1]
    pipes.count += 1
    return pipe


cdef void _close(Pipe *pipe) noexcept nogil:
    close(pipe.reader)
    close(pipe.writer)
    free(pipe)


cdef void pipe_give(Pipes *pipes, Pipe *pipe) noexcept nogil:
    if pipe.held == 0 and pipes.idle_count < IDLE_PIPES:
        pipes.idle[pipes.idle_count] = pipe
        pipes.idle_count += 1
    else:
        pipes.count -= 1
        _close(pipe)


cdef void pipes_free(Pipes *pipes) noexcept nogil:
    while pipes.idle_count:
        pipes.idle_count -= 1
        pipes.count -= 1
        _close(pipes.idle[pipes.idle_count])


cdef int64_t pipe_fill(Pipe *pipe, net_socket source, uint32_t most) noexcept nogil:
    cdef int64_t n = -1
    while n < 0:
        n = splice(source, NULL, pipe.writer, NULL, most, SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
        if n < 0 and errno != EINTR:
            return -errno
    pipe.held = <uint32_t> n
    return n


cdef int64_t pipe_drain(Pipe *pipe, net_socket sink) noexcept nogil:
    cdef int64_t n = -1
    while n < 0:
        n = splice(pipe.reader, NULL, sink, NULL, pipe.held, SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
        if n < 0 and errno != EINTR:
            return -errno
    pipe.held -= <uint32_t> n
    return n


cdef int64_t pipe_read(Pipe *pipe, char *to, uint32_t size) noexcept nogil:
    cdef int64_t n = -1
    while n < 0:
        n = read(pipe.reader, to, size if size < pipe.held else pipe.held)
        if n < 0 and errno != EINTR:
            return -errno
    pipe.held -= <uint32_t> n
    return n


cdef bint splice_refused(int64_t rc) noexcept nogil:
    return rc == -EINVAL or rc == -ENOSYS or rc == -EPERM or rc == -EOPNOTSUPP
