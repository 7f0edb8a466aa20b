# The second door: the reader of the taps. Its thread takes the records of all workers of a proxy, without the GIL, for as long as
# they run, and gives them to the recordings, to the file of a capture and, for a dump, to the log thread. It never waits for
# Python: a program that holds the GIL, or stands still, does not hold up the traffic that it records. Only a rotation of files
# waits, for each next one.
from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport UINT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy
from tcpproxy._core.events cimport events_reason_name
from tcpproxy._core.loop cimport CLIENT, UPSTREAM, WORKERS, Loop
from tcpproxy._core.net cimport NET_NONE, net_addr, net_await_wake, net_close, net_pack, net_socket, net_wake, net_wake_pair
from tcpproxy._core.packets cimport PACKETS_BLOCK, Flow, pcapng_interface, pcapng_name, pcapng_start
from tcpproxy._core.pieces cimport Missing, Pieces, pieces_add, pieces_catch_up, pieces_free, pieces_init
from tcpproxy._core.poller cimport poller_wake
from tcpproxy._core.recordings cimport Chunk, Recordings, recordings_add, recordings_drop, recordings_free, \
    recordings_lock, recordings_open, recordings_unlock
from tcpproxy._core.recordings cimport Recording as _Recording
from tcpproxy._core.savefile cimport SaveFile, savefile_add, savefile_begin, savefile_end, savefile_flush, savefile_free, \
    savefile_full, savefile_init
from tcpproxy._core.sync cimport sync_add, sync_bump, sync_check, sync_load, sync_store, sync_sub, sync_swap
from tcpproxy._core.tap cimport TAP_DATA, TAP_END, TAP_FIN, TAP_GAP, TAP_GATHERS, TAP_LOST, TAP_OPEN, TAP_RST, \
    TAP_SLEEPS, Tap, TapEnd, TapRecord, tap_awake, tap_body, tap_done, tap_next, tap_release, tap_sleep
from tcpproxy._core.thread cimport clock_ns, thread_block_sigpipe, thread_nap_us
from tcpproxy._core.worker cimport Worker, address_text

import time

cdef enum:
    BUCKETS = 4096          # of the table of connections
    AT_ONCE = 64            # records of one worker before their memory is given back
    GATHER_MS = 10          # the reader wakes no more often while records come, unless somebody waits for them
    NAP_US = 50             # of a Python thread that waits for the reader
    SLICE_MS = 50           # such a thread looks for Ctrl-C and other signals so often

_PIECE_KINDS = {TAP_DATA: "data", TAP_FIN: "fin", TAP_RST: "rst", TAP_END: "end", TAP_GAP: "gap", TAP_LOST: "lost"}

cdef struct Seen:           # a live connection
    Seen *next
    uint64_t id
    _Recording *recording   # NULL: none
    Flow flow               # of the capture
    Missing *missing        # of pieces.pxd

cdef enum:                  # why the reader returns to Python
    RUN_ENDED = 0
    RUN_FULL                # the file of the capture has the size at which another one begins
    RUN_FAILED              # a write to it has failed

_RUN = ("", "full", "failed")


def file_head(str application, str system, str name, str description, str host, addresses):
    """The blocks at the beginning of a capture file, with one interface.

    Args:
        application, system: what has written it, and where.
        name, description: of the interface.
        host: a name, and
        addresses: what it resolved to, as (raw IP, port, scope id).
    """
    cdef uint8_t block[PACKETS_BLOCK]
    cdef net_addr addr
    made = (<char *> block)[:pcapng_start(block, application.encode(), system.encode())]
    made += (<char *> block)[:pcapng_interface(block, name.encode(), description.encode())]
    for ip, _, _ in addresses:
        if net_pack(&addr, PyBytes_AsString(ip), len(ip), 0, 0) == 0:
            made += (<char *> block)[:pcapng_name(block, &addr, host.encode())]
    return made


cdef class TapReader

cdef class Recording:
    """What has passed through one connection: its first bytes in each direction, copied when they are asked for."""
    cdef TapReader reader
    cdef _Recording *it

    def __dealloc__(self):
        if self.it != NULL and not self.reader.abandoned:
            recordings_drop(&self.reader.store, self.it)

    cdef int _check(self) except -1:
        """A fork may have copied the memory in the middle of a change, under a lock that nobody opens in the child."""
        if self.reader.abandoned:
            raise RuntimeError("a recording can be read in the process of its proxy only, not in a forked one")
        return 0

    @property
    def id(self):
        return self.it.id

    def facts(self):
        """(client, upstream, reason, ended, truncated, bytes kept of client and upstream, bytes that they sent)."""
        cdef _Recording copy
        self._check()
        recordings_lock(&self.reader.store)
        copy = self.it[0]
        recordings_unlock(&self.reader.store)
        return (address_text(&copy.client), address_text(&copy.upstream), events_reason_name(copy.reason).decode(),
                bool(copy.ended), bool(copy.truncated), copy.streams[CLIENT].kept, copy.streams[UPSTREAM].kept,
                copy.streams[CLIENT].total, copy.streams[UPSTREAM].total)

    def data(self, int side, uint64_t start=0):
        """What the client (0) or upstream (1) has sent, as far as it is kept, from a byte on."""
        cdef uint64_t kept
        self._check()
        recordings_lock(&self.reader.store)
        kept = self.it.streams[side].kept
        recordings_unlock(&self.reader.store)
        if start >= kept:
            return b""
        # The object is made outside the lock: that may run any code. More bytes may come meanwhile, none goes.
        made = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> (kept - start))
        cdef char *to = PyBytes_AsString(made)
        with nogil:
            recordings_lock(&self.reader.store)
            memcpy(to, self.it.streams[side].bytes + start, kept - start)
            recordings_unlock(&self.reader.store)
        return made

    def chunks(self):
        """Each read whose bytes are kept: (side, bytes, seconds since accept)."""
        cdef uint32_t i, count
        cdef Chunk *chunks
        self._check()
        recordings_lock(&self.reader.store)
        count = self.it.chunk_count
        chunks = <Chunk *> malloc((count or 1) * sizeof(Chunk))
        if chunks != NULL:
            memcpy(chunks, self.it.chunks, count * sizeof(Chunk))
        recordings_unlock(&self.reader.store)
        if chunks == NULL:
            raise MemoryError
        try:
            return [(chunks[i].side, chunks[i].size, (chunks[i].time_ns - self.it.opened_ns) / 1e9) for i in range(count)]
        finally:
            free(chunks)


cdef class TapReader:
    """Reads the taps of these workers, which are linked and do not run yet.

    Args of the constructor: `record`: bytes to keep of each direction of each connection; 0: none. `capture`: `switch` will be
    called before `run`. `show`: bytes of each
    read that the log thread gets as pieces; 0: none. `wakeup`: the socket that wakes the log thread for them.
    """
    cdef list workers
    cdef Loop *loops[WORKERS]
    cdef int count
    cdef net_socket bell            # a byte wakes the reader
    cdef net_socket bell_writer
    cdef Seen *seen[BUCKETS]
    cdef Recordings store
    cdef SaveFile file
    cdef bint capturing
    cdef uint64_t live              # connections in `seen`
    cdef Pieces pieces
    cdef int64_t since_1970         # what to add to clock_ns; from the start, so that no piece is before an earlier one
    cdef uint64_t running           # from the start, so that nobody finds a thread that has not begun
    cdef uint64_t finishing         # no worker runs any more
    cdef uint64_t passes            # grows whenever the reader has taken records
    cdef uint64_t hurry             # threads that wait for records
    cdef bint abandoned             # in a forked child

    def __cinit__(self, workers, *, uint64_t record=0, bint capture=False, uint32_t show=0, net_socket wakeup=NET_NONE):
        cdef Worker worker
        cdef int rc
        self.bell = self.bell_writer = NET_NONE
        self.workers = list(workers)
        rc = net_wake_pair(&self.bell, &self.bell_writer)
        if rc < 0:
            raise OSError(-rc, "no descriptor for the reader of a tap")
        self.store.most = record
        self.since_1970 = <int64_t> time.time_ns() - <int64_t> clock_ns()
        self.capturing = capture
        self.file.fd = -1                   # no file: 0 would be stdin
        if capture and savefile_init(&self.file) < 0:
            raise MemoryError
        self.file.packets.wall_ns = self.since_1970
        if pieces_init(&self.pieces, show) < 0:
            raise MemoryError
        self.pieces.ring.wakeup = wakeup
        for worker in self.workers:
            if worker.loop.pump.tap == NULL:
                raise ValueError("a worker without a tap")
            worker.loop.pump.tap.wakeup = self.bell_writer
            self.loops[self.count] = worker.loop
            self.count += 1
        sync_store(&self.running, 1)

    def __dealloc__(self):
        cdef Seen *seen
        cdef int i
        if self.abandoned:
            return
        self._close()
        pieces_free(&self.pieces)
        for i in range(BUCKETS):
            while self.seen[i] != NULL:
                seen = self.seen[i]
                self.seen[i] = seen.next
                if seen.recording != NULL:
                    recordings_drop(&self.store, seen.recording)
                free(seen)
        recordings_free(&self.store)
        savefile_free(&self.file)

    def run(self):
        """Reads, in the calling thread, until finish() was called and everything is taken.

        Returns an empty text then, and earlier, to be called again, with `full`: the file of the capture is, and ended; and
        `failed`: a write to it has failed, and no more of the capture is written.
        """
        cdef int why
        thread_block_sigpipe()
        with nogil:
            why = self._run()
        if why == RUN_ENDED:
            sync_store(&self.running, 0)
        return _RUN[why]

    def finish(self):
        """Makes run() return. For when all workers have ended, or none has started."""
        sync_swap(&self.finishing, 1)
        self._wake()

    def close(self):
        """Closes its descriptors, once run() has returned or was never called."""
        self._close()

    def close_after_fork(self):
        """In a forked child: closes the copies of the descriptors. The reader runs on in the parent only."""
        self.abandoned = True
        self._close()
        sync_store(&self.running, 0)        # no thread of the child waits for it

    cdef void _close(self) noexcept nogil:
        if self.bell != NET_NONE:
            net_close(self.bell)
            net_close(self.bell_writer)
            self.bell = self.bell_writer = NET_NONE

    cdef void _wake(self) noexcept nogil:
        if self.bell_writer != NET_NONE:
            net_wake(self.bell_writer)

    # --- the thread ---

    cdef int _run(self) noexcept nogil:
        cdef bint gathered = False
        cdef bint failed = sync_load(&self.file.error) != 0
        while True:
            if self._read_all():
                gathered = False
                if savefile_full(&self.file) and self._lost_unless(savefile_end(&self.file)):
                    return RUN_FULL
            elif not self._lost_unless(savefile_flush(&self.file)):
                pass
            elif sync_load(&self.finishing):
                if not self._read_all():        # records may have come before it was set
                    self._lost_unless(savefile_end(&self.file))
                    if failed or not sync_load(&self.file.error):
                        return RUN_ENDED
            elif gathered or sync_check(&self.hurry):
                self._sleep(TAP_SLEEPS, -1)
                gathered = False
            else:
                self._sleep(TAP_GATHERS, GATHER_MS)
                gathered = True
            if not failed and sync_load(&self.file.error):
                return RUN_FAILED

    cdef bint _read_all(self) noexcept nogil:
        """Takes some records of each worker. False: there were none."""
        cdef bint found = False
        cdef int i
        pieces_catch_up(&self.pieces)
        for i in range(self.count):
            if self._read(self.loops[i].pump.tap):
                found = True
            if tap_release(self.loops[i].pump.tap):
                poller_wake(self.loops[i].pump.poller)
        if found:
            sync_add(&self.passes, 1)
        return found

    cdef int _read(self, Tap *tap) noexcept nogil:
        cdef const TapRecord *record
        cdef int count = 0
        while count < AT_ONCE and not savefile_full(&self.file):
            record = tap_next(tap)
            if record == NULL:
                break
            self._take(record)
            tap_done(tap, record)
            count += 1
        return count

    cdef void _sleep(self, uint64_t how, int timeout_ms) noexcept nogil:
        cdef bint empty = True
        cdef int i
        for i in range(self.count):
            empty &= tap_sleep(self.loops[i].pump.tap, how)
        if empty and not sync_check(&self.finishing):
            net_await_wake(self.bell, timeout_ms)
        for i in range(self.count):
            tap_awake(self.loops[i].pump.tap)

    # --- a record ---

    cdef void _take(self, const TapRecord *record) noexcept nogil:
        cdef Seen **place = &self.seen[record.id % BUCKETS]
        cdef Seen *seen
        if record.kind == TAP_OPEN:
            seen = <Seen *> calloc(1, sizeof(Seen))
            if seen == NULL:
                sync_bump(&self.file.left_out, 1)
                return                          # no memory: the connection is not seen at all
            self.live += 1
            seen.id = record.id
            seen.next = place[0]
            place[0] = seen
            if self.store.most:
                seen.recording = recordings_open(&self.store, record)
            if self.capturing:
                sync_bump(&self.file.connections if self.file.fd >= 0 else &self.file.left_out, 1)
                self._lost_unless(savefile_add(&self.file, &seen.flow, record, tap_body(record)))
            return
        while place[0] != NULL and place[0].id != record.id:
            place = &place[0].next
        seen = place[0]
        if seen == NULL:
            return
        if seen.recording != NULL:
            recordings_add(&self.store, seen.recording, record)
        if self.capturing:
            self._lost_unless(savefile_add(&self.file, &seen.flow, record, tap_body(record)))
        if self.pieces.most:
            pieces_add(&self.pieces, &seen.missing, record)
        if record.kind == TAP_END:
            place[0] = seen.next
            free(seen)
            self.live -= 1

    # --- the capture ---

    cdef bint _lost_unless(self, bint written) noexcept nogil:
        """After a write that has failed the live connections are left out."""
        if not written:
            sync_bump(&self.file.left_out, self.live)
        return written

    def switch(self, int fd, bint regular, uint64_t size, bytes head, uint64_t limit=0):
        """Begins a file. Between calls of run(), by the same thread, or before the first one.

        Args:
            fd: which the caller keeps open until run() returns.
            regular: it is a file, and no pipe or device.
            size: its position.
            head: the blocks of file_head.
            limit: its size when run() shall return `full`; 0: never.
        """
        savefile_begin(&self.file, fd, regular, size, PyBytes_AsString(head), len(head), limit)

    def leave(self, int error):
        """Ends the capture behind a file that is full. Between calls of run(), by the same thread.

        Args:
            error: why no other file begins; 0: none was asked for.
        """
        sync_bump(&self.file.left_out, self.live)
        sync_store(&self.file.error, error)

    def give_up(self):
        """A write to a pipe that nobody reads fails now. From any thread."""
        sync_swap(&self.file.given_up, 1)

    def captured(self):
        """(packets, connections, bytes, connections that are left out or not there to their end, errno that has ended it)."""
        return (sync_load(&self.file.count), sync_load(&self.file.connections), sync_load(&self.file.written),
                sync_load(&self.file.left_out), sync_load(&self.file.error))

    # --- for other threads ---

    def sync(self, double timeout=-1.0):
        """Returns when all that the workers have recorded until now was taken.

        A worker records bytes before it sends them. So what a peer has received is in the recordings afterwards.

        It may take for ever: the reader stands still as long as the program that reads the pipe of a capture.

        Args:
            timeout: seconds; -1: for ever. Handlers of signals are called meanwhile, and may raise.

        Returns:
            False if the time was over first.
        """
        cdef uint64_t marks[WORKERS]
        cdef uint64_t now = clock_ns(), until
        cdef uint64_t deadline = now + <uint64_t> (timeout * 1e9) if timeout >= 0 else UINT64_MAX
        cdef int i
        cdef bint taken
        for i in range(self.count):
            marks[i] = sync_check(&self.loops[i].pump.tap.written)
        self._wake()
        while True:
            until = min(now + SLICE_MS * 1000000, deadline)
            with nogil:
                taken = self._await(marks, until)
                now = clock_ns()
            if taken or now >= deadline:
                return taken
            PyErr_CheckSignals()

    cdef bint _await(self, const uint64_t *marks, uint64_t until) noexcept nogil:
        """False: it has not come so far by then."""
        cdef int i
        for i in range(self.count):
            while sync_load(&self.loops[i].pump.tap.taken) < marks[i] and sync_load(&self.running):
                if clock_ns() >= until:
                    return False
                thread_nap_us(NAP_US)
        return True

    def wait_change(self, uint64_t seen, double timeout):
        """Waits until the reader has taken records since it returned `seen` (0: at once), or `timeout` seconds are over.

        Returns the number to give next time.
        """
        cdef uint64_t until = clock_ns() + <uint64_t> (timeout * 1e9)
        sync_add(&self.hurry, 1)
        self._wake()
        with nogil:
            while sync_load(&self.passes) == seen and sync_load(&self.running) and clock_ns() < until:
                thread_nap_us(NAP_US)
        sync_sub(&self.hurry, 1)
        return sync_load(&self.passes)

    def recordings(self):
        """All that are kept, as Recording objects, in the order of accept."""
        cdef uint64_t count = 0, room = sync_load(&self.store.count) + 16
        cdef _Recording **found
        cdef _Recording *it
        cdef Recording made
        if self.abandoned:
            return []
        # Objects are made outside the lock, since that may run any code: so the recordings get their users first.
        found = <_Recording **> malloc(room * sizeof(_Recording *))
        if found == NULL:
            raise MemoryError
        recordings_lock(&self.store)
        it = self.store.first
        while it != NULL and count < room:
            it.users += 1
            found[count] = it
            count += 1
            it = it.next
        recordings_unlock(&self.store)
        objects = []
        for i in range(count):
            made = Recording.__new__(Recording)
            made.reader, made.it = self, found[i]
            objects.append(made)
        free(found)
        return objects

    @property
    def forgotten(self):
        """Recordings that are not kept any more: the oldest ones, and those for which there was no memory."""
        recordings_lock(&self.store)
        cdef uint64_t count = self.store.forgotten
        recordings_unlock(&self.store)
        return count

    # --- for the log thread ---

    def now(self):
        """The time by the clock of the pieces: in nanoseconds since 1970."""
        return <int64_t> clock_ns() + self.since_1970

    def take(self, int most):
        """Up to `most` pieces: (kind, id, side, nanoseconds since 1970, offset, bytes, data)."""
        cdef const TapRecord *record
        taken = []
        if not self.pieces.most:
            return taken
        if sync_load(&self.finishing) and not sync_load(&self.running):
            pieces_catch_up(&self.pieces)       # the reader has ended, and leaves it to this thread
        while len(taken) < most:
            record = tap_next(&self.pieces.ring)
            if record == NULL:
                break
            taken.append(self._piece(record))
            tap_done(&self.pieces.ring, record)
        if tap_release(&self.pieces.ring):
            self._wake()
        return taken

    cdef object _piece(self, const TapRecord *record):
        cdef uint64_t size = record.whole
        cdef int64_t when = <int64_t> record.time_ns + self.since_1970
        data = b""
        if record.kind == TAP_DATA:
            data = PyBytes_FromStringAndSize(tap_body(record), record.size)
        elif record.kind == TAP_END:
            size = 0
            data = <bytes> events_reason_name((<const TapEnd *> tap_body(record)).reason)
        elif record.kind not in (TAP_FIN, TAP_RST):
            memcpy(&size, tap_body(record), sizeof(size))
        return (_PIECE_KINDS[record.kind], record.id, record.side, when, record.offset, size, data)

    def await_pieces(self):
        """From now on the next piece wakes the log thread. False: there are pieces already."""
        return not self.pieces.most or tap_sleep(&self.pieces.ring, TAP_SLEEPS)

    @property
    def total(self):
        """Bytes that were read, whether the log thread got them or not. 0 without pieces."""
        return sync_load(&self.pieces.total)
