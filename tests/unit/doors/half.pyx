from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from tcpproxy._core.half cimport MODE_COPY, MODE_SPLICE, ZERO_COPY_ALWAYS, ZERO_COPY_AUTO, ZERO_COPY_OFF, Half, Pump, Side, \
    half_break, half_pump
from tcpproxy._core.poller cimport READY_EOF, READY_ERROR, READY_IN, READY_OUT, READY_URGENT, WATCH_STREAM, Ready, poller_add, \
    poller_free, poller_new, poller_wait
from tcpproxy._core.splice cimport PIPE_BYTES, PIPES_PER_WORKER, Pipe, pipe_give, pipe_take, pipes_free

from memory cimport memory_give_back, memory_take_all

PIPE_LIMIT, PIPE_ROOM = PIPES_PER_WORKER, PIPE_BYTES
ZERO_COPY = {"off": ZERO_COPY_OFF, "auto": ZERO_COPY_AUTO, "always": ZERO_COPY_ALWAYS}


cdef class HalfDoor:
    """One direction between two sockets, with a poller of its own."""
    cdef Half half
    cdef Side source, sink
    cdef Pump pump

    def __cinit__(self, int source, int sink, uint32_t size, uint32_t budget, str zero_copy):
        self.pump.poller = poller_new()
        self.pump.scratch = self.pump.into = <char *> malloc(size)
        if self.pump.poller == NULL or self.pump.scratch == NULL:
            raise MemoryError
        self.pump.size = size
        self.pump.budget = budget
        self.pump.splice_size = PIPE_BYTES
        self.pump.zero_copy = ZERO_COPY[zero_copy]
        self.half.mode = MODE_SPLICE if zero_copy == "always" else MODE_COPY
        self.source.watch.fd, self.source.watch.tag = source, 0
        self.sink.watch.fd, self.sink.watch.tag = sink, 1
        if poller_add(self.pump.poller, &self.source.watch, WATCH_STREAM) < 0 \
                or poller_add(self.pump.poller, &self.sink.watch, WATCH_STREAM) < 0:
            raise OSError("poller_add")

    def __dealloc__(self):
        half_break(&self.half, &self.pump)
        pipes_free(&self.pump.pipes)
        free(self.pump.scratch)
        if self.pump.poller != NULL:
            poller_free(self.pump.poller)

    def listen(self, int64_t timeout_ns=0):
        """Takes events as a relay does. Returns whether there was any."""
        cdef Ready events[8]
        cdef Side *side
        cdef int count
        with nogil:
            count = poller_wait(self.pump.poller, events, 8, timeout_ns, False)
        for i in range(count):
            side = &self.sink if events[i].tag else &self.source
            side.ready |= events[i].bits & (READY_IN | READY_OUT)
            if events[i].bits & (READY_EOF | READY_URGENT):
                side.read_to_eagain = True
            if events[i].bits & READY_ERROR:
                side.error_pending = True
        return count > 0

    def turn(self, *, bint without_memory=False):
        cdef int result
        with nogil:
            chain = memory_take_all() if without_memory else NULL
            result = half_pump(&self.half, &self.source, &self.sink, &self.pump)
            memory_give_back(chain)
        return result

    def break_off(self):
        half_break(&self.half, &self.pump)

    def borrow_pipes(self, int most):
        """Takes pipes and gives them back. Returns how many there were to be had."""
        cdef Pipe *taken[100]
        cdef int count = 0
        while count < min(most, 100):
            taken[count] = pipe_take(&self.pump.pipes)
            if taken[count] == NULL:
                break
            count += 1
        for i in range(count):
            pipe_give(&self.pump.pipes, taken[i])
        return count

    @property
    def state(self):
        return self.half.state

    @state.setter
    def state(self, uint8_t value):
        self.half.state = value

    @property
    def delivered(self):
        return self.half.delivered

    @property
    def kept(self):
        """Bytes in (buffer, pipe); None: it has none."""
        return (
            None if self.half.buffer.memory == NULL else self.half.buffer.end - self.half.buffer.start,
            None if self.half.pipe == NULL else self.half.pipe.held,
        )

    @property
    def pipes(self):
        """(idle, all) of the worker."""
        return self.pump.pipes.idle_count, self.pump.pipes.count

    @property
    def spliced(self):
        return self.pump.spliced

    @property
    def ready(self):
        """(source, sink)"""
        return self.source.ready, self.sink.ready

    @ready.setter
    def ready(self, value):
        self.source.ready, self.sink.ready = value

    @property
    def errors(self):
        return self.source.error, self.sink.error

    @errors.setter
    def errors(self, value):
        self.source.error, self.sink.error = value

    @property
    def read_to_eagain(self):
        return bool(self.source.read_to_eagain)

    @read_to_eagain.setter
    def read_to_eagain(self, bint value):
        self.source.read_to_eagain = value

    @property
    def ended(self):
        return bool(self.source.eof_read)
