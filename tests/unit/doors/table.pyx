from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp, memset
from tcpproxy._core.loop cimport RELAY_CLOSED, RELAY_FREE, RELAY_RELAYING, Relay, Table
from tcpproxy._core.table cimport CHUNK, INDEX_LIMIT, table_at, table_find, table_free, table_new, table_release, table_tag

FREE, RELAYING, DEAD = RELAY_FREE, RELAY_RELAYING, RELAY_CLOSED
TABLE_CHUNK, TABLE_ROOM = CHUNK, INDEX_LIMIT
RELAY_SIZE = sizeof(Relay)


cdef class TableDoor:
    """Relays are named by their index."""
    cdef Table it

    def __dealloc__(self):
        table_free(&self.it)

    def new(self):
        """(index, generation, clean but for those), or None."""
        cdef Relay clean
        relay = table_new(&self.it)
        if relay == NULL:
            return None
        memset(&clean, 0, sizeof(clean))
        clean.index = relay.index
        clean.generation = relay.generation
        return relay.index, relay.generation, memcmp(relay, &clean, sizeof(clean)) == 0

    def release(self, uint32_t index):
        table_release(&self.it, table_at(&self.it, index))

    def dirty(self, uint32_t index, int state):
        """Gives a relay a state, and something in its first and last field."""
        relay = table_at(&self.it, index)
        relay.next = relay
        relay.next_closed = 1
        relay.state = state

    def set_generation(self, uint32_t index, uint32_t generation):
        table_at(&self.it, index).generation = generation

    def tag(self, uint32_t index):
        return table_tag(table_at(&self.it, index))

    def at(self, uint32_t index):
        """Its address in memory, 0: none."""
        return <size_t> table_at(&self.it, index)

    def find(self, uint64_t tag):
        """The index, or None."""
        relay = table_find(&self.it, tag)
        return None if relay == NULL else relay.index

    def new_at_the_limit(self):
        """What a table gives that is full and as large as it may get: True, a relay."""
        size, rest = self.it.size, self.it.free
        self.it.size, self.it.free = INDEX_LIMIT, NULL
        relay = table_new(&self.it)
        self.it.size, self.it.free = size, rest
        return relay != NULL
