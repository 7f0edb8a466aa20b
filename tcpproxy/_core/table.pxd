# The table of a worker's relays. The tag of an event has a relay's index and generation. An event is stale if the generation
# differs. Slots are never freed, so even the tag of a relay that ended long ago points at a slot.
from libc.stdint cimport uint32_t, uint64_t
from tcpproxy._core.loop cimport TABLE_CHUNKS, Relay, Table

cdef enum:
    CHUNK = 64                              # relays allocated together
    INDEX_LIMIT = TABLE_CHUNKS * CHUNK      # 2^20, more than the limit of connections; fits the 28 bits of a tag

cdef Relay *table_new(Table *table) noexcept nogil                     # zeroed except index and generation; NULL: no memory
cdef void table_release(Table *table, Relay *relay) noexcept nogil     # its generation ends
cdef void table_free(Table *table) noexcept nogil
cdef Relay *table_find(Table *table, uint64_t tag) noexcept nogil      # NULL: stale, or closed
cdef uint64_t table_tag(const Relay *relay) noexcept nogil


cdef inline Relay *table_at(Table *table, uint32_t index) noexcept nogil:
    """NULL: beyond the table."""
    return &table.chunks[index // CHUNK][index % CHUNK] if index < table.size else NULL
