# The ring of event records: the model is in events.pxd.
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from tcpproxy._core.net cimport net_send, net_would_block
from tcpproxy._core.sync cimport sync_bump, sync_check, sync_load, sync_peek, sync_store, sync_swap

cdef extern from * nogil:
    """
    static const char *const KIND_NAMES[] = {"", "new", "connected", "end", "failed", "accept-error", "limit",
                                              "fault", "upstream-down", "upstream-up"};
    static const char *const REASON_NAMES[] = {
        "", "client-eof", "upstream-eof", "client-reset", "upstream-reset", "idle", "half-close-timeout", "connect-refused",
        "connect-timeout", "unreachable", "dns", "limit", "shutdown", "killed", "fault", "denied", "proxy-header",
    };
    """
    const char **KIND_NAMES         # in the order of EVENT_, from 0
    const char **REASON_NAMES       # in the order of REASON_


cdef int events_init(EventRing *ring, uint64_t room, net_socket wakeup) noexcept nogil:
    memset(ring, 0, sizeof(EventRing))
    ring.records = <EventRecord *> calloc(room, sizeof(EventRecord))
    ring.mask = room - 1
    ring.wakeup = wakeup
    return 0 if ring.records != NULL else -ENOMEM


cdef void events_free(EventRing *ring) noexcept nogil:
    free(ring.records)
    ring.records = NULL


cdef EventRecord *events_claim(EventRing *ring, int kind) noexcept nogil:
    cdef uint64_t written = sync_peek(&ring.written)
    if not sync_peek(&ring.wanted) & (<uint64_t> 1 << kind):
        return NULL
    cdef uint64_t waiting = written - sync_load(&ring.taken)
    if waiting > ring.mask:
        sync_bump(&ring.lost, 1)
        return NULL
    if waiting == 0:
        ring.base = written
    cdef EventRecord *record = &ring.records[(written - ring.base) & ring.mask]
    memset(record, 0, sizeof(EventRecord))
    record.kind = kind
    return record


cdef void events_publish(EventRing *ring) noexcept nogil:
    # sync_swap and sync_check, not store and load: a reader sets `asleep` and then checks the ring once more, and one of the
    # two has to see the other's change (sync.pxd).
    sync_swap(&ring.written, sync_peek(&ring.written) + 1)
    cdef int64_t rc
    if sync_check(&ring.asleep) and sync_swap(&ring.asleep, 0):
        rc = net_send(ring.wakeup, <const char *> "e", 1)
        if rc < 0 and not net_would_block(rc):          # a full socket: a wake-up is pending already
            sync_store(&ring.asleep, 1)                 # no memory: the next record tries again


cdef bint events_take(EventRing *ring, EventRecord *record) noexcept nogil:
    cdef uint64_t taken = sync_peek(&ring.taken)
    if taken == sync_load(&ring.written):
        return False
    record[0] = ring.records[(taken - ring.base) & ring.mask]
    sync_store(&ring.taken, taken + 1)
    return True


cdef void events_sleep(EventRing *ring) noexcept nogil:
    sync_swap(&ring.asleep, 1)


cdef bint events_empty(EventRing *ring) noexcept nogil:
    return sync_peek(&ring.taken) == sync_check(&ring.written)


cdef const char *events_kind_name(int kind) noexcept nogil:
    return KIND_NAMES[kind] if 0 <= kind < KINDS else NULL


cdef const char *events_reason_name(int reason) noexcept nogil:
    return REASON_NAMES[reason] if 0 <= reason < REASONS else NULL
