# Where a worker's relays live: the model is in table.pxd.
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from tcpproxy._core.loop cimport relay_alive
from tcpproxy._core.tag cimport tag_generation, tag_index, tag_relay


cdef bint _grow(Table *table) noexcept nogil:
    cdef Relay *chunk
    cdef int i
    if table.size >= INDEX_LIMIT:
        return False
    chunk = <Relay *> calloc(CHUNK, sizeof(Relay))
    if chunk == NULL:
        return False
    for i in range(CHUNK - 1, -1, -1):
        chunk[i].index = table.size + i
        chunk[i].next = table.free
        table.free = &chunk[i]
    table.chunks[table.size // CHUNK] = chunk
    table.size += CHUNK
    return True


cdef Relay *table_new(Table *table) noexcept nogil:
    cdef Relay *relay
    if table.free == NULL and not _grow(table):
        return NULL
    relay = table.free
    table.free = relay.next
    relay.next = NULL
    return relay


cdef void table_release(Table *table, Relay *relay) noexcept nogil:
    cdef uint32_t index = relay.index, generation = relay.generation
    memset(relay, 0, sizeof(Relay))
    relay.index = index
    relay.generation = generation + 1
    relay.next = table.free
    table.free = relay


cdef void table_free(Table *table) noexcept nogil:
    cdef uint32_t i
    for i in range(table.size // CHUNK):
        free(table.chunks[i])
        table.chunks[i] = NULL
    table.size = 0
    table.free = NULL


cdef Relay *table_find(Table *table, uint64_t tag) noexcept nogil:
    cdef Relay *relay = table_at(table, tag_index(tag))
    return relay if relay != NULL and relay.generation == tag_generation(tag) and relay_alive(relay) else NULL


cdef uint64_t table_tag(const Relay *relay) noexcept nogil:
    return tag_relay(relay.index, relay.generation)
