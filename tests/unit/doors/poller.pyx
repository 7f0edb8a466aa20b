cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset
from tcpproxy._core.poller cimport WATCH_STREAM, Poller, Ready, Watch, poller_add, poller_free, poller_move, poller_name, \
    poller_new, poller_rearm, poller_remove, poller_wait, poller_wake

POLLER = poller_name().decode()


@cython.no_gc_clear
cdef class PollerDoor:
    """A poller and the watches of its caller, which are named by their tags."""
    cdef Poller *it
    cdef dict watches

    def __cinit__(self):
        self.watches = {}
        self.it = poller_new()
        if self.it == NULL:
            raise MemoryError("poller_new gave NULL")

    def __dealloc__(self):
        self.close()

    cdef Watch *_at(self, tag) except NULL:
        return <Watch *> <size_t> self.watches[tag]

    def close(self):
        if self.it != NULL:
            poller_free(self.it)
            self.it = NULL
        for tag in list(self.watches):
            free(self._at(tag))
            del self.watches[tag]

    def add(self, int fd, uint64_t tag, int kind=WATCH_STREAM):
        cdef Watch *watch = <Watch *> calloc(1, sizeof(Watch))
        watch.fd = fd
        watch.tag = tag
        self.watches[tag] = <size_t> watch
        return poller_add(self.it, watch, kind)

    def rearm(self, tag, uint32_t bits):
        poller_rearm(self.it, self._at(tag), bits)

    def move(self, tag):
        """To another place; the old one is overwritten before it is freed."""
        cdef Watch *old = self._at(tag)
        cdef Watch *new = <Watch *> calloc(1, sizeof(Watch))
        poller_move(self.it, old, new)
        memset(old, 0xa5, sizeof(Watch))
        free(old)
        self.watches[tag] = <size_t> new

    def remove(self, tag, int kind=WATCH_STREAM):
        poller_remove(self.it, self._at(tag), kind)
        free(self._at(tag))
        del self.watches[tag]

    def wait(self, int64_t timeout_ns=0, size_t room=64, bint exact=False):
        """[(tag, bits)], or what was returned instead, if negative."""
        cdef Ready *events = <Ready *> malloc(room * sizeof(Ready))
        cdef int count
        with nogil:
            count = poller_wait(self.it, events, <int> room, timeout_ns, exact)
        found = [(events[i].tag, events[i].bits) for i in range(count)]
        free(events)
        return count if count < 0 else found

    def wake(self, int times=1):
        cdef int _i
        with nogil:
            for _i in range(times):
                poller_wake(self.it)
