# The door between Python and the core. Above it: objects, exceptions, threads. Below it: structs, codes, no GIL.
import socket
import sys

from cpython.bytes cimport PyBytes_AsString, PyBytes_Size
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from tcpproxy._core.accepting cimport NewListeners, accepting_add
from tcpproxy._core.admission cimport BOUND_BYTES, Networks, admission_free, networks_init
from tcpproxy._core.bending cimport bending_change
from tcpproxy._core.connecting cimport ADDRESSES, AddressList
from tcpproxy._core.control cimport Kill
from tcpproxy._core.engine cimport View, ViewItem, engine_ask, engine_run
from tcpproxy._core.events cimport EVENT_NEW, EVENT_UPSTREAM_UP, EVENTS_OUTGOING, REASON_PROXY_HEADER, EventRecord, \
    events_empty, events_kind_name, events_reason_name, events_sleep, events_take
from tcpproxy._core.half cimport ZERO_COPY_ALWAYS, ZERO_COPY_AUTO, ZERO_COPY_OFF
from tcpproxy._core.header cimport header_problem
from tcpproxy._core.inbox cimport MESSAGE_ACCEPT, MESSAGE_HANG, MESSAGE_KILL, MESSAGE_LISTEN, MESSAGE_PAUSE, MESSAGE_PLAN, \
    MESSAGE_SYNC, MESSAGE_VIEW, Message
from tcpproxy._core.loop cimport ABORT, BUCKETS, CLIENT, CONNECTIONS, DRAIN, FORWARDS, LISTENERS, RELAY_GREETING, \
    RELAY_RELAYING, RELAY_RESOLVING, RUN, TARGETS, UPSTREAM, UPSTREAMS, WORKERS, Counters, Histogram, Loop
from tcpproxy._core.metering cimport metering_set
from tcpproxy._core.net cimport net_addr, net_close, net_format, net_hang, net_pack, net_pack_path, net_path, net_socket, net_tune
from tcpproxy._core.plan cimport PLAN_RULES
from tcpproxy._core.poller cimport poller_name, poller_wake
from tcpproxy._core.reports cimport reports_bounds
from tcpproxy._core.resources cimport NS_PER_SECOND, Settings, resources_close, resources_close_after_fork, resources_free, \
    resources_init
from tcpproxy._core.rulebook cimport Rulebook
from tcpproxy._core.sources cimport sources_free, sources_init
from tcpproxy._core.splice cimport splice_here
from tcpproxy._core.sync cimport sync_claim, sync_load, sync_peek, sync_set, sync_store, sync_swap, sync_swap_pointer
from tcpproxy._core.thread cimport clock_ns, wall_ns

import os
import threading

POLLER = poller_name().decode()
FEATURES = ("splice",) if splice_here() else ()
ZERO_COPY = {"off": ZERO_COPY_OFF, "auto": ZERO_COPY_AUTO, "always": ZERO_COPY_ALWAYS}
LIMITS = {
    "workers": WORKERS, "listeners": LISTENERS, "forwards": FORWARDS, "targets": TARGETS, "all_targets": UPSTREAMS,
    "connections": CONNECTIONS,
}
KINDS = tuple([events_kind_name(kind).decode() for kind in range(EVENT_NEW, EVENT_UPSTREAM_UP + 1)])
REASONS = tuple([events_reason_name(reason).decode() for reason in range(REASON_PROXY_HEADER + 1)])
STATES = ("resolving", "connecting", "relaying", "closing")


cdef object _bounds():
    cdef double connects[BUCKETS - 1]
    cdef double durations[BUCKETS - 1]
    reports_bounds(connects, durations)
    return tuple([connects[i] for i in range(BUCKETS - 1)]), tuple([durations[i] for i in range(BUCKETS - 1)])


CONNECT_BOUNDS, DURATION_BOUNDS = _bounds()


def monotonic():
    """Seconds of the clock that workers use: a test that freezes Python's clocks does not freeze it."""
    return clock_ns() / 1e9


def wall():
    """Seconds since 1970, likewise."""
    return wall_ns() / 1e9


def hang(net_socket fd, bint on):
    """Makes connecting to a TCP listener hang, or no longer; it need not listen yet. OSError: refused, or not on Linux."""
    cdef int rc = net_hang(fd, on)
    if rc < 0:
        raise OSError(-rc, os.strerror(-rc))


cdef object address_text(const net_addr *address):
    cdef char text[80]
    cdef uint32_t size = 0
    cdef const char *path = net_path(address, &size)
    if path != NULL:
        return os.fsdecode(path[:size]).replace("\0", "@", 1)
    if address.length == 0:
        return ""
    net_format(address, text)
    return _with_interface(text.decode("ascii"))


cdef object _with_interface(str text):
    """Writes a scope id as the interface's name, as the shell writes listeners; a number where the interface is gone.

    On Windows it stays a number, which is all that addresses to connect to may have there.
    """
    if "%" not in text or sys.platform == "win32":
        return text
    ip, _, rest = text.partition("%")
    index, _, port = rest.partition("]")
    try:
        return f"{ip}%{socket.if_indextoname(int(index))}]{port}"
    except OSError:
        return text


cdef object _take_networks(Networks *networks, bytes bounds):
    if networks_init(networks, <const uint8_t *> PyBytes_AsString(bounds), len(bounds) // BOUND_BYTES) < 0:
        raise MemoryError


cdef class _Group:
    """The workers of one proxy, and their common limits."""

    def __dealloc__(self):
        sources_free(&self.group.sources)
        admission_free(&self.admission)

    cdef admit(self, bytes admitted, bytes proxies, bint unix_proxies):
        if admitted is not None:
            _take_networks(&self.admission.admitted, admitted)
        if proxies is not None:
            _take_networks(&self.admission.proxies, proxies)
        self.admission.unix_proxies = unix_proxies
        self.group.admission = &self.admission


cdef class Worker:
    """One thread's share of a proxy: a poller and its relays.

    Its settings are the fields of Settings in resources.pxd; a KeyError names one that is missing. The wake-up sockets
    among them do not block and are kept open by the caller.
    """

    def __cinit__(self, settings, make_lock=threading.Lock):
        cdef Settings numbers = settings
        cdef int rc
        self.make_lock, self.lock = make_lock, make_lock()
        self.paths = {}
        self.loop = <Loop *> calloc(1, sizeof(Loop))
        rc = resources_init(self.loop, &numbers) if self.loop != NULL else -ENOMEM
        if rc == -ENOMEM:
            raise MemoryError
        if rc < 0:
            raise OSError(-rc, "no descriptor or memory for another " + POLLER + " poller")

    def __dealloc__(self):
        if self.loop != NULL and not self.abandoned:
            resources_free(self.loop)
            free(self.loop)

    @staticmethod
    def link(workers, *, limit, per_source, bytes admitted=None, bytes proxies=None, bint unix_proxies=False, rates=(0, 0),
             rates_each=(0, 0)):
        """Makes these workers share their connections, at most `limit` at a time. Before any of them runs.

        A source (an IPv4 address, the /64 of an IPv6 address) may have `per_source` of them; 0: any number. `admitted`: bounds
        of networks, as admission.pxd has them; a client from elsewhere is reset. None: clients may come from anywhere.
        `proxies`: in the same way, whose first bytes are a header of the PROXY protocol; `unix_proxies`: also those of peers of
        UNIX sockets.
        `rates`: of all connections, to upstream and to clients, in bytes per second; 0: none. `rates_each`: of each connection.
        """
        cdef _Group together = _Group()
        cdef Worker worker
        if not 1 <= len(workers) <= WORKERS:
            raise ValueError(f"1 to {WORKERS} workers, not {len(workers)}")
        together.group.limit = limit
        secret = int.from_bytes(os.urandom(8), "little")
        if per_source and sources_init(&together.group.sources, limit, per_source, secret) < 0:
            raise MemoryError
        if admitted is not None or proxies is not None or unix_proxies:
            together.admit(admitted, proxies, unix_proxies)
        for side in range(2):
            metering_set(&together.group, side, rates[side], rates_each[side])
        for worker in workers:
            worker.loop.metered = any(rates) or any(rates_each)
            together.group.members[together.group.count] = worker.loop
            together.group.count += 1
            worker.together = together
            worker.loop.group = &together.group

    def listen(self, net_socket fd, int target):
        """Accepts from this listening, non-blocking socket and connects to upstream `target`, of several in a row the first.

        The worker owns it from now on.
        """
        if self.loop.accepting.count == LISTENERS:
            raise ValueError(f"at most {LISTENERS} listeners")
        net_tune(fd, &self.loop.tuning)              # accepted sockets inherit it
        accepting_add(self.loop, fd, target)

    def fall_back(self, int first, int targets):
        """Makes upstream `first` and those that follow it, `targets` in all, the targets of one forward. Before it runs."""
        cdef int i
        self.loop.upstreams[first].targets = targets
        for i in range(first, first + targets):
            self.loop.upstreams[i].first = first

    def connect_from(self, sources):
        """Makes its connections come from these addresses, one of a family: (raw IP, 0, scope id). Before it runs."""
        cdef int i = 0
        for ip, port, scope in sources:
            if i == 2 or net_pack(&self.loop.tuning.source[i], PyBytes_AsString(ip), PyBytes_Size(ip), port, scope) < 0:
                raise ValueError(f"not a source: {ip!r}")
            i += 1

    def run(self):
        """Runs the loop in the calling thread until the worker is stopped. OSError: the poller has failed."""
        cdef int rc
        if self.loop.group == NULL or not sync_claim(&self.running, 0, 1):
            raise RuntimeError("a worker runs once, after link()")
        with nogil:
            rc = engine_run(self.loop)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc), POLLER)

    def stop(self, *, abort):
        """From any thread: accept no more and end with the last relay, or (abort) reset all relays and end."""
        if abort:
            sync_store(&self.loop.stop, ABORT)
        else:
            sync_claim(&self.loop.stop, RUN, DRAIN)       # never in place of an ABORT
        self._wake()

    def close(self):
        """Closes its descriptors, once no worker of its group runs any more. Its counters can still be read."""
        with self.lock:
            resources_close(self.loop)

    cdef void _wake(self):
        with self.lock:
            if self.loop.pump.poller != NULL:
                poller_wake(self.loop.pump.poller)

    # --- names ---

    def wants_addresses(self, int target):
        """Has the worker asked for addresses of this upstream since the last call?"""
        return sync_swap(&self.loop.upstreams[target].asked, 0) != 0

    def set_addresses(self, int target, addresses, lifetime):
        """Answers: (raw IP, port, scope id) in the order to try; none: the look-up failed. (path, -1, 0) is a UNIX socket.

        The answer serves new connections for `lifetime` seconds (None: for ever), and those who wait for it in any case.
        At most 14 addresses are used.
        """
        cdef AddressList *answer = <AddressList *> calloc(1, sizeof(AddressList))
        if answer == NULL:
            raise MemoryError
        answer.users = 1
        answer.expires_ns = <uint64_t> -1 if lifetime is None else clock_ns() + <uint64_t> (lifetime * NS_PER_SECOND)
        for ip, port, scope in addresses[:ADDRESSES]:
            if port < 0:
                ip = self.paths.setdefault(ip, ip)      # addresses point into it
                if net_pack_path(&answer.addresses[answer.count], PyBytes_AsString(ip), PyBytes_Size(ip)) < 0:
                    free(answer)
                    raise ValueError(f"not the path of a UNIX socket: {ip!r}")
            elif net_pack(&answer.addresses[answer.count], PyBytes_AsString(ip), PyBytes_Size(ip), port, scope) < 0:
                free(answer)
                raise ValueError(f"not a raw IP address: {ip!r}")
            answer.count += 1
        free(sync_swap_pointer(&self.loop.upstreams[target].incoming, answer))
        self._wake()

    # --- events ---

    def want_events(self, kinds, bint outgoing):
        """Sets which of KINDS the worker writes event records of.

        `outgoing`: with the proxy's own address toward upstream, which costs a system call per connection.
        """
        cdef uint64_t wanted = EVENTS_OUTGOING if outgoing else 0
        for kind in kinds:
            wanted |= <uint64_t> 1 << (KINDS.index(kind) + EVENT_NEW)
        sync_set(&self.loop.events.wanted, wanted)

    def take_events(self, int most):
        """Up to `most` records: (kind, reason, errno, id, client, upstream, outgoing, to_upstream, to_client, duration,
        connect, time, fault, via, what is wrong with its PROXY header, target).
        """
        cdef EventRecord record
        cdef int64_t wall_offset = <int64_t> wall_ns() - <int64_t> clock_ns()
        taken = []
        while len(taken) < most and events_take(&self.loop.events, &record):
            taken.append((KINDS[record.kind - EVENT_NEW], REASONS[record.reason], max(record.error, 0), record.id,
                          address_text(&record.client), address_text(&record.upstream), address_text(&record.outgoing),
                          record.to_upstream, record.to_client, record.duration_ns / 1e9, record.connect_ns / 1e9,
                          (<int64_t> record.at_ns + wall_offset) / 1e9, record.fault, address_text(&record.via),
                          _problem(&record), record.target))
        return taken

    def await_events(self):
        """Makes the worker wake the reader with its next event record. False: there are some already."""
        events_sleep(&self.loop.events)
        return events_empty(&self.loop.events)

    # --- commands; once the thread that runs the worker has been started ---

    def accept_waiting(self):
        """Accepts the clients that wait. When it returns, the worker has handed on those that another one serves."""
        cdef Message message
        message.kind = MESSAGE_ACCEPT
        self._tell(&message)

    def last_id(self):
        """The number of the connection that was accepted last, by any worker of the group."""
        return sync_load(&self.loop.group.last_id)

    def replace_listeners(self, new):
        """Accepts the clients that wait, closes the listeners and takes these: (fd, target) as in `listen`."""
        cdef NewListeners listeners
        cdef Message message
        cdef int i
        if len(new) > LISTENERS:
            raise ValueError(f"at most {LISTENERS} listeners")
        listeners.count = 0
        listeners.taken = False
        for fd, target in new:
            listeners.fds[listeners.count] = fd
            listeners.targets[listeners.count] = target
            net_tune(listeners.fds[listeners.count], &self.loop.tuning)
            listeners.count += 1
        message.kind = MESSAGE_LISTEN
        message.body = &listeners
        self._tell(&message)
        if not listeners.taken:
            for i in range(listeners.count):
                net_close(listeners.fds[i])

    def hang(self, bint on):
        """Makes the clients of its listeners hang, or no longer, also for workers that share them. OSError: refused."""
        cdef int64_t rc = 0
        cdef Message message
        message.kind = MESSAGE_HANG
        message.id = on
        message.body = &rc
        self._tell(&message)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))

    def pause(self, int directions):
        """Neither reads nor delivers in these directions: 1 to upstream, 2 to the client, 3 both, 0 none."""
        cdef Message message
        message.kind = MESSAGE_PAUSE
        message.id = directions
        self._tell(&message)

    def begin_with(self, Rulebook rules):
        """Puts faults in force; this one before it runs."""
        bending_change(self.loop, rules.plan)

    def bend(self, Rulebook rules):
        """Puts faults in force in place of those before; for its connections too when this returns."""
        cdef Message message
        message.kind = MESSAGE_PLAN
        message.body = rules.plan
        self._tell(&message)

    def kill(self, ids, uint64_t last_id, uint64_t most, *, reset):
        """Ends connections, `most` at once. Returns how many it has ended; fewer than `most`: no others are left.

        `ids`: which; None: all up to `last_id`. `reset`: by RST to both peers, else by FIN.
        """
        cdef Kill kill
        cdef Message message
        cdef uint64_t *memory = NULL
        kill.killed = kill.count = 0
        kill.last_id, kill.most, kill.reset = last_id, most, reset
        if ids is not None:
            memory = <uint64_t *> malloc(len(ids) * sizeof(uint64_t) + 1)
            if memory == NULL:
                raise MemoryError
            for number in sorted(ids):
                memory[kill.count] = number
                kill.count += 1
        kill.ids = memory
        message.kind = MESSAGE_KILL
        message.body = &kill
        self._tell(&message)
        free(memory)
        return kill.killed

    cdef void _tell(self, Message *message):
        """Returns when the worker has carried it out; at once if it has ended."""
        with self.lock:
            if self.loop.pump.poller != NULL:
                with nogil:
                    engine_ask(self.loop, message)

    # --- questions ---

    def sync(self):
        """Returns when the worker has carried out what it was told before; at once if it does not run."""
        cdef Message question
        question.kind = MESSAGE_SYNC
        with self.lock:
            if sync_load(&self.running) and self.loop.pump.poller != NULL:
                with nogil:
                    engine_ask(self.loop, &question)

    def counters(self):
        """Numbers since the start, readable at any time.

        Active are those that were reported and whose end was not. Counters.active also has what is only on its way.
        """
        cdef Counters *it = &self.loop.counters
        cdef uint64_t ended = sync_load(&it.ended)      # first: what has ended was accepted before
        cdef uint64_t accepted = max(ended, sync_peek(&it.accepted))
        return {
            "accepted": accepted, "active": accepted - ended, "ended": ended,
            "failed": sync_peek(&it.failed), "refused": sync_peek(&it.refused),
            "bytes_to_upstream": sync_peek(&it.to_upstream),
            "bytes_to_client": sync_peek(&it.to_client), "bytes_spliced": sync_peek(&self.loop.pump.spliced),
            "accept_errors": sync_peek(&it.accept_errors),
            "events_lost": sync_peek(&self.loop.events.lost), "wakeups": sync_peek(&it.wakeups),
            "polls_hit": sync_peek(&self.loop.spin.hits), "polls_missed": sync_peek(&self.loop.spin.misses),
        }

    cdef Counters *_counters_of(self, int target) noexcept:
        """Of one upstream; of the worker, if that has no other."""
        return &self.loop.by_target[target] if self.loop.by_target != NULL else &self.loop.counters

    def is_down(self, int target):
        """Was this upstream, one of several of a forward, not reached the last time? For all workers of the group."""
        return sync_peek(&self.loop.group.down[target]) != 0

    def measures(self, int target):
        """Numbers since the start of one upstream, with the clients of its forward if it is the first one there.

        How many connections have ended, failed and were refused, by reason (in the order of
        REASONS); how many connect times and durations are in each bucket, and last their sum in seconds.

        Last the seconds for which directions have waited for a rate.

        A bucket has those up to its bound (CONNECT_BOUNDS, DURATION_BOUNDS) and above the one before; the last one the rest.
        """
        cdef Counters *it = self._counters_of(target)
        cdef uint64_t ended = sync_load(&it.ended)      # first, as in counters()
        cdef bint alone = it == &self.loop.counters
        cdef int i
        return {
            "accepted": [sync_peek(&it.accepted)], "over": [ended], "accept_errors": [sync_peek(&it.accept_errors)],
            "bytes_to_upstream": [sync_peek(&it.to_upstream)], "bytes_to_client": [sync_peek(&it.to_client)],
            "bytes_spliced": [sync_peek(&self.loop.pump.spliced if alone else &it.spliced)],
            "ended": [sync_peek(&it.ended_by[i]) for i in range(len(REASONS))],
            "failed": [sync_peek(&it.failed_by[i]) for i in range(len(REASONS))],
            "refused": [sync_peek(&it.refused_by[i]) for i in range(len(REASONS))],
            "connects": _times(&it.connects), "durations": _times(&it.durations),
            "throttled": [sync_peek(&it.throttled_ns) / 1e9],
        }

    def connections(self):
        """Live relays: (numbers, target, held in each direction, keys of faults that have acted, via). The numbers are
        (id, client, upstream, state, to_upstream, to_client, age, connect_time, idle, waiting_for_upstream,
        waiting_for_client, outgoing). Empty when the worker does not run.
        """
        cdef View view
        cdef uint64_t i
        cdef bint looked
        with self.lock:
            looked = self._look(&view)
        # Objects are made without the lock: a garbage collection may run a __del__ that calls this worker.
        try:
            if not looked:
                raise MemoryError
            return [((view.items[i].id, address_text(&view.items[i].client), address_text(&view.items[i].upstream),
                     _state(view.items[i].state), view.items[i].to_upstream, view.items[i].to_client,
                     view.items[i].age_ns / 1e9, view.items[i].connect_ns / 1e9, view.items[i].idle_ns / 1e9,
                     view.items[i].waiting[CLIENT], view.items[i].waiting[UPSTREAM], address_text(&view.items[i].outgoing)),
                     view.items[i].target, (view.items[i].held[CLIENT], view.items[i].held[UPSTREAM]),
                     _keys(&view, view.items[i].acted) if view.items[i].acted else (), address_text(&view.items[i].via))
                    for i in range(view.count)]
        finally:
            free(view.items)

    cdef bint _look(self, View *view) noexcept:
        """Fills a View, whose items the caller frees. False: there is no memory for them."""
        cdef Message question
        view.items = NULL
        view.count = 0
        if not sync_load(&self.running) or self.loop.pump.poller == NULL:
            return True
        question.kind = MESSAGE_VIEW
        question.body = view
        view.room = sync_peek(&self.loop.counters.active) + 64
        while True:
            view.items = <ViewItem *> malloc(view.room * sizeof(ViewItem))
            if view.items == NULL:
                return False
            view.count = 0
            with nogil:
                engine_ask(self.loop, &question)
            if view.count <= view.room:
                return True
            free(view.items)
            view.room = view.count + 64

    def close_after_fork(self):
        """In a forked child: closes the copies of the parent's descriptors; the worker runs on in the parent only."""
        resources_close_after_fork(self.loop)
        self.abandoned = True
        self.lock = self.make_lock()                # a thread that is not in this process may hold the old one


cdef object _problem(const EventRecord *record):
    """What is wrong with a PROXY header, and how it begins; empty: the record is not about one."""
    if record.reason != REASON_PROXY_HEADER:
        return ""
    text = header_problem(record.error).decode()
    return f"{text}: {(<const char *> record.begin)[:record.begin_size]!r}" if record.begin_size else text


cdef object _times(const Histogram *histogram):
    cdef int i
    return [*[sync_peek(&histogram.counts[i]) for i in range(BUCKETS)], sync_peek(&histogram.sum_ns) / 1e9]


cdef object _keys(const View *view, uint32_t bits):
    return tuple([view.keys[i] for i in range(PLAN_RULES) if bits & <uint32_t> 1 << i])


cdef object _state(int state):
    """Greeting is a part of connecting; resetting and lingering are both "closing"."""
    return STATES[(state > RELAY_RESOLVING) + (state > RELAY_GREETING) + (state > RELAY_RELAYING)]
