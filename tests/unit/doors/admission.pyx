from tcpproxy._core.admission cimport BOUND_BYTES, Admission, admission_admits, admission_free, networks_init
from tcpproxy._core.net cimport net_addr, net_pack


cdef class AdmissionDoor:
    cdef Admission it

    def __cinit__(self, bytes admitted=None):
        if admitted is not None and networks_init(&self.it.admitted, admitted, len(admitted) // BOUND_BYTES) < 0:
            raise MemoryError

    def __dealloc__(self):
        admission_free(&self.it)

    def admits(self, bytes ip):
        """None: the peer of a UNIX socket, whose address is its user and process."""
        cdef net_addr address
        if ip is None:
            address.length = 2
        else:
            net_pack(&address, <const char *> ip, len(ip), 80, 0)
        return bool(admission_admits(&self.it, &address))
