# Accepted sockets on their way to another worker: the model is in handoff.pxd.
from libc.stdint cimport uint64_t
from tcpproxy._core.sync cimport sync_claim, sync_load, sync_store


cdef void handoff_init(Handoff *queue) noexcept nogil:
    cdef uint64_t i
    queue.head = queue.tail = 0
    for i in range(<uint64_t> HANDOFF_ROOM):
        queue.cells[i].turn = i


cdef bint handoff_push(Handoff *queue, net_socket fd, const net_addr *client, int target) noexcept nogil:
    cdef uint64_t turn, at = sync_load(&queue.tail)
    cdef Handed *cell
    while True:
        cell = &queue.cells[at & (HANDOFF_ROOM - 1)]
        turn = sync_load(&cell.turn)
        if turn < at:
            return False
        if turn == at and sync_claim(&queue.tail, at, at + 1):
            break
        at = sync_load(&queue.tail)
    cell.fd = fd
    cell.client = client[0]
    cell.target = target
    sync_store(&cell.turn, at + 1)
    return True


cdef bint handoff_pop(Handoff *queue, Handed *out) noexcept nogil:
    cdef Handed *cell = &queue.cells[queue.head & (HANDOFF_ROOM - 1)]
    if sync_load(&cell.turn) != queue.head + 1:
        return False
    out[0] = cell[0]
    sync_store(&cell.turn, queue.head + HANDOFF_ROOM)
    queue.head += 1
    return True
