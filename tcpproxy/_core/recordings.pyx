# The first bytes of each connection: the model is in recordings.pxd.
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy
from tcpproxy._core.sync cimport sync_claim, sync_store
from tcpproxy._core.tap cimport TAP_CONNECTED, TAP_DATA, TAP_END, TapConnected, TapEnd, TapOpen, tap_body
from tcpproxy._core.thread cimport thread_yield

cdef enum:
    FIRST_ROOM = 4096       # bytes of a direction at first; then it doubles


cdef void recordings_lock(Recordings *store) noexcept nogil:
    while not sync_claim(&store.lock, 0, 1):
        thread_yield()


cdef void recordings_unlock(Recordings *store) noexcept nogil:
    sync_store(&store.lock, 0)


cdef void _leave(Recording *recording) noexcept nogil:
    recording.users -= 1
    if recording.users == 0:
        free(recording.streams[0].bytes)
        free(recording.streams[1].bytes)
        free(recording.chunks)
        free(recording)


cdef void recordings_drop(Recordings *store, Recording *recording) noexcept nogil:
    recordings_lock(store)
    _leave(recording)
    recordings_unlock(store)


cdef void recordings_free(Recordings *store) noexcept nogil:
    cdef Recording *recording
    while store.first != NULL:
        recording = store.first
        store.first = recording.next
        _leave(recording)


cdef void _forget_oldest(Recordings *store, uint64_t kept) noexcept nogil:
    """Drops the oldest recordings of ended connections until `kept` are left. Those of live connections stay."""
    cdef Recording *before = NULL
    cdef Recording *recording = store.first
    cdef Recording *after
    while store.count > kept and store.ended:
        after = recording.next
        if not recording.ended:
            before = recording
        else:
            if before == NULL:
                store.first = after
            else:
                before.next = after
            if store.last == recording:
                store.last = before
            store.count -= 1
            store.ended -= 1
            store.forgotten += 1
            _leave(recording)
        recording = after


cdef Recording *recordings_open(Recordings *store, const TapRecord *record) noexcept nogil:
    cdef const TapOpen *opened = <const TapOpen *> tap_body(record)
    cdef Recording *recording = <Recording *> calloc(1, sizeof(Recording))
    recordings_lock(store)
    if recording == NULL:
        store.forgotten += 1
    else:
        _forget_oldest(store, RECORDINGS_KEPT - 1)
        recording.users = 2                 # the store, and the reader until recordings_add has had TAP_END
        recording.id = record.id
        recording.opened_ns = record.time_ns
        recording.client = opened.client
        _insert(store, recording)
    recordings_unlock(store)
    return recording


cdef void _insert(Recordings *store, Recording *recording) noexcept nogil:
    """Inserts a recording in the order of ids: records of several workers may be slightly out of order."""
    cdef Recording *after
    store.count += 1
    if store.last == NULL or store.last.id < recording.id:
        if store.last == NULL:
            store.first = recording
        else:
            store.last.next = recording
        store.last = recording
    elif store.first.id > recording.id:
        recording.next = store.first
        store.first = recording
    else:
        after = store.first
        while after.next.id < recording.id:
            after = after.next
        recording.next = after.next
        after.next = recording


cdef void recordings_add(Recordings *store, Recording *recording, const TapRecord *record) noexcept nogil:
    recordings_lock(store)
    if record.kind == TAP_CONNECTED:
        recording.upstream = (<const TapConnected *> tap_body(record)).upstream
    elif record.kind == TAP_DATA:
        _add_data(store, recording, record)
    elif record.kind == TAP_END:
        recording.reason = (<const TapEnd *> tap_body(record)).reason
        recording.ended = True
        _leave(recording)
        store.ended += 1
        _forget_oldest(store, RECORDINGS_KEPT)
    recordings_unlock(store)


cdef void _add_data(Recordings *store, Recording *recording, const TapRecord *record) noexcept nogil:
    cdef Stream *stream = &recording.streams[record.side]
    cdef uint32_t size = record.size
    # After a gap nothing more is kept, so that the kept bytes are the first ones, without a gap.
    if stream.kept != stream.total:
        size = 0
    elif stream.kept + size > store.most:
        size = <uint32_t> (store.most - stream.kept)
    if size and _reserve(stream, size, store.most):
        memcpy(stream.bytes + stream.kept, tap_body(record), size)
        stream.kept += size
        _add_chunk(recording, record, size)
    stream.total += record.size
    if stream.kept != stream.total:
        recording.truncated = True


cdef bint _reserve(Stream *stream, uint32_t size, uint64_t most) noexcept nogil:
    cdef uint64_t room = stream.room or FIRST_ROOM
    cdef char *bytes
    while room < stream.kept + size:
        room *= 2
    if room > most:
        room = most
    if room == stream.room:
        return True
    bytes = <char *> realloc(stream.bytes, room)
    if bytes == NULL:
        return False
    stream.bytes = bytes
    stream.room = room
    return True


cdef void _add_chunk(Recording *recording, const TapRecord *record, uint32_t size) noexcept nogil:
    cdef uint32_t room = recording.chunk_room * 2 or 16
    cdef Chunk *chunks
    if recording.chunk_count == recording.chunk_room:
        chunks = <Chunk *> realloc(recording.chunks, room * sizeof(Chunk)) if room <= CHUNKS else NULL
        if chunks == NULL:
            recording.truncated = True
            return
        recording.chunks = chunks
        recording.chunk_room = room
    recording.chunks[recording.chunk_count].time_ns = record.time_ns
    recording.chunks[recording.chunk_count].size = size
    recording.chunks[recording.chunk_count].side = record.side
    recording.chunk_count += 1
