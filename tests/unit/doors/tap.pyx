from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from tcpproxy._core.net cimport NET_NONE, net_await_wake, net_close, net_socket, net_wake_pair
from tcpproxy._core.tap cimport TAP_DATA, TAP_FIN, TAP_GATHERS, TAP_SLEEPS, Tap, TapRecord, tap_awake, tap_body, \
    tap_catch_up, tap_claim, tap_close, tap_commit, tap_done, tap_free, tap_init, tap_next, tap_note, tap_release, tap_sleep
from tcpproxy._core.thread cimport thread_nap_us

DATA, FIN = TAP_DATA, TAP_FIN
GATHERS, SLEEPS = TAP_GATHERS, TAP_SLEEPS
HEADER = sizeof(TapRecord)


cdef class TapDoor:
    cdef Tap it
    cdef net_socket bell, bell_writer

    def __cinit__(self, uint64_t size):
        self.bell = self.bell_writer = NET_NONE
        if net_wake_pair(&self.bell, &self.bell_writer) < 0 or tap_init(&self.it, size) < 0:
            raise MemoryError
        self.it.wakeup = self.bell_writer

    def __dealloc__(self):
        tap_free(&self.it)
        if self.bell != NET_NONE:
            net_close(self.bell)
            net_close(self.bell_writer)

    def claim(self, uint32_t most):
        return tap_claim(&self.it, most) != NULL

    def read(self, uint64_t id, bytes data, *, uint32_t most=0, uint64_t offset=0, uint8_t side=0):
        """As a half reads: claims room for the most, uses what there is. False: no room."""
        cdef char *to = tap_claim(&self.it, max(most, <uint32_t> len(data)))
        if to == NULL:
            return False
        memcpy(to, <const char *> data, len(data))
        self.it.id = id
        tap_commit(&self.it, side, offset, <uint32_t> len(data))
        return True

    def note(self, int kind, uint64_t id, bytes body=b""):
        tap_note(&self.it, <uint8_t> kind, id, 1, 0, <const char *> body, <uint32_t> len(body))

    def catch_up(self):
        return bool(tap_catch_up(&self.it))

    def close(self):
        tap_close(&self.it)

    def take(self):
        """(kind, id, side, offset, body) of the next record, or None."""
        cdef const TapRecord *record = tap_next(&self.it)
        cdef TapRecord copy
        if record == NULL:
            return None
        memcpy(&copy, record, sizeof(TapRecord))
        body = PyBytes_FromStringAndSize(tap_body(record), copy.size)
        tap_done(&self.it, record)
        return copy.kind, copy.id, copy.side, copy.offset, body

    def release(self):
        return bool(tap_release(&self.it))

    def sleep(self, how):
        return bool(tap_sleep(&self.it, how))

    def awake(self):
        tap_awake(&self.it)

    def woken(self):
        return bool(net_await_wake(self.bell, 0))

    def write_many(self, uint64_t count):
        """Records 1 to `count` as a worker writes them, with a body of id % 999 bytes; for a thread. Every third is no data."""
        cdef uint64_t id
        cdef char body[1000]
        cdef char *to
        with nogil:
            for id in range(1, count + 1):
                memset(body, <int> (id & 0x7f), 1000)
                if id % 3 == 0:
                    tap_note(&self.it, TAP_FIN, id, 1, id, body, <uint32_t> (id % 999))
                    continue
                while True:
                    to = tap_claim(&self.it, 1000) if tap_catch_up(&self.it) else NULL
                    if to != NULL:
                        break
                    thread_nap_us(20)
                memcpy(to, body, id % 999)
                self.it.id = id
                tap_commit(&self.it, 0, id, <uint32_t> (id % 999))
            while not tap_catch_up(&self.it):
                thread_nap_us(20)
            tap_close(&self.it)

    def read_many(self, uint64_t count):
        """Takes as the reader does until `count` records have come. Returns the id of the first that is wrong, 0 if none is."""
        cdef const TapRecord *record
        cdef const char *body
        cdef uint64_t id = 0
        cdef uint32_t i
        cdef bint good = True
        with nogil:
            while id < count:
                record = tap_next(&self.it)
                if record == NULL:
                    tap_release(&self.it)
                    if tap_sleep(&self.it, TAP_GATHERS if id % 2 else TAP_SLEEPS):
                        net_await_wake(self.bell, 5)
                    tap_awake(&self.it)
                    continue
                id += 1
                body = tap_body(record)
                good = record.id == id and record.offset == id and record.size == id % 999
                good = good and record.kind == (TAP_FIN if id % 3 == 0 else TAP_DATA)
                for i in range(record.size):
                    good = good and body[i] == <char> (id & 0x7f)
                if not good:
                    break
                tap_done(&self.it, record)
                if id % 16 == 0:
                    tap_release(&self.it)
        return 0 if good else id
