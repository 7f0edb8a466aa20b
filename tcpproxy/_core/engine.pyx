# What a worker runs: the model is in engine.pxd.
from libc.stdint cimport int64_t, uint32_t, uint64_t
from tcpproxy._core.bulk cimport OVER_NS, bulk_count, bulk_judge
from tcpproxy._core.connecting cimport AddressList, addresses_release
from tcpproxy._core.events cimport EVENT_ACCEPT, EVENT_LIMIT, EventRecord, events_claim, events_publish
from tcpproxy._core.handoff cimport Handed, handoff_pop, handoff_push
from tcpproxy._core.net cimport net_accept, net_accept_transient, thread_block_sigpipe, net_close, net_out_of_resources, \
    thread_nap_us, clock_ns, net_reset, net_socket, net_would_block, thread_yield
from tcpproxy._core.poller cimport WATCH_LISTENER, poller_add, poller_remove, poller_wait, poller_wake
from tcpproxy._core.relay cimport CLIENT, RELAY_CLOSED, RELAY_FREE, UPSTREAM, Relay, relay_abort, \
    relay_answered, relay_event, relay_start, relay_timer, relay_turn, relay_turn_away
from tcpproxy._core.sources cimport sources_enter, sources_leave
from tcpproxy._core.spin cimport SPIN_OFF, spin_wait
from tcpproxy._core.splice cimport PIPE_SIZE
from tcpproxy._core.sync cimport sync_add, sync_bump, sync_check, sync_load, sync_load_pointer, sync_peek, sync_set, \
    sync_store, sync_sub, sync_swap, sync_swap_pointer
from tcpproxy._core.table cimport table_at, table_find, table_release
from tcpproxy._core.timers cimport Timer, timers_pop, timers_wait_ns

cdef enum:
    ACCEPTS = 16            # in a row, before relays get their turn
    PAUSE_NS = 100000000    # of accepting, when out of descriptors or memory
    SPLICE_SHARED = 131072         # bytes of one splice beside a conversation: who talks waits for what is moved at once
    INTERACTIVE_NS = 100000000   # for so long after it
    ACCEPT_RETRY_NS = 5000000     # of accepting at the limit of connections, when one has ended


cdef int engine_run(Engine *engine) noexcept nogil:
    cdef int count = 0
    thread_block_sigpipe()
    engine.loop.now_ns = clock_ns()
    _watch_listeners(engine)
    while True:
        _commands(engine)
        _run_queue(engine)
        _timers(engine)                         # after the turns: bytes that have come are no idle time
        _reclaim(engine)
        if sync_peek(&engine.stop) and _may_end(engine):
            break
        count = _wait(engine)
        sync_bump(&engine.loop.counters.wakeups, 1)
        if count < 0:
            break
        _events(engine, count)
    _finish(engine)
    return count if count < 0 else 0


cdef bint _may_end(Engine *engine) noexcept nogil:
    """Is there nothing left to do, and does everybody know? See _hand_off."""
    if sync_load(&engine.loop.counters.active):
        return False
    sync_swap(&engine.finished, 1)
    if sync_check(&engine.loop.counters.active) == 0:
        return True
    sync_store(&engine.finished, 0)             # somebody counts on us, who may not have seen it
    return False


cdef void _finish(Engine *engine) noexcept nogil:
    cdef Handed handed
    _close_listeners(engine)
    sync_swap(&engine.finished, 1)              # before the last look at `view`: see engine_view
    _abort_all(engine)                          # none, unless the poller has failed
    _reclaim(engine)
    while sync_check(&engine.loop.counters.active):     # the same; or somebody is about to see that we have finished
        if handoff_pop(&engine.inbox, &handed):
            net_reset(handed.fd)
            sources_leave(engine.loop.sources, &handed.client)
            sync_sub(&engine.loop.counters.active, 1)
        else:
            thread_yield()
    _answer_view(engine)


cdef int _wait(Engine *engine) noexcept nogil:
    """The next events, and the time."""
    cdef int64_t timeout_ns
    cdef int count
    cdef bint bulk_only = _limit_splice(engine)
    if bulk_count(&engine.bulk, _moved(engine), bulk_only, engine.loop.now_ns):
        bulk_judge(&engine.bulk, _all_moved(engine.group))
    timeout_ns = _wait_ns(engine)
    if engine.spin.mode != SPIN_OFF and not engine.bulk.on and timeout_ns != 0 and sync_peek(&engine.loop.counters.active):
        return spin_wait(&engine.spin, engine.loop.pump.poller, engine.ready, BATCH, timeout_ns, engine.last_side,
                         &engine.loop.now_ns)
    if engine.bulk.on and timeout_ns != 0:
        thread_yield()                             # whoever sends or receives here goes first: the next batch is larger
    count = poller_wait(engine.loop.pump.poller, engine.ready, BATCH, timeout_ns)
    engine.loop.now_ns = clock_ns()
    return count


cdef uint64_t _moved(Engine *engine) noexcept nogil:
    """Bytes, both ways."""
    return sync_peek(&engine.loop.counters.to_upstream) + sync_peek(&engine.loop.counters.to_client)


cdef uint64_t _all_moved(Group *group) noexcept nogil:
    cdef uint64_t total = 0
    cdef int i
    for i in range(group.count):
        total += _moved(group.members[i])
    return total


cdef bint _limit_splice(Engine *engine) noexcept nogil:
    """Bulk moves in small steps, on all workers, as long as one of them has a conversation too: on Linux they share what
    the kernel does for packets, whoever called it. True: none has."""
    cdef uint64_t now_ns = engine.loop.now_ns, interactive_ns = sync_peek(&engine.group.interactive_ns)
    cdef bint bulk_only
    if engine.loop.interactive:
        engine.loop.interactive = False
        # Rate-limited: each store invalidates the cache line in every other worker.
        if now_ns > interactive_ns + INTERACTIVE_NS // 8:
            sync_set(&engine.group.interactive_ns, now_ns)
            interactive_ns = now_ns
    bulk_only = now_ns >= interactive_ns + INTERACTIVE_NS
    engine.loop.pump.splice_size = PIPE_SIZE if bulk_only else SPLICE_SHARED
    return bulk_only


cdef int64_t _wait_ns(Engine *engine) noexcept nogil:
    cdef int64_t wait, pause
    if engine.loop.queue_first != NULL:
        return 0
    wait = timers_wait_ns(&engine.loop.timers, engine.loop.now_ns)
    if engine.resume_ns:
        pause = <int64_t> (engine.resume_ns - engine.loop.now_ns) if engine.resume_ns > engine.loop.now_ns else 0
        if wait < 0 or pause < wait:
            wait = pause
    if engine.bulk.batch_policy and (wait < 0 or wait > OVER_NS):
        wait = OVER_NS
    return wait


cdef void _events(Engine *engine, int count) noexcept nogil:
    cdef uint64_t tag
    cdef Relay *relay
    cdef bint accepted = False
    cdef int i
    for i in range(count):
        tag = engine.ready[i].tag
        if engine.ready[i].bits == 0:           # a wake-up: _commands looks what it is about
            continue
        if tag & 0xf == 0xf:
            accepted = True
            if engine.listening:
                _accept(engine, &engine.listeners[tag >> 4])
            continue
        relay = table_find(&engine.loop.table, tag)
        if relay != NULL:
            relay_event(&engine.loop, relay, tag & 0xf, engine.ready[i].bits)
            engine.last_side = tag & 0xf != 0
    if not accepted:
        engine.accepted = False


cdef void _timers(Engine *engine) noexcept nogil:
    cdef int kind = 0
    cdef Timer *timer
    while True:
        timer = timers_pop(&engine.loop.timers, engine.loop.now_ns, &kind)
        if timer == NULL:
            break
        relay_timer(&engine.loop, <Relay *> timer.owner, kind)
    if engine.resume_ns and engine.resume_ns <= engine.loop.now_ns:
        _watch_listeners(engine)


cdef void _run_queue(Engine *engine) noexcept nogil:
    """One turn for every relay that is on the queue now; who wants more comes after the next look at the events."""
    cdef Relay *relay = engine.loop.queue_first
    cdef Relay *rest
    engine.loop.queue_first = engine.loop.queue_last = NULL
    while relay != NULL:
        rest = relay.next
        relay.next = NULL
        relay.queued = False
        relay_turn(&engine.loop, relay)
        relay = rest


cdef void _reclaim(Engine *engine) noexcept nogil:
    """Frees what has died in this batch: no event and no queue can name it any more."""
    cdef Relay *relay = engine.loop.closed
    cdef Relay *rest
    cdef bint any = relay != NULL
    engine.loop.closed = NULL
    while relay != NULL:
        rest = relay.next_closed
        if relay.queued:                        # it was given another turn and then died in this one
            relay.next_closed = engine.loop.closed
            engine.loop.closed = relay
        else:
            table_release(&engine.loop.table, relay)
        relay = rest
    if any and engine.at_limit:
        # A slot is free, so wait no longer than this: proxies in a circle would refill it 10,000 times a second.
        if engine.resume_ns > engine.paused_ns + ACCEPT_RETRY_NS:
            engine.resume_ns = engine.paused_ns + ACCEPT_RETRY_NS


# --- accepting ---

cdef void _watch_listeners(Engine *engine) noexcept nogil:
    cdef int i, rc = 0
    engine.resume_ns = 0
    engine.at_limit = False
    if engine.listening or sync_peek(&engine.stop):
        return
    for i in range(engine.listener_count):
        engine.listeners[i].watch.tag = <uint64_t> i << 4 | 0xf
        rc = poller_add(engine.loop.pump.poller, &engine.listeners[i].watch, WATCH_LISTENER)
        if rc < 0:                              # no memory for it: undo, and try again after the pause
            while i > 0:
                i -= 1
                poller_remove(engine.loop.pump.poller, &engine.listeners[i].watch, WATCH_LISTENER)
            engine.resume_ns = engine.loop.now_ns + PAUSE_NS
            _say(engine, EVENT_ACCEPT, -rc)
            return
    engine.listening = True


cdef void _ignore_listeners(Engine *engine) noexcept nogil:
    cdef int i
    if engine.listening:
        for i in range(engine.listener_count):
            poller_remove(engine.loop.pump.poller, &engine.listeners[i].watch, WATCH_LISTENER)
    engine.listening = False


cdef void _close_listeners(Engine *engine) noexcept nogil:
    cdef int i
    _ignore_listeners(engine)
    for i in range(engine.listener_count):
        net_close(engine.listeners[i].watch.fd)
    engine.listener_count = 0
    engine.resume_ns = 0


cdef void _say(Engine *engine, int kind, int error) noexcept nogil:
    cdef EventRecord *record = events_claim(&engine.loop.events, kind)
    if record != NULL:
        record.error = error
        events_publish(&engine.loop.events)


cdef void _pause(Engine *engine, int kind, int error) noexcept nogil:
    """The listener is level-triggered: what cannot be accepted must not be watched either, or the loop would spin."""
    _ignore_listeners(engine)
    engine.paused_ns = engine.loop.now_ns
    engine.resume_ns = engine.paused_ns + PAUSE_NS
    engine.at_limit = kind == EVENT_LIMIT
    _say(engine, kind, error)


cdef bint _reserve(Engine *engine) noexcept nogil:
    """Counts one connection more, unless that would be one too many for the group."""
    cdef Group *group = engine.group
    cdef uint64_t total = 0
    cdef int i
    sync_add(&engine.loop.counters.active, 1)
    for i in range(group.count):
        total += sync_load(&group.members[i].loop.counters.active)
    if total > group.limit:
        sync_sub(&engine.loop.counters.active, 1)
        return False
    return True


cdef void _accept(Engine *engine, Listener *listener) noexcept nogil:
    """Takes one connection, and more only if some batches in a row have had one: the call that finds none is worth
    avoiding (one in five while eight clients came and went, when each batch in a row doubled the number)."""
    cdef net_addr client
    cdef int64_t fd
    cdef int _turn
    engine.accept_credit = engine.accept_credit + 1 if engine.accepted and engine.accept_credit < 4 * ACCEPTS else 4
    engine.accepted = True
    for _turn in range(engine.accept_credit // 4):
        if not _reserve(engine):
            if _turn == 0:                      # later in a row it is not known whether anybody waits
                _pause(engine, EVENT_LIMIT, 0)
            return
        fd = net_accept(listener.watch.fd, &client, &engine.loop.tuning)
        if fd >= 0 and not sources_enter(engine.loop.sources, &client):
            relay_turn_away(&engine.loop, <net_socket> fd, &client, 0)
            continue
        if fd >= 0:
            _choose_worker(engine, <net_socket> fd, &client, listener.target)
            continue
        sync_sub(&engine.loop.counters.active, 1)
        if net_would_block(fd):
            engine.accepted = False
            return
        if net_out_of_resources(fd) and _turn > 0:     # Linux needs a descriptor before it looks whether anybody waits
            return
        sync_bump(&engine.loop.counters.accept_errors, 1)
        if not net_accept_transient(<int> fd):
            _pause(engine, EVENT_ACCEPT, <int> -fd)
            return


cdef void _choose_worker(Engine *engine, net_socket fd, const net_addr *client, int target) noexcept nogil:
    """Keeps the connection, or hands it to the worker with the fewest, if that one has clearly fewer."""
    cdef uint64_t mine = sync_peek(&engine.loop.counters.active) - 1, fewest = mine, other
    cdef Engine *best = engine
    cdef int i
    for i in range(engine.group.count):
        other = sync_peek(&engine.group.members[i].loop.counters.active)
        if other < fewest:
            fewest = other
            best = engine.group.members[i]
    if mine > fewest + fewest // 4 and _hand_off(best, fd, client, target):
        sync_sub(&engine.loop.counters.active, 1)
    else:
        relay_start(&engine.loop, fd, client, target)


cdef bint _hand_off(Engine *to, net_socket fd, const net_addr *client, int target) noexcept nogil:
    """False: its queue is full, or it ends. Either it sees that it has a connection more, or we see that it has finished.

    Its poller is there to be woken even then: it is closed when no worker of the group runs any more."""
    cdef bint taken
    sync_add(&to.loop.counters.active, 1)
    taken = not sync_check(&to.finished) and handoff_push(&to.inbox, fd, client, target)
    if not taken:
        sync_sub(&to.loop.counters.active, 1)
    poller_wake(to.loop.pump.poller)            # also for nothing: it may have put off its end for this one
    return taken


# --- commands from other threads ---

cdef void _commands(Engine *engine) noexcept nogil:
    cdef Handed handed
    cdef AddressList *answer
    cdef uint64_t stop
    cdef int i
    while handoff_pop(&engine.inbox, &handed):
        relay_start(&engine.loop, handed.fd, &handed.client, handed.target)
    for i in range(engine.loop.upstream_count):
        if sync_load_pointer(&engine.loop.upstreams[i].incoming) != NULL:
            answer = <AddressList *> sync_swap_pointer(&engine.loop.upstreams[i].incoming, NULL)
            _answered(engine, i, answer)
    if sync_load_pointer(&engine.view) != NULL:
        _answer_view(engine)
    stop = sync_load(&engine.stop)
    if stop:
        _close_listeners(engine)
    if stop == ABORT:
        _abort_all(engine)


cdef void _answered(Engine *engine, int target, AddressList *answer) noexcept nogil:
    cdef uint32_t i
    addresses_release(engine.loop.upstreams[target].list)
    engine.loop.upstreams[target].list = answer
    if not engine.loop.upstreams[target].waiting:
        return
    engine.loop.upstreams[target].waiting = False
    for i in range(engine.loop.table.size):
        if table_at(&engine.loop.table, i).target == target:
            relay_answered(&engine.loop, table_at(&engine.loop.table, i))


cdef void _abort_all(Engine *engine) noexcept nogil:
    cdef Relay *relay
    cdef uint32_t i
    for i in range(engine.loop.table.size):
        relay = table_at(&engine.loop.table, i)
        if relay.state != RELAY_FREE and relay.state != RELAY_CLOSED:
            relay_abort(&engine.loop, relay)


cdef void _answer_view(Engine *engine) noexcept nogil:
    cdef View *view = <View *> sync_swap_pointer(&engine.view, NULL)
    cdef ViewItem *item
    cdef Relay *relay
    cdef uint32_t i
    if view == NULL:
        return
    for i in range(engine.loop.table.size):
        relay = table_at(&engine.loop.table, i)
        if relay.state == RELAY_FREE or relay.state == RELAY_CLOSED:
            continue
        if view.count < view.room:
            item = &view.items[view.count]
            item.client = relay.client
            item.upstream = relay.upstream
            item.to_upstream = relay.halves[CLIENT].delivered
            item.to_client = relay.halves[UPSTREAM].delivered
            item.age_ns = engine.loop.now_ns - relay.accepted_ns
            item.state = relay.state
        view.count += 1
    sync_store(&view.done, 1)


cdef void engine_view(Engine *engine, View *view) noexcept nogil:
    """Asks the worker for a look at its relays and waits until it is there (a batch, usually microseconds)."""
    view.count = view.done = 0
    sync_swap_pointer(&engine.view, view)
    if sync_load(&engine.finished):             # nobody is left to answer, unless it was the last thing it did
        if sync_swap_pointer(&engine.view, NULL) != NULL:
            return
    poller_wake(engine.loop.pump.poller)
    while not sync_load(&view.done):
        thread_nap_us(50)
