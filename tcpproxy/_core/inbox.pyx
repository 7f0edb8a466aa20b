# Commands to a worker from other threads: the model is in inbox.pxd.
from libc.stdint cimport uint64_t
from tcpproxy._core.sync cimport sync_claim, sync_load, sync_store


cdef void inbox_init(Inbox *inbox) noexcept nogil:
    cdef uint64_t i
    inbox.head = inbox.tail = 0
    for i in range(<uint64_t> INBOX_MESSAGES):
        inbox.cells[i].sequence = i


cdef bint inbox_push(Inbox *inbox, const Message *message) noexcept nogil:
    cdef uint64_t sequence, at = sync_load(&inbox.tail)
    cdef Message *cell
    while True:
        cell = &inbox.cells[at & (INBOX_MESSAGES - 1)]
        sequence = sync_load(&cell.sequence)
        if sequence < at:
            return False
        if sequence == at and sync_claim(&inbox.tail, at, at + 1):
            break
        at = sync_load(&inbox.tail)
    cell.kind = message.kind
    cell.id = message.id
    cell.fd = message.fd
    cell.target = message.target
    cell.client = message.client
    cell.proxied = message.proxied
    cell.body = message.body
    cell.done = message.done
    sync_store(&cell.sequence, at + 1)
    return True


cdef bint inbox_pop(Inbox *inbox, Message *out) noexcept nogil:
    cdef Message *cell = &inbox.cells[inbox.head & (INBOX_MESSAGES - 1)]
    if sync_load(&cell.sequence) != inbox.head + 1:
        return False
    out[0] = cell[0]
    sync_store(&cell.sequence, inbox.head + INBOX_MESSAGES)
    inbox.head += 1
    return True
