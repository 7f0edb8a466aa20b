# The door between Python and the core. Above it: objects, exceptions, threads. Below it: structs, codes, no GIL.
from cpython.bytes cimport PyBytes_AsString, PyBytes_Size
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free, malloc
from tcpproxy._core.bulk cimport bulk_init
from tcpproxy._core.connecting cimport ADDRESSES, AddressList, addresses_release
from tcpproxy._core.engine cimport ABORT, DRAIN, LISTENERS, RUN, WORKERS, Engine, Group, View, ViewItem, \
    engine_run, engine_view
from tcpproxy._core.events cimport EventRecord, events_empty, events_free, events_init, events_sleep, events_take
from tcpproxy._core.half cimport ZERO_COPY_ALWAYS, ZERO_COPY_AUTO, ZERO_COPY_OFF
from tcpproxy._core.handoff cimport Handed, handoff_init, handoff_pop
from tcpproxy._core.net cimport NET_NONE, net_addr, net_close, net_format, clock_ns, net_pack, net_socket, net_tune
from tcpproxy._core.poller cimport poller_free, poller_name, poller_new, poller_wake
from tcpproxy._core.relay cimport RELAY_CONNECTING, RELAY_CLOSED, RELAY_FREE, RELAY_RELAYING, RELAY_RESOLVING, UPSTREAMS, \
    Counters, Relay
from tcpproxy._core.sources cimport sources_free, sources_init
from tcpproxy._core.spin cimport spin_init
from tcpproxy._core.splice cimport PIPE_SIZE, Pipe, pipes_free, splice_here
from tcpproxy._core.sync cimport sync_claim, sync_load, sync_peek, sync_set, sync_store, sync_swap, sync_swap_pointer
from tcpproxy._core.table cimport table_at, table_free
from tcpproxy._core.timers cimport TIMER_CLIENT_GONE, TIMER_CONNECT, TIMER_FLUSH, TIMER_HALF_CLOSE, TIMER_IDLE, \
    TIMER_LINGER, TIMER_KEEPALIVE, TIMER_UNACKED, TIMER_STAGGER, TIMER_STUCK

import os
import threading

POLLER = poller_name().decode()
FEATURES = ("splice",) if splice_here() else ()

cdef enum:
    EVENT_ROOM = 1024           # records; a reader that sleeps 20 ms loses none below 50,000 a second
    SECOND = 1000000000


cdef object _text(const net_addr *address):
    cdef char text[80]
    if address.length == 0:
        return ""
    net_format(address, text)
    return text.decode("ascii")


cdef class _Group:
    """The workers of one proxy, and their common limits."""
    cdef Group group

    def __dealloc__(self):
        sources_free(&self.group.sources)


cdef class Worker:
    """One thread's share of a proxy: a poller and its relays.

    Times are in seconds, but for `busy_poll_us` (-1: adaptive, 0: none). `bell` and `names_bell` are non-blocking
    sockets, kept open by the caller; a byte is sent to `bell` when there are events to take, to `names_bell` when
    addresses of an upstream are wanted.
    """
    cdef Engine *engine
    cdef _Group together
    cdef uint64_t running           # or over; others ask too
    cdef bint abandoned             # in a forked child: its memory may be anything
    cdef object door                # between threads that wake, view or close: one at a time

    def __cinit__(self, *, net_socket bell, net_socket names_bell, int buffer_size, double connect_timeout,
                  double half_close_timeout, double idle_timeout, int keepalive, int socket_buffer, str zero_copy,
                  int busy_poll_us):
        self.engine = <Engine *> calloc(1, sizeof(Engine))
        if self.engine == NULL:
            raise MemoryError
        handoff_init(&self.engine.inbox)
        loop = &self.engine.loop
        loop.pump.poller = poller_new()
        if loop.pump.poller == NULL:
            raise OSError(24, "no descriptor or memory for another " + POLLER + " poller")
        loop.pump.scratch = <char *> malloc(buffer_size)
        if loop.pump.scratch == NULL or events_init(&loop.events, EVENT_ROOM, bell) < 0:
            raise MemoryError
        loop.pump.size = buffer_size
        loop.pump.budget = 4 * buffer_size if buffer_size > 65536 else 262144
        loop.pump.splice_size = PIPE_SIZE
        loop.pump.zero_copy = {"off": ZERO_COPY_OFF, "auto": ZERO_COPY_AUTO, "always": ZERO_COPY_ALWAYS}[zero_copy]
        bulk_init(&self.engine.bulk)
        spin_init(&self.engine.spin, busy_poll_us * 1000)
        loop.lookup_wakeup = names_bell
        loop.half_close = half_close_timeout > 0
        loop.tuning.keepalive_idle = keepalive
        loop.tuning.keepalive_interval = max(1, keepalive // 6)
        loop.tuning.keepalive_count = 3
        loop.tuning.socket_buffer = socket_buffer
        if keepalive:
            loop.timers.lists[<int> TIMER_UNACKED].length_ns = loop.tuning.keepalive_interval * <uint64_t> SECOND
        loop.timers.lists[<int> TIMER_CONNECT].length_ns = <uint64_t> (connect_timeout * SECOND)
        loop.timers.lists[<int> TIMER_HALF_CLOSE].length_ns = <uint64_t> (half_close_timeout * SECOND)
        loop.timers.lists[<int> TIMER_IDLE].length_ns = <uint64_t> (idle_timeout * SECOND)
        loop.timers.lists[<int> TIMER_CLIENT_GONE].length_ns = SECOND
        loop.timers.lists[<int> TIMER_STAGGER].length_ns = SECOND // 4      # RFC 8305, section 8
        loop.timers.lists[<int> TIMER_KEEPALIVE].length_ns = SECOND
        loop.timers.lists[<int> TIMER_LINGER].length_ns = 5 * <uint64_t> SECOND
        loop.timers.lists[<int> TIMER_FLUSH].length_ns = SECOND // 200
        loop.timers.lists[<int> TIMER_STUCK].length_ns = SECOND // 10
        self.door = threading.Lock()

    def __dealloc__(self):
        if self.engine == NULL or self.abandoned:
            return
        self._close_rest()
        loop = &self.engine.loop
        if loop.pump.poller != NULL:
            poller_free(loop.pump.poller)
        for i in range(UPSTREAMS):
            addresses_release(loop.upstreams[i].list)
            free(loop.upstreams[i].incoming)
        pipes_free(&loop.pump.pipes)
        table_free(&loop.table)
        events_free(&loop.events)
        free(loop.pump.scratch)
        free(self.engine)

    cdef void _close_rest(self) noexcept:
        """What a worker that never ran, or stopped with a connection on its way to it, still holds."""
        cdef Handed handed
        while handoff_pop(&self.engine.inbox, &handed):
            net_close(handed.fd)
        for i in range(self.engine.listener_count):
            net_close(self.engine.listeners[i].watch.fd)
        self.engine.listener_count = 0

    @staticmethod
    def link(workers, *, limit, per_source):
        """Makes these workers share their connections, at most `limit` at a time. Before any of them runs.

        A source (an IPv4 address, the /64 of an IPv6 address) may have `per_source` of them; 0: any number.
        """
        cdef _Group together = _Group()
        cdef Worker worker
        if not 1 <= len(workers) <= WORKERS:
            raise ValueError(f"1 to {WORKERS} workers, not {len(workers)}")
        together.group.limit = limit
        secret = int.from_bytes(os.urandom(8), "little")
        if per_source and sources_init(&together.group.sources, limit, per_source, secret) < 0:
            raise MemoryError
        for worker in workers:
            together.group.members[together.group.count] = worker.engine
            together.group.count += 1
            worker.together = together
            worker.engine.group = &together.group
            worker.engine.loop.sources = &together.group.sources

    def listen(self, net_socket fd, int target):
        """Accepts from this listening, non-blocking socket, which is the worker's own from now on, for that upstream."""
        if self.engine.listener_count == LISTENERS:
            raise ValueError(f"at most {LISTENERS} listeners")
        if not 0 <= target < UPSTREAMS:
            raise ValueError(f"upstream {target}, expected 0 to {UPSTREAMS - 1}")
        net_tune(fd, &self.engine.loop.tuning)              # accepted sockets inherit it
        self.engine.listeners[self.engine.listener_count].watch.fd = fd
        self.engine.listeners[self.engine.listener_count].target = target
        self.engine.listener_count += 1
        self.engine.loop.upstream_count = max(self.engine.loop.upstream_count, target + 1)

    def run(self):
        """Relays until it is stopped; the calling thread's whole life. OSError: the poller has failed."""
        cdef int rc
        if self.engine.group == NULL or not sync_claim(&self.running, 0, 1):
            raise RuntimeError("a worker runs once, after link()")
        with nogil:
            rc = engine_run(self.engine)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc), POLLER)

    def stop(self, *, abort):
        """From any thread: accept no more and end with the last relay, or (abort) reset all relays and end."""
        if abort:
            sync_store(&self.engine.stop, ABORT)
        else:
            sync_claim(&self.engine.stop, RUN, DRAIN)       # never in place of an ABORT
        self._wake()

    def close(self):
        """Gives its descriptors back, once no worker of its group runs any more. What it counted can still be asked."""
        with self.door:
            self._close_rest()
            pipes_free(&self.engine.loop.pump.pipes)
            if self.engine.loop.pump.poller != NULL:
                poller_free(self.engine.loop.pump.poller)
                self.engine.loop.pump.poller = NULL

    cdef void _wake(self):
        with self.door:
            if self.engine.loop.pump.poller != NULL:
                poller_wake(self.engine.loop.pump.poller)

    # --- names ---

    def wants_addresses(self, int target):
        """Has the worker asked for addresses of this upstream since the last call?"""
        return sync_swap(&self.engine.loop.upstreams[target].asked, 0) != 0

    def set_addresses(self, int target, addresses, lifetime):
        """Answers: (raw IP, port, scope id) in the order to try; none: the look-up failed.

        The answer serves new connections for `lifetime` seconds (None: for ever), and those who wait for it in any case.
        At most 14 addresses are used.
        """
        cdef AddressList *answer = <AddressList *> calloc(1, sizeof(AddressList))
        if answer == NULL:
            raise MemoryError
        answer.users = 1
        answer.expires_ns = <uint64_t> -1 if lifetime is None else clock_ns() + <uint64_t> (lifetime * SECOND)
        for ip, port, scope in addresses[:ADDRESSES]:
            if net_pack(&answer.addresses[answer.count], PyBytes_AsString(ip), PyBytes_Size(ip), port, scope) < 0:
                free(answer)
                raise ValueError(f"not a raw IP address: {ip!r}")
            answer.count += 1
        free(sync_swap_pointer(&self.engine.loop.upstreams[target].incoming, answer))
        self._wake()

    # --- events ---

    def want_events(self, uint64_t kinds):
        """Which kinds of event record to write, as bits 1 << kind."""
        sync_set(&self.engine.loop.events.wanted, kinds)

    def take_events(self, int most):
        """Up to `most` records: (kind, reason, errno, client, upstream, to_upstream, to_client, duration, connect)."""
        cdef EventRecord record
        taken = []
        while len(taken) < most and events_take(&self.engine.loop.events, &record):
            taken.append((record.kind, record.reason, record.error, _text(&record.client), _text(&record.upstream),
                          record.to_upstream, record.to_client, record.duration_ns / 1e9, record.connect_ns / 1e9))
        return taken

    def await_events(self):
        """Ring the bell at the next event. False: there are some already."""
        events_sleep(&self.engine.loop.events)
        return events_empty(&self.engine.loop.events)

    # --- views ---

    def counters(self):
        """Numbers since the start, readable at any time."""
        cdef Counters *it = &self.engine.loop.counters
        return {
            "accepted": sync_peek(&it.accepted), "active": sync_peek(&it.active), "ended": sync_peek(&it.ended),
            "failed": sync_peek(&it.failed), "refused": sync_peek(&it.refused),
            "bytes_to_upstream": sync_peek(&it.to_upstream),
            "bytes_to_client": sync_peek(&it.to_client), "bytes_spliced": sync_peek(&self.engine.loop.pump.spliced),
            "accept_errors": sync_peek(&it.accept_errors),
            "events_lost": sync_peek(&self.engine.loop.events.lost), "wakeups": sync_peek(&it.wakeups),
            "polls_hit": sync_peek(&self.engine.spin.hits), "polls_missed": sync_peek(&self.engine.spin.misses),
        }

    def connections(self):
        """Live relays: (client, upstream, state, to_upstream, to_client, age). Empty when the worker does not run."""
        with self.door:
            if not sync_load(&self.running) or self.engine.loop.pump.poller == NULL:
                return []
            return self._look()

    cdef list _look(self):
        cdef View view
        cdef uint64_t i
        view.room = sync_peek(&self.engine.loop.counters.active) + 64
        while True:
            view.items = <ViewItem *> malloc(view.room * sizeof(ViewItem))
            if view.items == NULL:
                raise MemoryError
            with nogil:
                engine_view(self.engine, &view)
            if view.count <= view.room:
                break
            free(view.items)
            view.room = view.count + 64
        try:
            return [(_text(&view.items[i].client), _text(&view.items[i].upstream), _state(view.items[i].state),
                     view.items[i].to_upstream, view.items[i].to_client, view.items[i].age_ns / 1e9)
                    for i in range(view.count)]
        finally:
            free(view.items)

    def abandon(self):
        """In a forked child: lets go of the parent's descriptors, without a word to their peers.

        A copy that stays open here would hold back the parent's resets and keep its epoll registrations alive. But no memory
        is freed, now or later: the fork may have come while the worker, of which only this copy exists, was changing it. So
        a socket that it had just accepted or opened, and noted down nowhere yet, stays open as long as this process.
        """
        cdef Relay *relay
        for i in range(self.engine.loop.table.size):
            relay = table_at(&self.engine.loop.table, i)
            if relay.state == RELAY_FREE or relay.state == RELAY_CLOSED:
                continue
            for side in range(2):
                if relay.sides[side].watch.fd != NET_NONE:
                    net_close(relay.sides[side].watch.fd)
                if relay.halves[side].pipe != NULL:
                    _close_pipe(relay.halves[side].pipe)
            if relay.connecting != NULL:
                for number in range(relay.connecting.started):
                    if relay.connecting.attempts[number].fd != NET_NONE:
                        net_close(relay.connecting.attempts[number].fd)
        for i in range(self.engine.loop.pump.pipes.idle_count):
            _close_pipe(self.engine.loop.pump.pipes.idle[i])
        self._close_rest()
        if self.engine.loop.pump.poller != NULL:
            poller_free(self.engine.loop.pump.poller)       # frees what is still there: it is replaced only when it grows
            self.engine.loop.pump.poller = NULL
        self.abandoned = True
        self.door = threading.Lock()                # a thread that is not in this process may hold the old one


cdef void _close_pipe(Pipe *pipe) noexcept:
    net_close(<net_socket> pipe.reader)
    net_close(<net_socket> pipe.writer)


cdef str _state(int state):
    return "resolving" if state == RELAY_RESOLVING else "connecting" if state == RELAY_CONNECTING \
        else "relaying" if state == RELAY_RELAYING else "closing"
