# A door into the compiled core for its unit tests, built by them (see conftest.py) and part of no package. It declares what
# the .pxd files declare and calls the installed modules, so that a change of a struct or a signature shows here at once.
cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memset
from tcpproxy._core.buffer cimport Buffer, buffer_clear, buffer_drop, buffer_fill
from tcpproxy._core.bulk cimport OVER_NS, Bulk, bulk_count, bulk_init, bulk_judge
from tcpproxy._core.connecting cimport CONNECTING_FAILED, CONNECTING_PENDING, AddressList, Connecting, \
    addresses_release, connecting_event, connecting_free, connecting_new, connecting_next
from tcpproxy._core.events cimport EventRecord, EventRing, events_claim, events_empty, events_free, events_init, events_publish, \
    events_sleep, events_take
from tcpproxy._core.half cimport HALF_BROKEN, HALF_DRAINING, HALF_OPEN, HALF_SHUT, PUMP_MORE, PUMP_MOVED, PUMP_WAIT, \
    ZERO_COPY_ALWAYS, ZERO_COPY_AUTO, ZERO_COPY_OFF, Half, Pump, Side, half_break, half_pump
from tcpproxy._core.inbox cimport INBOX_ROOM, Inbox, Message, inbox_init, inbox_pop, inbox_push
from tcpproxy._core.net cimport net_addr, thread_cpu_time, thread_nap_us, net_pack, net_tuning
from tcpproxy._core.poller cimport READY_EOF, READY_ERROR, READY_IN, READY_OUT, READY_URGENT, WATCH_LISTENER, \
    WATCH_STREAM, Poller, Ready, Watch, poller_add, poller_free, poller_move, poller_name, poller_new, poller_rearm, \
    poller_remove, poller_wait, poller_wake
from tcpproxy._core.loop cimport RELAY_CLOSED, RELAY_FREE, RELAY_RELAYING, Relay, Table
from tcpproxy._core.sources cimport Sources, sources_enter, sources_free, sources_init, sources_leave
from tcpproxy._core.splice cimport PIPE_SIZE, PIPES, Pipe, pipe_give, pipe_take, pipes_free
from tcpproxy._core.table cimport CHUNK, INDEX_LIMIT, table_at, table_find, table_free, table_new, table_release, table_tag
from tcpproxy._core.timers cimport TIMER_KINDS, TIMER_NONE, Timer, Timers, timers_arm, timers_cancel, timers_pop, \
    timers_wait_ns
from tcpproxy._core.trial cimport Trial, trial_restart, trial_count, trial_due, trial_init, trial_arm

IN, OUT, EOF, ERROR, URGENT = READY_IN, READY_OUT, READY_EOF, READY_ERROR, READY_URGENT
STREAM, LISTENER = WATCH_STREAM, WATCH_LISTENER
OPEN, DRAINING, SHUT, BROKEN = HALF_OPEN, HALF_DRAINING, HALF_SHUT, HALF_BROKEN
WAIT, MORE, MOVED = PUMP_WAIT, PUMP_MORE, PUMP_MOVED
FREE, RELAYING, DEAD = RELAY_FREE, RELAY_RELAYING, RELAY_CLOSED
OVER = OVER_NS
KINDS = range(TIMER_NONE + 1, TIMER_KINDS)
ZERO_COPY = {"off": ZERO_COPY_OFF, "auto": ZERO_COPY_AUTO, "always": ZERO_COPY_ALWAYS}
PIPE_LIMIT, PIPE_ROOM = PIPES, PIPE_SIZE
INBOX_LIMIT, TABLE_CHUNK, TABLE_ROOM = INBOX_ROOM, CHUNK, INDEX_LIMIT
FAILED = CONNECTING_FAILED
POLLER = poller_name().decode()


# Under a limit of address space (the caller's business): takes all memory that is left, for one call without any.
cdef void *_take_all_memory() noexcept nogil:
    cdef size_t size = 1 << 26
    cdef void **block
    cdef void **chain = NULL
    while size >= 1024:
        block = <void **> malloc(size)
        if block == NULL:
            size //= 2
            continue
        block[0] = chain
        chain = block
    return chain


cdef void _give_back(void *chain) noexcept nogil:
    cdef void *next
    while chain != NULL:
        next = (<void **> chain)[0]
        free(chain)
        chain = next


cdef class BufferDoor:
    cdef Buffer it

    def __dealloc__(self):
        buffer_clear(&self.it)

    def fill(self, bytes data, *, bint without_memory=False):
        cdef const char *start = data
        cdef uint32_t size = len(data)
        cdef int rc
        with nogil:
            chain = _take_all_memory() if without_memory else NULL
            rc = buffer_fill(&self.it, start, size)
            _give_back(chain)
        return rc

    def drop(self, uint32_t size):
        buffer_drop(&self.it, size)

    def clear(self):
        buffer_clear(&self.it)

    @property
    def content(self):
        """None: it owns no memory."""
        return None if self.it.memory == NULL else self.it.memory[self.it.start:self.it.end]

    @property
    def bounds(self):
        return self.it.start, self.it.end


@cython.no_gc_clear
cdef class PollerDoor:
    """A poller and the watches of its caller, which are named by their tags."""
    cdef Poller *it
    cdef dict watches

    def __cinit__(self):
        self.watches = {}
        self.it = poller_new()
        if self.it == NULL:
            raise MemoryError("poller_new gave NULL")

    def __dealloc__(self):
        self.close()

    cdef Watch *_at(self, tag) except NULL:
        return <Watch *> <size_t> self.watches[tag]

    def close(self):
        if self.it != NULL:
            poller_free(self.it)
            self.it = NULL
        for tag in list(self.watches):
            free(self._at(tag))
            del self.watches[tag]

    def add(self, int fd, uint64_t tag, int kind=WATCH_STREAM):
        cdef Watch *watch = <Watch *> calloc(1, sizeof(Watch))
        watch.fd = fd
        watch.tag = tag
        self.watches[tag] = <size_t> watch
        return poller_add(self.it, watch, kind)

    def rearm(self, tag, uint32_t bits):
        poller_rearm(self.it, self._at(tag), bits)

    def move(self, tag):
        """To another place; the old one is overwritten before it is freed."""
        cdef Watch *old = self._at(tag)
        cdef Watch *new = <Watch *> calloc(1, sizeof(Watch))
        poller_move(self.it, old, new)
        memset(old, 0xa5, sizeof(Watch))
        free(old)
        self.watches[tag] = <size_t> new

    def remove(self, tag, int kind=WATCH_STREAM):
        poller_remove(self.it, self._at(tag), kind)
        free(self._at(tag))
        del self.watches[tag]

    def wait(self, int64_t timeout_ns=0, size_t room=64):
        """[(tag, bits)], or what was returned instead, if negative."""
        cdef Ready *events = <Ready *> malloc(room * sizeof(Ready))
        cdef int count
        with nogil:
            count = poller_wait(self.it, events, <int> room, timeout_ns)
        found = [(events[i].tag, events[i].bits) for i in range(count)]
        free(events)
        return count if count < 0 else found

    def wake(self, int times=1):
        cdef int _i
        with nogil:
            for _i in range(times):
                poller_wake(self.it)


cdef class HalfDoor:
    """One direction between two sockets, with a poller of its own."""
    cdef Half half
    cdef Side source, sink
    cdef Pump pump

    def __cinit__(self, int source, int sink, uint32_t size, uint32_t budget, str zero_copy):
        self.pump.poller = poller_new()
        self.pump.scratch = <char *> malloc(size)
        if self.pump.poller == NULL or self.pump.scratch == NULL:
            raise MemoryError
        self.pump.size = size
        self.pump.budget = budget
        self.pump.splice_size = PIPE_SIZE
        self.pump.zero_copy = ZERO_COPY[zero_copy]
        self.source.watch.fd, self.source.watch.tag = source, 0
        self.sink.watch.fd, self.sink.watch.tag = sink, 1
        if poller_add(self.pump.poller, &self.source.watch, WATCH_STREAM) < 0 \
                or poller_add(self.pump.poller, &self.sink.watch, WATCH_STREAM) < 0:
            raise OSError("poller_add")

    def __dealloc__(self):
        half_break(&self.half, &self.pump)
        pipes_free(&self.pump.pipes)
        free(self.pump.scratch)
        if self.pump.poller != NULL:
            poller_free(self.pump.poller)

    def listen(self, int64_t timeout_ns=0):
        """Takes events as a relay does. Returns whether there was any."""
        cdef Ready events[8]
        cdef Side *side
        cdef int count
        with nogil:
            count = poller_wait(self.pump.poller, events, 8, timeout_ns)
        for i in range(count):
            side = &self.sink if events[i].tag else &self.source
            side.ready |= events[i].bits & (READY_IN | READY_OUT)
            if events[i].bits & (READY_EOF | READY_URGENT):
                side.read_to_eagain = True
            if events[i].bits & READY_ERROR:
                side.error_pending = True
        return count > 0

    def turn(self, *, bint without_memory=False):
        cdef int result
        with nogil:
            chain = _take_all_memory() if without_memory else NULL
            result = half_pump(&self.half, &self.source, &self.sink, &self.pump)
            _give_back(chain)
        return result

    def break_off(self):
        half_break(&self.half, &self.pump)

    def borrow_pipes(self, int most):
        """Takes pipes and gives them back. Returns how many there were to be had."""
        cdef Pipe *taken[100]
        cdef int count = 0
        while count < min(most, 100):
            taken[count] = pipe_take(&self.pump.pipes)
            if taken[count] == NULL:
                break
            count += 1
        for i in range(count):
            pipe_give(&self.pump.pipes, taken[i])
        return count

    @property
    def state(self):
        return self.half.state

    @state.setter
    def state(self, uint8_t value):
        self.half.state = value

    @property
    def delivered(self):
        return self.half.delivered

    @property
    def kept(self):
        """Bytes in (buffer, pipe); None: it has none."""
        return (
            None if self.half.buffer.memory == NULL else self.half.buffer.end - self.half.buffer.start,
            None if self.half.pipe == NULL else self.half.pipe.held,
        )

    @property
    def pipes(self):
        """(idle, all) of the worker."""
        return self.pump.pipes.idle_count, self.pump.pipes.count

    @property
    def spliced(self):
        return self.pump.spliced

    @property
    def ready(self):
        """(source, sink)"""
        return self.source.ready, self.sink.ready

    @ready.setter
    def ready(self, value):
        self.source.ready, self.sink.ready = value

    @property
    def errors(self):
        return self.source.error, self.sink.error

    @errors.setter
    def errors(self, value):
        self.source.error, self.sink.error = value

    @property
    def read_to_eagain(self):
        return bool(self.source.read_to_eagain)

    @read_to_eagain.setter
    def read_to_eagain(self, bint value):
        self.source.read_to_eagain = value

    @property
    def ended(self):
        return bool(self.source.eof_read)


cdef class ConnectingDoor:
    """One attempt to connect to an IPv4 address; its events are made up by the caller."""
    cdef Poller *poller
    cdef AddressList *addresses
    cdef Connecting *it
    cdef net_tuning tuning              # all off

    def __cinit__(self, bytes ip, int port):
        self.poller = poller_new()
        self.addresses = <AddressList *> calloc(1, sizeof(AddressList))
        if self.poller == NULL or self.addresses == NULL:
            raise MemoryError
        self.addresses.users = self.addresses.count = 1
        if net_pack(&self.addresses.addresses[0], <const char *> ip, len(ip), port, 0) < 0:
            raise ValueError(ip)
        self.it = connecting_new(self.addresses, &self.tuning)
        if self.it == NULL or connecting_next(self.it, self.poller, 0) != CONNECTING_PENDING:
            raise OSError("connecting_next")

    def __dealloc__(self):
        if self.it != NULL:
            connecting_free(self.it, self.poller)
        addresses_release(self.addresses)
        if self.poller != NULL:
            poller_free(self.poller)

    def event(self, uint32_t bits):
        """The number of the attempt that is connected, or what is negative."""
        return connecting_event(self.it, self.poller, 0, bits)

    @property
    def error(self):
        return self.it.error

    @property
    def ready(self):
        """Bits that the connection begins with."""
        return self.it.ready[0]


cdef class TimersDoor:
    """Timers with the numbers 0, 1, ..."""
    cdef Timers it
    cdef Timer *timers

    def __cinit__(self, size_t count, lengths):
        self.timers = <Timer *> calloc(count, sizeof(Timer))
        for i in range(count):
            self.timers[i].owner = &self.timers[i]
        for kind, length_ns in lengths.items():
            self.it.lists[<int> kind].length_ns = length_ns

    def __dealloc__(self):
        free(self.timers)

    def arm(self, int number, int kind, uint64_t now_ns):
        timers_arm(&self.it, &self.timers[number], kind, now_ns)

    def cancel(self, int number):
        timers_cancel(&self.it, &self.timers[number])

    def pop(self, uint64_t now_ns):
        """(number, kind), or None."""
        cdef int kind = 0
        cdef Timer *timer = timers_pop(&self.it, now_ns, &kind)
        return None if timer == NULL else (<Timer *> timer.owner - self.timers, kind)

    def wait_ns(self, uint64_t now_ns):
        return timers_wait_ns(&self.it, now_ns)

    def kind(self, int number):
        return self.timers[number].kind


cdef class RingDoor:
    cdef EventRing it

    def __cinit__(self, uint64_t room, int bell, uint64_t wanted):
        if events_init(&self.it, room, bell) < 0:
            raise MemoryError
        self.it.wanted = wanted

    def __dealloc__(self):
        events_free(&self.it)

    def claim(self, int kind):
        """None, or whether the record was clean but for its kind."""
        cdef EventRecord clean
        memset(&clean, 0, sizeof(clean))
        clean.kind = kind
        record = events_claim(&self.it, kind)
        return None if record == NULL else memcmp(record, &clean, sizeof(clean)) == 0

    def write(self, int kind, uint64_t number):
        record = events_claim(&self.it, kind)
        if record == NULL:
            return False
        record.to_upstream = number
        record.error = -1
        events_publish(&self.it)
        return True

    def write_many(self, int kind, uint64_t count):
        """The numbers up to `count`, as fast as the reader makes room; for a thread."""
        cdef EventRecord *record
        cdef uint64_t i
        with nogil:
            for i in range(count):
                record = events_claim(&self.it, kind)
                while record == NULL:
                    thread_nap_us(20)
                    record = events_claim(&self.it, kind)
                record.to_upstream = i
                events_publish(&self.it)

    def take(self):
        """(kind, number), or None."""
        cdef EventRecord record
        return (record.kind, record.to_upstream) if events_take(&self.it, &record) else None

    def sleep(self):
        """As the reader does. Returns whether it may really sleep."""
        events_sleep(&self.it)
        return bool(events_empty(&self.it))

    @property
    def lost(self):
        return self.it.lost

    @property
    def asleep(self):
        return bool(self.it.asleep)


cdef class InboxDoor:
    cdef Inbox *it

    def __cinit__(self):
        self.it = <Inbox *> calloc(1, sizeof(Inbox))
        inbox_init(self.it)

    def __dealloc__(self):
        free(self.it)

    def push(self, int fd, int target=0):
        cdef Message message
        memset(&message, 0, sizeof(message))
        message.fd = fd
        message.target = target
        message.id = 1000 + <uint64_t> fd
        message.client.length = 16
        message.client.bytes[15] = <uint8_t> fd
        return bool(inbox_push(self.it, &message))

    def push_many(self, int target, int count):
        """The numbers up to `count`, as fast as the reader makes room; for a thread."""
        cdef Message message
        cdef int i
        memset(&message, 0, sizeof(message))
        message.target = target
        with nogil:
            for i in range(count):
                message.fd = i
                message.id = 1000 + <uint64_t> i
                message.client.length = <uint32_t> i
                while not inbox_push(self.it, &message):
                    thread_nap_us(20)

    def pop(self):
        """(fd, target, length and last byte of the address), or None. The id is checked: 1000 more than the fd."""
        cdef Message message
        if not inbox_pop(self.it, &message):
            return None
        assert message.id == 1000 + <uint64_t> message.fd
        return message.fd, message.target, message.client.length, message.client.bytes[15]


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
        relay.next_closed = relay
        relay.target = 1
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


cdef class SourcesDoor:
    cdef Sources it
    cdef net_addr address

    def __cinit__(self, uint64_t limit, uint32_t most, uint64_t secret=0):
        if sources_init(&self.it, limit, most, secret) < 0:
            raise MemoryError

    def __dealloc__(self):
        sources_free(&self.it)

    @property
    def slots(self):
        return self.it.mask + 1

    @property
    def counts(self):
        """What is in the table."""
        return [self.it.slots[i].count for i in range(self.it.mask + 1) if self.it.slots[i].count]

    def enter(self, bytes ip):
        return bool(sources_enter(&self.it, self._address(ip)))

    def leave(self, bytes ip):
        sources_leave(&self.it, self._address(ip))

    cdef net_addr *_address(self, bytes ip):
        net_pack(&self.address, <const char *> ip, len(ip), 80, 0)
        return &self.address

    def come_and_go(self, uint32_t first, int rounds):
        """Three of four addresses in turn enter and leave, without the GIL. Returns how often one was turned away."""
        cdef net_addr client[4]
        cdef uint32_t ip
        cdef int i, refused = 0
        for i in range(4):
            ip = first + <uint32_t> i
            net_pack(&client[i], &ip, 4, 80, 0)
        with nogil:
            for i in range(rounds):
                refused += not sources_enter(&self.it, &client[i & 3])
                if i > 2:
                    sources_leave(&self.it, &client[(i - 3) & 3])
            for i in range(rounds - 3, rounds):
                sources_leave(&self.it, &client[i & 3])
        return refused


def processor_time():
    """Of this thread, 0: not known."""
    return thread_cpu_time()


cdef class TrialDoor:
    cdef Trial it

    def __cinit__(self, uint64_t sample, uint64_t probe, uint64_t time, uint64_t cost, uint64_t busy_batch):
        trial_init(&self.it, sample, probe, time, cost, busy_batch)

    def count(self, uint64_t units, uint64_t took_ns):
        trial_count(&self.it, units, took_ns)

    def restart(self):
        trial_restart(&self.it)

    def due(self):
        return trial_due(&self.it)

    def arm(self):
        return trial_arm(&self.it)


cdef class BulkDoor:
    """Of the calling thread: `l` in its state: SCHED_BATCH."""
    cdef Bulk it
    cdef readonly uint64_t total

    def __cinit__(self):
        bulk_init(&self.it)

    def count(self, uint64_t moved, uint64_t now_ns, *, bint bulk_only=True):
        """A batch. True: judge() is due."""
        self.total += moved
        return bulk_count(&self.it, self.total, bulk_only, now_ns)

    def judge(self, uint64_t group_moved):
        bulk_judge(&self.it, group_moved)

    @property
    def state(self):
        return "".join(name for name, on in (("b", self.it.on), ("s", self.it.steady), ("l", self.it.batch_policy)) if on)
