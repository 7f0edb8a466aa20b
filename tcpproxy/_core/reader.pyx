# The thread that reads the taps: the model is in reader.pxd.
from libc.errno cimport ENOMEM
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from tcpproxy._core.loop cimport Loop
from tcpproxy._core.net cimport NET_NONE, net_await_wake, net_close, net_wake, net_wake_pair
from tcpproxy._core.pieces cimport pieces_add, pieces_catch_up, pieces_free, pieces_init
from tcpproxy._core.poller cimport poller_wake
from tcpproxy._core.recordings cimport recordings_add, recordings_drop, recordings_free, recordings_open
from tcpproxy._core.savefile cimport savefile_add, savefile_end, savefile_flush, savefile_free, savefile_full, savefile_init
from tcpproxy._core.sync cimport sync_add, sync_bump, sync_check, sync_load, sync_peek, sync_store, sync_sub, sync_swap
from tcpproxy._core.tap cimport TAP_END, TAP_GATHERS, TAP_OPEN, TAP_SLEEPS, Tap, TapRecord, tap_awake, tap_body, tap_done, \
    tap_next, tap_release, tap_sleep
from tcpproxy._core.thread cimport clock_ns, thread_block_sigpipe, thread_nap_us

cdef enum:
    AT_ONCE = 64            # the most records of one worker before their memory is given back
    GATHER_MS = 10          # the least time between two wake-ups while records come, unless a thread waits for them
    NAP_US = 50             # the sleep of a thread that waits for the reader
    SLOW_NS = 1000000000    # a write of the capture that takes longer is slow. A choice: a disk takes some ms


cdef int reader_init(Reader *reader, uint64_t record, bint capture, uint32_t show) noexcept nogil:
    cdef int rc
    memset(reader, 0, sizeof(Reader))
    reader.bell = reader.bell_writer = NET_NONE
    reader.running = 1
    reader.store.most = record
    reader.capturing = capture
    reader.file.fd = -1                 # no file: 0 would be stdin
    rc = net_wake_pair(&reader.bell, &reader.bell_writer)
    if rc < 0:
        return rc
    if capture and savefile_init(&reader.file) < 0:
        return -ENOMEM
    reader.file.waits = _write_waits
    reader.file.owner = reader
    return pieces_init(&reader.pieces, show)


cdef void reader_close(Reader *reader) noexcept nogil:
    if reader.bell != NET_NONE:
        net_close(reader.bell)
        net_close(reader.bell_writer)
        reader.bell = reader.bell_writer = NET_NONE


cdef void reader_free(Reader *reader) noexcept nogil:
    cdef Seen *seen
    cdef int i
    reader_close(reader)
    pieces_free(&reader.pieces)
    for i in range(READER_BUCKETS):
        while reader.seen[i] != NULL:
            seen = reader.seen[i]
            reader.seen[i] = seen.next
            if seen.recording != NULL:
                recordings_drop(&reader.store, seen.recording)
            free(seen)
    recordings_free(&reader.store)
    savefile_free(&reader.file)


cdef void reader_add(Reader *reader, Loop *loop) noexcept nogil:
    loop.pump.tap.wakeup = reader.bell_writer
    reader.loops[reader.count] = loop
    reader.count += 1


# --- the thread ---

cdef int reader_run(Reader *reader) noexcept nogil:
    cdef bint gathered = False
    cdef bint failed = sync_load(&reader.file.error) != 0
    thread_block_sigpipe()
    while True:
        if _read_all(reader):
            gathered = False
            if savefile_full(&reader.file) and _lost_unless(reader, savefile_end(&reader.file)):
                return READER_FULL
        elif not _lost_unless(reader, savefile_flush(&reader.file)):
            pass
        elif sync_load(&reader.finishing):
            if not _read_all(reader):        # records may have come before it was set
                _lost_unless(reader, savefile_end(&reader.file))
                if failed or not sync_load(&reader.file.error):
                    sync_store(&reader.running, 0)
                    return READER_ENDED
        elif gathered or sync_check(&reader.hurry):
            _sleep(reader, TAP_SLEEPS, -1)
            gathered = False
        else:
            _sleep(reader, TAP_GATHERS, GATHER_MS)
            gathered = True
        if not failed and sync_load(&reader.file.error):
            return READER_FAILED


cdef bint _read_all(Reader *reader) noexcept nogil:
    """Takes some records of each worker. False: there were none."""
    cdef bint found = False
    cdef uint64_t lost = 0
    cdef int i
    pieces_catch_up(&reader.pieces)
    for i in range(reader.count):
        if _read(reader, reader.loops[i].pump.tap):
            found = True
        if tap_release(reader.loops[i].pump.tap):
            poller_wake(reader.loops[i].pump.poller)
        lost += sync_peek(&reader.loops[i].pump.tap.lost)
    sync_bump(&reader.file.left_out, lost - reader.lost)
    reader.lost = lost
    if found:
        sync_add(&reader.passes, 1)
    return found


cdef int _read(Reader *reader, Tap *tap) noexcept nogil:
    cdef const TapRecord *record
    cdef int count = 0
    while count < AT_ONCE and not savefile_full(&reader.file):
        record = tap_next(tap)
        if record == NULL:
            break
        _take(reader, record)
        tap_done(tap, record)
        count += 1
    return count


cdef void _sleep(Reader *reader, uint64_t how, int timeout_ms) noexcept nogil:
    cdef bint empty = True
    cdef int i
    for i in range(reader.count):
        empty &= tap_sleep(reader.loops[i].pump.tap, how)
    if empty and not sync_check(&reader.finishing):
        net_await_wake(reader.bell, timeout_ms)
    for i in range(reader.count):
        tap_awake(reader.loops[i].pump.tap)


# --- a record ---

cdef void _take(Reader *reader, const TapRecord *record) noexcept nogil:
    cdef Seen **place = &reader.seen[record.id % READER_BUCKETS]
    cdef Seen *seen
    if record.kind == TAP_OPEN:
        seen = <Seen *> calloc(1, sizeof(Seen))
        if seen == NULL:
            sync_bump(&reader.file.left_out, 1)
            return                          # no memory: all records of the connection are skipped
        reader.live += 1
        seen.id = record.id
        seen.next = place[0]
        place[0] = seen
        if reader.store.most:
            seen.recording = recordings_open(&reader.store, record)
        if reader.capturing:
            sync_bump(&reader.file.connections if reader.file.fd >= 0 else &reader.file.left_out, 1)
            _lost_unless(reader, savefile_add(&reader.file, &seen.flow, record, tap_body(record)))
        return
    while place[0] != NULL and place[0].id != record.id:
        place = &place[0].next
    seen = place[0]
    if seen == NULL:
        return
    if seen.recording != NULL:
        recordings_add(&reader.store, seen.recording, record)
    if reader.capturing:
        _lost_unless(reader, savefile_add(&reader.file, &seen.flow, record, tap_body(record)))
    if reader.pieces.most:
        pieces_add(&reader.pieces, &seen.missing, record)
    if record.kind == TAP_END:
        place[0] = seen.next
        free(seen)
        reader.live -= 1


cdef bint _lost_unless(Reader *reader, bint written) noexcept nogil:
    """After a failed write, counts the live connections as left out."""
    if not written:
        sync_bump(&reader.file.left_out, reader.live)
    return written


cdef void _write_waits(void *owner, uint64_t since_ns) noexcept nogil:
    """Tells the log thread, once, that a slow write of the capture delays a worker."""
    cdef Reader *reader = <Reader *> owner
    cdef int i
    if reader.told or clock_ns() - since_ns < SLOW_NS:
        return
    for i in range(reader.count):
        if sync_load(&reader.loops[i].pump.tap.waiting):
            reader.told = True
            sync_swap(&reader.slow, 1)
            net_wake(reader.pieces.ring.wakeup)
            return


# --- other threads ---

cdef void reader_finish(Reader *reader) noexcept nogil:
    sync_swap(&reader.finishing, 1)
    reader_wake(reader)


cdef void reader_wake(Reader *reader) noexcept nogil:
    if reader.bell_writer != NET_NONE:
        net_wake(reader.bell_writer)


cdef void reader_mark(Reader *reader, uint64_t *marks) noexcept nogil:
    cdef int i
    for i in range(reader.count):
        marks[i] = sync_check(&reader.loops[i].pump.tap.written)
    reader_wake(reader)


cdef bint reader_await(Reader *reader, const uint64_t *marks, uint64_t until_ns) noexcept nogil:
    cdef int i
    for i in range(reader.count):
        while sync_load(&reader.loops[i].pump.tap.taken) < marks[i] and sync_load(&reader.running):
            if clock_ns() >= until_ns:
                return False
            thread_nap_us(NAP_US)
    return True


cdef uint64_t reader_wait_change(Reader *reader, uint64_t seen, uint64_t until_ns) noexcept nogil:
    sync_add(&reader.hurry, 1)
    reader_wake(reader)
    while sync_load(&reader.passes) == seen and sync_load(&reader.running) and clock_ns() < until_ns:
        thread_nap_us(NAP_US)
    sync_sub(&reader.hurry, 1)
    return sync_load(&reader.passes)
