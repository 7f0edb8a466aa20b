# The file of a capture: the model is in savefile.pxd.
from libc.errno cimport EAGAIN, EINTR, EIO, ENOMEM, ETIMEDOUT
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from tcpproxy._core.packets cimport PACKETS_ROOM, packets_append
from tcpproxy._core.pcapng cimport PCAPNG_BLOCK, PCAPNG_PACKET, pcapng_end
from tcpproxy._core.sync cimport sync_bump, sync_load, sync_store
from tcpproxy._core.tap cimport TAP_END
from tcpproxy._core.thread cimport clock_ns, thread_nap_us

cdef extern from "file.h" nogil:
    int64_t file_write(int fd, const void *data, uint64_t size)
    int file_truncate(int fd, uint64_t size)
    bint file_await_room(int fd, int timeout_ms)

cdef enum:
    PIECE = 4096            # PIPE_BUF: poll reports room for it, and a write of it does not block then
    LOOK_MS = 100           # how often a writer that waits looks whether it is given up
    NAP_US = 1000


cdef int savefile_init(SaveFile *file) noexcept nogil:
    memset(file, 0, sizeof(SaveFile))
    file.fd = -1
    file.gathered = <uint8_t *> malloc(SAVEFILE_ROOM)
    return 0 if file.gathered != NULL else -ENOMEM


cdef void savefile_free(SaveFile *file) noexcept nogil:
    free(file.gathered)
    file.gathered = NULL


cdef void savefile_begin(SaveFile *file, int fd, bint regular, uint64_t size, const void *head, uint32_t head_size,
                         uint64_t limit) noexcept nogil:
    file.fd = fd
    file.regular = regular
    file.size = size
    file.limit = limit
    memcpy(file.gathered, head, head_size)
    file.used = head_size
    file.before = file.packets.count
    file.since_ns = clock_ns() + file.packets.wall_ns


cdef bint savefile_full(const SaveFile *file) noexcept nogil:
    if file.fd < 0 or file.limit == 0 or file.packets.count == file.before:     # one packet at least, whatever the head has
        return False
    return file.size + file.used + PCAPNG_BLOCK >= file.limit


cdef bint savefile_add(SaveFile *file, Flow *flow, const TapRecord *record, const void *body) noexcept nogil:
    if file.fd >= 0 and file.used + PACKETS_ROOM > SAVEFILE_ROOM and not savefile_flush(file):
        return False
    if file.fd >= 0:
        file.used += packets_append(&file.packets, flow, record, body, file.gathered + file.used)
        file.ended += record.kind == TAP_END
    return True


cdef bint savefile_flush(SaveFile *file) noexcept nogil:
    cdef uint64_t done = 0, since_ns = clock_ns()
    cdef int64_t rc
    if file.fd < 0:
        return True
    while done < file.used:
        rc = _write_some(file, file.gathered + done, file.used - done, since_ns)
        if rc < 0:
            _fail(file, done, <int> -rc)
            return False
        done += rc
    file.size += done
    file.used = file.ended = 0
    sync_bump(&file.written, done)
    sync_store(&file.count, file.packets.count)
    if done:
        file.waits(file.owner, since_ns)
    return True


cdef int64_t _write_some(SaveFile *file, const uint8_t *data, uint64_t size, uint64_t since_ns) noexcept nogil:
    # Waits until something is written. Returns its size, or -errno.
    cdef int64_t rc
    while True:
        if file.regular or file_await_room(file.fd, LOOK_MS):
            rc = file_write(file.fd, data, size if file.regular else min(size, <uint64_t> PIECE))
            if rc > 0:
                return rc
            if rc == 0:
                return -EIO
            if rc != -EINTR and rc != -EAGAIN:
                return rc
            if rc == -EAGAIN:
                thread_nap_us(NAP_US)
        if sync_load(&file.given_up):
            return -ETIMEDOUT
        file.waits(file.owner, since_ns)


cdef void _fail(SaveFile *file, uint64_t done, int error) noexcept nogil:
    # The first `done` of the gathered bytes are in the file. Truncates it after the last whole block.
    cdef uint64_t whole = 0
    cdef uint32_t block[2]          # type and length
    while whole < done:
        memcpy(block, file.gathered + whole, 8)
        if whole + block[1] > done:
            break
        whole += block[1]
        if block[0] == PCAPNG_PACKET:
            sync_bump(&file.count, 1)
    if file.regular:
        file_truncate(file.fd, file.size + whole)
    sync_bump(&file.written, whole)
    file.fd = -1
    file.used = 0
    sync_bump(&file.left_out, file.ended)
    sync_store(&file.error, error)


cdef bint savefile_end(SaveFile *file) noexcept nogil:
    cdef uint64_t now_ns = clock_ns() + file.packets.wall_ns
    if file.fd < 0:
        return True
    if file.used + PCAPNG_BLOCK > SAVEFILE_ROOM and not savefile_flush(file):
        return False
    file.used += pcapng_end(file.gathered + file.used, 0, file.since_ns, now_ns, file.packets.count - file.before)
    if not savefile_flush(file):
        return False
    file.fd = -1
    return True
