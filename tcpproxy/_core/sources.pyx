# How many connections each source has: the model is in sources.pxd.
from libc.errno cimport ENOMEM
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from tcpproxy._core.net cimport net_source
from tcpproxy._core.sync cimport sync_claim, sync_store
from tcpproxy._core.thread cimport thread_yield


cdef int sources_init(Sources *sources, uint64_t limit, uint32_t most, uint64_t secret) noexcept nogil:
    cdef uint64_t size = 64
    while size < 2 * limit:
        size *= 2
    sources.slots = <SourceSlot *> calloc(size, sizeof(SourceSlot))
    sources.mask = size - 1
    sources.secret = secret
    sources.most = most
    return 0 if sources.slots != NULL else -ENOMEM


cdef void sources_free(Sources *sources) noexcept nogil:
    free(sources.slots)
    sources.slots = NULL


cdef inline uint64_t _home(Sources *sources, uint64_t source) noexcept nogil:
    """Returns the slot where the search for a source begins: a keyed hash (the finalizer of MurmurHash3)."""
    cdef uint64_t mixed = source ^ sources.secret
    mixed = (mixed ^ mixed >> 33) * <uint64_t> 0xff51afd7ed558ccd + sources.secret
    mixed = (mixed ^ mixed >> 33) * <uint64_t> 0xc4ceb9fe1a85ec53
    return (mixed ^ mixed >> 33) & sources.mask


cdef inline uint64_t _find(Sources *sources, uint64_t source) noexcept nogil:
    """Returns the slot of a source, or the free slot where it would be inserted."""
    cdef uint64_t at = _home(sources, source)
    while sources.slots[at].count and sources.slots[at].source != source:
        at = (at + 1) & sources.mask
    return at


cdef inline void _lock(Sources *sources) noexcept nogil:
    while not sync_claim(&sources.lock, 0, 1):
        thread_yield()


cdef bint sources_enter(Sources *sources, const net_addr *client) noexcept nogil:
    cdef uint64_t source
    cdef SourceSlot *slot
    cdef bint admitted
    if sources.slots == NULL:
        return True
    source = net_source(client)
    _lock(sources)
    slot = &sources.slots[_find(sources, source)]
    admitted = slot.count < sources.most
    if admitted:
        slot.source = source
        slot.count += 1
    sync_store(&sources.lock, 0)
    return admitted


cdef void sources_leave(Sources *sources, const net_addr *client) noexcept nogil:
    cdef uint64_t source, at
    if sources.slots == NULL:
        return
    source = net_source(client)
    _lock(sources)
    at = _find(sources, source)
    if sources.slots[at].count:
        sources.slots[at].count -= 1
        if sources.slots[at].count == 0:
            _backshift(sources, at)
    sync_store(&sources.lock, 0)


cdef void _backshift(Sources *sources, uint64_t gap) noexcept nogil:
    """Backward-shift deletion: moves displaced entries into the gap, because a search ends at the first free slot."""
    cdef uint64_t at = gap
    while True:
        at = (at + 1) & sources.mask
        if sources.slots[at].count == 0:
            break
        if ((at - _home(sources, sources.slots[at].source)) & sources.mask) >= ((at - gap) & sources.mask):
            sources.slots[gap] = sources.slots[at]
            sources.slots[at].count = 0
            gap = at
