# A platform without splice(2): there are no pipes, so the pump copies. The model is in splice.pxd.
from libc.errno cimport ENOSYS
from libc.stdint cimport int64_t, uint32_t


cdef bint splice_here() noexcept nogil:
    return False


cdef Pipe *pipe_take(Pipes *pipes) noexcept nogil:
    return NULL


cdef void pipe_give(Pipes *pipes, Pipe *pipe) noexcept nogil:
    pass


cdef void pipes_free(Pipes *pipes) noexcept nogil:
    pass


cdef int64_t pipe_fill(Pipe *pipe, net_socket source, uint32_t most) noexcept nogil:
    return -ENOSYS


cdef int64_t pipe_drain(Pipe *pipe, net_socket sink) noexcept nogil:
    return -ENOSYS


cdef int64_t pipe_read(Pipe *pipe, char *to, uint32_t size) noexcept nogil:
    return -ENOSYS


cdef bint splice_refused(int64_t rc) noexcept nogil:
    return rc == -ENOSYS
