# The second door: the reader of the taps, and what it has for Python: the numbers of a capture, recordings, and pieces for the
# log thread.
from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport ENOMEM
from libc.stdint cimport UINT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from tcpproxy._core.events cimport events_reason_name
from tcpproxy._core.loop cimport WORKERS
from tcpproxy._core.net cimport NET_NONE, net_addr, net_pack, net_socket
from tcpproxy._core.pcapng cimport PCAPNG_BLOCK, pcapng_interface, pcapng_name, pcapng_start
from tcpproxy._core.pieces cimport pieces_catch_up
from tcpproxy._core.reader cimport Reader, reader_add, reader_await, reader_close, reader_finish, reader_free, reader_init, \
    reader_mark, reader_run, reader_wait_change, reader_wake
from tcpproxy._core.recorded cimport Recording
from tcpproxy._core.recordings cimport Recording as CRecording
from tcpproxy._core.recordings cimport recordings_lock, recordings_unlock
from tcpproxy._core.savefile cimport savefile_begin
from tcpproxy._core.sync cimport sync_bump, sync_load, sync_store, sync_swap
from tcpproxy._core.tap cimport TAP_DATA, TAP_END, TAP_FIN, TAP_GAP, TAP_LOST, TAP_RST, TAP_SLEEPS, TapEnd, TapRecord, tap_body, \
    tap_done, tap_next, tap_release, tap_sleep
from tcpproxy._core.thread cimport clock_ns
from tcpproxy._core.worker cimport Worker

import time

cdef enum:
    SLICE_MS = 50           # a thread that waits for the reader looks for Ctrl-C and other signals so often

_PIECE_KINDS = {TAP_DATA: "data", TAP_FIN: "fin", TAP_RST: "rst", TAP_END: "end", TAP_GAP: "gap", TAP_LOST: "lost"}
_RUN = ("", "full", "failed")   # by READER_


def file_head(str application, str system, str name, str description, names):
    """The blocks at the beginning of a capture file, with one interface.

    Args:
        application, system: what has written it, and where.
        name, description: of the interface.
        names: hosts, each with what it resolved to, as (raw IP, port, scope id).
    """
    cdef uint8_t block[PCAPNG_BLOCK]
    cdef net_addr addr
    made = (<char *> block)[:pcapng_start(block, application.encode(), system.encode())]
    made += (<char *> block)[:pcapng_interface(block, name.encode(), description.encode())]
    for host, addresses in names:
        for ip, _, _ in addresses:
            if net_pack(&addr, PyBytes_AsString(ip), len(ip), 0, 0) == 0:
                made += (<char *> block)[:pcapng_name(block, &addr, host.encode())]
    return made


cdef class TapReader:
    """Reads the taps of these workers, which are linked and do not run yet.

    Args of the constructor: `record`: bytes to keep of each direction of each connection; 0: none. `capture`: `switch` will be
    called before `run`. `show`: bytes of each read that the log thread gets as pieces; 0: none. `wakeup`: the socket that wakes
    the log thread for them.
    """
    cdef list workers
    cdef Reader it
    cdef bint made                  # `it` is not all zeros
    cdef int64_t since_1970         # what to add to clock_ns; from the start, so that no piece is before an earlier one

    def __cinit__(self, workers, *, uint64_t record=0, bint capture=False, uint32_t show=0, net_socket wakeup=NET_NONE):
        cdef Worker worker
        cdef int rc = reader_init(&self.it, record, capture, show)
        self.made = True
        self.workers = list(workers)
        if rc == -ENOMEM:
            raise MemoryError
        if rc < 0:
            raise OSError(-rc, "no descriptor for the reader of a tap")
        self.since_1970 = <int64_t> time.time_ns() - <int64_t> clock_ns()
        self.it.file.packets.wall_ns = self.since_1970
        self.it.pieces.ring.wakeup = wakeup
        for worker in self.workers:
            if worker.loop.pump.tap == NULL:
                raise ValueError("a worker without a tap")
            reader_add(&self.it, worker.loop)

    def __dealloc__(self):
        if self.made and not self.it.abandoned:
            reader_free(&self.it)

    def run(self):
        """Reads, in the calling thread, until finish() was called and everything is taken.

        Returns an empty text then, and earlier, to be called again, with `full`: the file of the capture is, and ended; and
        `failed`: a write to it has failed, and no more of the capture is written.
        """
        cdef int why
        with nogil:
            why = reader_run(&self.it)
        return _RUN[why]

    def finish(self):
        """Makes run() return. For when all workers have ended, or none has started."""
        reader_finish(&self.it)

    def close(self):
        """Closes its descriptors, once run() has returned or was never called."""
        reader_close(&self.it)

    def close_after_fork(self):
        """In a forked child: closes the copies of the descriptors. The reader runs on in the parent only."""
        self.it.abandoned = True
        reader_close(&self.it)
        sync_store(&self.it.running, 0)         # no thread of the child waits for it

    # --- the capture ---

    def switch(self, int fd, bint regular, uint64_t size, bytes head, uint64_t limit=0):
        """Begins a file. Between calls of run(), by the same thread, or before the first one.

        Args:
            fd: which the caller keeps open until run() returns.
            regular: it is a file, and no pipe or device.
            size: its position.
            head: the blocks of file_head.
            limit: its size when run() shall return `full`; 0: never.
        """
        savefile_begin(&self.it.file, fd, regular, size, PyBytes_AsString(head), len(head), limit)

    def leave(self, int error):
        """Ends the capture after a file that is full. To be called between calls of run(), by the same thread.

        Args:
            error: why no other file begins; 0: none was asked for.
        """
        sync_bump(&self.it.file.left_out, self.it.live)
        sync_store(&self.it.file.error, error)

    def give_up(self):
        """A write to a pipe that nobody reads fails now. From any thread."""
        sync_swap(&self.it.file.given_up, 1)

    def captured(self):
        """(packets, connections, bytes, connections that are left out or not there to their end, errno that has ended it)."""
        return (sync_load(&self.it.file.count), sync_load(&self.it.file.connections), sync_load(&self.it.file.written),
                sync_load(&self.it.file.left_out), sync_load(&self.it.file.error))

    def slow(self):
        """Does the capture hold traffic up? True once, for the log thread, which is woken for that."""
        return bool(sync_load(&self.it.slow) and sync_swap(&self.it.slow, 0))

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
        cdef bint taken
        reader_mark(&self.it, marks)
        while True:
            until = min(now + SLICE_MS * 1000000, deadline)
            with nogil:
                taken = reader_await(&self.it, marks, until)
                now = clock_ns()
            if taken or now >= deadline:
                return taken
            PyErr_CheckSignals()

    def wait_change(self, uint64_t seen, double timeout):
        """Waits until the reader has taken records since it returned `seen` (0: at once), or `timeout` seconds are over.

        Returns the number to give next time.
        """
        cdef uint64_t until_ns = clock_ns() + <uint64_t> (timeout * 1e9)
        with nogil:
            seen = reader_wait_change(&self.it, seen, until_ns)
        return seen

    def recordings(self):
        """All that are kept, as Recording objects, in the order of accept."""
        cdef uint64_t count = 0, room = sync_load(&self.it.store.count) + 16
        cdef CRecording **found
        cdef CRecording *it
        cdef Recording made
        if self.it.abandoned:
            return []
        # Objects are made outside the lock, since that may run any code: so the recordings get their users first.
        found = <CRecording **> malloc(room * sizeof(CRecording *))
        if found == NULL:
            raise MemoryError
        recordings_lock(&self.it.store)
        it = self.it.store.first
        while it != NULL and count < room:
            it.users += 1
            found[count] = it
            count += 1
            it = it.next
        recordings_unlock(&self.it.store)
        objects = []
        for i in range(count):
            made = Recording.__new__(Recording)
            made.owner = self
            made.reader, made.it = &self.it, found[i]
            objects.append(made)
        free(found)
        return objects

    @property
    def forgotten(self):
        """Recordings that are not kept any more: the oldest ones, and those for which there was no memory."""
        recordings_lock(&self.it.store)
        cdef uint64_t count = self.it.store.forgotten
        recordings_unlock(&self.it.store)
        return count

    # --- for the log thread ---

    def now(self):
        """The time by the clock of the pieces: in nanoseconds since 1970."""
        return <int64_t> clock_ns() + self.since_1970

    def take(self, int most):
        """Up to `most` pieces: (kind, id, side, nanoseconds since 1970, offset, bytes, data)."""
        cdef const TapRecord *record
        taken = []
        if not self.it.pieces.most:
            return taken
        if sync_load(&self.it.finishing) and not sync_load(&self.it.running):
            pieces_catch_up(&self.it.pieces)       # the reader has ended, and leaves it to this thread
        while len(taken) < most:
            record = tap_next(&self.it.pieces.ring)
            if record == NULL:
                break
            taken.append(self._piece(record))
            tap_done(&self.it.pieces.ring, record)
        if tap_release(&self.it.pieces.ring):
            reader_wake(&self.it)
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
        return not self.it.pieces.most or tap_sleep(&self.it.pieces.ring, TAP_SLEEPS)

    @property
    def total(self):
        """Bytes that were read, whether the log thread got them or not. 0 without pieces."""
        return sync_load(&self.it.pieces.total)
