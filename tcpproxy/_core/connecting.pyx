# Connecting to upstream: the model is in connecting.pxd.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset
from tcpproxy._core.net cimport ECONNREFUSED, EINPROGRESS, NET_NONE, net_connect, net_met_itself, net_open, \
    net_reset, net_socket, net_take_error, net_unconnected, net_was_connected
from tcpproxy._core.poller cimport READY_ERROR, READY_OUT, WATCH_STREAM, poller_add, poller_move, poller_remove
from tcpproxy._core.tag cimport tag_attempt


cdef Connecting *connecting_new(AddressList *list, const net_tuning *tuning) noexcept nogil:
    cdef Connecting *connecting = <Connecting *> calloc(1, sizeof(Connecting))
    cdef uint32_t i
    if connecting == NULL:
        return NULL
    for i in range(<uint32_t> ADDRESSES):
        connecting.attempts[i].fd = NET_NONE
    if list != NULL:
        connecting_use(connecting, list)
    connecting.tuning = tuning
    return connecting


cdef void connecting_use(Connecting *connecting, AddressList *list) noexcept nogil:
    addresses_keep(list)
    connecting.list = list


cdef inline void _give_all_up(Connecting *connecting, Poller *poller) noexcept nogil:
    cdef uint32_t i
    for i in range(connecting.started):
        _give_up(connecting, poller, i)
    addresses_release(connecting.list)


cdef void connecting_restart(Connecting *connecting, Poller *poller) noexcept nogil:
    _give_all_up(connecting, poller)
    memset(connecting.ready, 0, sizeof(connecting.ready))
    connecting.list = NULL
    connecting.started = connecting.last = 0
    connecting.error = 0


cdef void connecting_free(Connecting *connecting, Poller *poller) noexcept nogil:
    _give_all_up(connecting, poller)
    free(connecting)


cdef bint connecting_has_more(Connecting *connecting) noexcept nogil:
    return connecting.started < connecting.list.count


cdef void _give_up(Connecting *connecting, Poller *poller, uint32_t number) noexcept nogil:
    cdef Watch *watch = &connecting.attempts[number]
    cdef net_socket fd = watch.fd
    if fd == NET_NONE:
        return
    poller_remove(poller, watch, WATCH_STREAM)
    watch.fd = NET_NONE         # before the number can be used again: see resources_close_after_fork
    net_reset(fd)               # it may be connected by now: a FIN would look like a client that sent nothing
    connecting.pending -= 1


cdef int _begin(Connecting *connecting, Poller *poller, uint32_t number, uint64_t tag) noexcept nogil:
    """Starts one attempt: 0 if it is in progress, or -errno. A connect that succeeds at once is reported by an event too."""
    cdef Watch *watch = &connecting.attempts[number]
    cdef int64_t opened = net_open(&connecting.list.addresses[number], connecting.tuning)
    cdef net_socket fd = <net_socket> opened
    cdef int rc
    if opened < 0:
        return <int> opened
    # Connect first, then add it to the poller: epoll reports a hang-up for a socket on which connect was not called.
    rc = net_connect(fd, &connecting.list.addresses[number])
    if rc == 0 or rc == -EINPROGRESS:
        watch.fd = fd
        watch.tag = tag_attempt(tag, number)
        rc = poller_add(poller, watch, WATCH_STREAM)
    if rc < 0:
        net_reset(fd)           # as in _give_up
        watch.fd = NET_NONE
        return rc
    connecting.pending += 1
    return 0


cdef int connecting_next(Connecting *connecting, Poller *poller, uint64_t tag) noexcept nogil:
    """Starts attempts until one is in progress. `tag` is the relay's: the tag of attempt n is `tag` + n + 1."""
    cdef uint32_t number
    cdef int rc
    while connecting_has_more(connecting):
        number = connecting.started
        connecting.started += 1
        rc = _begin(connecting, poller, number, tag)
        if rc == 0:
            return CONNECTING_PENDING
        connecting.error = -rc
        connecting.last = number
    return CONNECTING_PENDING if connecting.pending else CONNECTING_FAILED


cdef int connecting_event(Connecting *connecting, Poller *poller, uint32_t number, uint32_t ready) noexcept nogil:
    """Returns `number` if that attempt is connected; `error` is 0, or the errno of a reset that followed at once.

    CONNECTING_FAILED is about this attempt only: others may be pending or untried.
    """
    cdef int error = 0
    if number >= connecting.started or connecting.attempts[number].fd == NET_NONE:
        return CONNECTING_PENDING               # a stale event: the attempt was given up in this batch
    connecting.ready[number] |= <uint8_t> ready
    if ready & READY_ERROR:
        # The bit is a hint: SO_ERROR confirms it. On Windows polling may have cleared the error: ask getpeername too.
        error = net_take_error(connecting.attempts[number].fd) or net_unconnected(connecting.attempts[number].fd)
        if error and not net_was_connected(error):
            return _failed(connecting, poller, number, error)
    if error == 0 and not connecting.ready[number] & READY_OUT:
        return CONNECTING_PENDING
    if net_met_itself(connecting.attempts[number].fd, &connecting.list.addresses[number], connecting.tuning):
        return _failed(connecting, poller, number, ECONNREFUSED)        # nobody listens there
    connecting.error = error
    connecting.last = number
    return number


cdef int _failed(Connecting *connecting, Poller *poller, uint32_t number, int error) noexcept nogil:
    connecting.error = error
    connecting.last = number
    _give_up(connecting, poller, number)
    return CONNECTING_FAILED


cdef void connecting_take(Connecting *connecting, Poller *poller, uint32_t number, Watch *to) noexcept nogil:
    poller_move(poller, &connecting.attempts[number], to)
    connecting.attempts[number].fd = NET_NONE


cdef enum:
    AVOIDED_NS = 600000000000           # 10 minutes


cdef uint64_t connecting_avoids(const Connecting *connecting, uint32_t winner, uint64_t now_ns) noexcept nogil:
    cdef uint32_t silent = connecting.list.addresses[0].length
    if connecting.attempts[0].fd == NET_NONE or connecting.list.addresses[winner].length == silent:
        return 0
    return (now_ns + AVOIDED_NS) & ~<uint64_t> 0xff | silent


cdef AddressList *addresses_avoid(AddressList *list, uint64_t avoided) noexcept nogil:
    cdef AddressList *ordered = <AddressList *> malloc(sizeof(AddressList))
    cdef uint32_t i, last, count = 0
    if ordered == NULL:
        return list                     # without memory the old order stays
    ordered.users = 1
    ordered.expires_ns = list.expires_ns
    ordered.avoided = avoided
    for last in range(2):
        for i in range(list.count):
            if (list.addresses[i].length == avoided & 0xff) == last:
                ordered.addresses[count] = list.addresses[i]
                count += 1
    ordered.count = count
    addresses_release(list)
    return ordered


cdef void addresses_keep(AddressList *list) noexcept nogil:
    list.users += 1


cdef void addresses_release(AddressList *list) noexcept nogil:
    if list == NULL:
        return
    list.users -= 1
    if list.users == 0:
        free(list)
