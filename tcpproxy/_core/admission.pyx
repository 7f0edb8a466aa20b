# Which clients are served: the model is in admission.pxd.
from libc.errno cimport ENOMEM
from libc.stdint cimport uint8_t, uint16_t, uint64_t
from libc.stdlib cimport free, malloc
from tcpproxy._core.net cimport net_is_unix, net_unpack


cdef inline uint64_t _number(const uint8_t *bytes) noexcept nogil:
    """Eight bytes in network order."""
    cdef uint64_t number = 0
    cdef int i
    for i in range(8):
        number = number << 8 | bytes[i]
    return number


cdef int networks_init(Networks *networks, const uint8_t *packed, uint64_t count) noexcept nogil:
    cdef uint64_t i
    networks.bounds = <Bound *> malloc((count + 1) * sizeof(Bound))        # not malloc(0): NULL means no list
    if networks.bounds == NULL:
        return -ENOMEM
    networks.count = count
    for i in range(count):
        networks.bounds[i].high = _number(packed + i * BOUND_BYTES)
        networks.bounds[i].low = _number(packed + i * BOUND_BYTES + 8)
    return 0


cdef void networks_free(Networks *networks) noexcept nogil:
    free(networks.bounds)
    networks.bounds = NULL


cdef bint networks_have(const Networks *networks, const net_addr *address) noexcept nogil:
    cdef uint8_t ip[16]
    cdef uint16_t port
    cdef uint64_t first = 0, last = networks.count, middle, high, low
    cdef const Bound *bound
    if not net_unpack(address, ip, &port):
        return False
    high, low = _number(ip), _number(ip + 8)
    while first < last:
        middle = first + (last - first) // 2
        bound = &networks.bounds[middle]
        if bound.high < high or (bound.high == high and bound.low <= low):
            first = middle + 1
        else:
            last = middle
    return first & 1


cdef bint admission_admits(const Admission *admission, const net_addr *client) noexcept nogil:
    return admission.admitted.bounds == NULL or net_is_unix(client) or networks_have(&admission.admitted, client)


cdef bint admission_wants_header(const Admission *admission, const net_addr *peer) noexcept nogil:
    if net_is_unix(peer):
        return admission.unix_proxies
    return admission.proxies.bounds != NULL and networks_have(&admission.proxies, peer)


cdef void admission_free(Admission *admission) noexcept nogil:
    networks_free(&admission.admitted)
    networks_free(&admission.proxies)
