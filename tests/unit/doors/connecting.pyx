from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc
from tcpproxy._core.connecting cimport CONNECTING_FAILED, CONNECTING_PENDING, AddressList, Connecting, addresses_release, \
    connecting_event, connecting_free, connecting_new, connecting_next
from tcpproxy._core.net cimport net_pack, net_tuning
from tcpproxy._core.poller cimport READY_EOF, READY_ERROR, READY_IN, READY_OUT, READY_URGENT, Poller, poller_free, poller_new

IN, OUT, EOF, ERROR, URGENT = READY_IN, READY_OUT, READY_EOF, READY_ERROR, READY_URGENT
FAILED = CONNECTING_FAILED


cdef class ConnectingDoor:
    """One attempt to connect to an IPv4 address; its events are made up by the caller."""
    cdef Poller *poller
    cdef AddressList *addresses
    cdef Connecting *it
    cdef net_tuning tuning              # all off

    def __cinit__(self, bytes ip, int port):
        self.poller = poller_new()
        self.addresses = <AddressList *> calloc(1, sizeof(AddressList))
        if self.poller == NULL or self.addresses == NULL:
            raise MemoryError
        self.addresses.users = self.addresses.count = 1
        if net_pack(&self.addresses.addresses[0], <const char *> ip, len(ip), port, 0) < 0:
            raise ValueError(ip)
        self.it = connecting_new(self.addresses, &self.tuning)
        if self.it == NULL or connecting_next(self.it, self.poller, 0) != CONNECTING_PENDING:
            raise OSError("connecting_next")

    def __dealloc__(self):
        if self.it != NULL:
            connecting_free(self.it, self.poller)
        addresses_release(self.addresses)
        if self.poller != NULL:
            poller_free(self.poller)

    def event(self, uint32_t bits):
        """The number of the attempt that is connected, or what is negative."""
        return connecting_event(self.it, self.poller, 0, bits)

    @property
    def error(self):
        return self.it.error

    @property
    def ready(self):
        """Bits that the connection begins with."""
        return self.it.ready[0]
