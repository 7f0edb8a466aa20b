# What the other doors, capture.pyx and recorded.pyx, need of a worker.
from libc.stdint cimport uint64_t
from tcpproxy._core.admission cimport Admission
from tcpproxy._core.engine cimport View
from tcpproxy._core.inbox cimport Message
from tcpproxy._core.loop cimport Counters, Group, Loop
from tcpproxy._core.net cimport net_addr

cdef class _Group:
    cdef Group group
    cdef Admission admission
    cdef admit(self, bytes admitted, bytes proxies, bint unix_proxies)

cdef class Worker:
    cdef Loop *loop
    cdef _Group together
    cdef uint64_t running           # 1: run() was called; it may have returned
    cdef bint abandoned             # in a forked child: its memory may be in any state
    cdef dict paths                 # of UNIX sockets, to which addresses point for as long as the worker exists
    cdef object make_lock           # threading.Lock, or what makes real locks where that is replaced
    cdef object lock                # one at a time of the threads that wake, view or close
    cdef void _wake(self)
    cdef void _tell(self, Message *message)
    cdef Counters *_counters_of(self, int target) noexcept
    cdef bint _look(self, View *view) noexcept

cdef object address_text(const net_addr *address)       # host:port, a path, unix:uid=...; "": there is none
