# One recording, as Python sees it.
cimport cython
from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from tcpproxy._core.events cimport events_reason_name
from tcpproxy._core.loop cimport CLIENT, UPSTREAM
from tcpproxy._core.recordings cimport Chunk, recordings_drop, recordings_lock, recordings_unlock
from tcpproxy._core.recordings cimport Recording as CRecording
from tcpproxy._core.worker cimport address_text


@cython.no_gc_clear          # its end needs the owner
cdef class Recording:
    """The first bytes of a connection in each direction, which are copied when they are read."""

    def __dealloc__(self):
        if self.it != NULL and not self.reader.abandoned:
            recordings_drop(&self.reader.store, self.it)

    cdef int _check(self) except -1:
        """Raises in a forked child: the fork may have copied the memory during a change, with a lock that stays locked."""
        if self.reader.abandoned:
            raise RuntimeError("a recording can be read in the process of its proxy only, not in a forked one")
        return 0

    @property
    def id(self):
        return self.it.id

    def facts(self):
        """(client, upstream, reason, ended, truncated, bytes kept of client and upstream, bytes that they sent)."""
        cdef CRecording copy
        self._check()
        recordings_lock(&self.reader.store)
        copy = self.it[0]
        recordings_unlock(&self.reader.store)
        return (address_text(&copy.client), address_text(&copy.upstream), events_reason_name(copy.reason).decode(),
                bool(copy.ended), bool(copy.truncated), copy.streams[CLIENT].kept, copy.streams[UPSTREAM].kept,
                copy.streams[CLIENT].total, copy.streams[UPSTREAM].total)

    def data(self, int side, uint64_t start=0):
        """The kept bytes that the client (0) or upstream (1) has sent, from position `start` on."""
        cdef uint64_t kept
        self._check()
        recordings_lock(&self.reader.store)
        kept = self.it.streams[side].kept
        recordings_unlock(&self.reader.store)
        if start >= kept:
            return b""
        # The object is made outside the lock, because that may run any code. Meanwhile bytes are only added, never removed.
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
