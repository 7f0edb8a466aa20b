# What a worker runs: the model is in engine.pxd.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from tcpproxy._core.accepting cimport NewListeners, accepting_close, accepting_event, accepting_freed, accepting_hang, \
    accepting_replace, accepting_take_all, accepting_watch
from tcpproxy._core.bending cimport bending_change, bending_has
from tcpproxy._core.bulk cimport BULK_OVER_NS, bulk_count, bulk_judge
from tcpproxy._core.closing cimport closing_abort
from tcpproxy._core.connecting cimport AddressList, addresses_release
from tcpproxy._core.control cimport Kill, control_kill, control_pause
from tcpproxy._core.events cimport REASON_SHUTDOWN
from tcpproxy._core.half cimport half_waiting
from tcpproxy._core.inbox cimport MESSAGE_ACCEPT, MESSAGE_CONNECTION, MESSAGE_HANG, MESSAGE_KILL, MESSAGE_LISTEN, MESSAGE_PAUSE, \
    MESSAGE_PLAN, MESSAGE_SYNC, MESSAGE_VIEW, Message, inbox_pop, inbox_push
from tcpproxy._core.loop cimport ABORT, CLIENT, QUEUED_NOT, RELAY_INTRODUCING, UPSTREAM, Group, Relay, loop_bury, loop_resume, \
    relay_alive, relay_shaping
from tcpproxy._core.net cimport NET_NONE, net_own_address
from tcpproxy._core.opening cimport opening_resolved, opening_start, opening_turn_away
from tcpproxy._core.plan cimport Plan, plan_bit
from tcpproxy._core.poller cimport POLLER_BATCH, poller_wait, poller_wake
from tcpproxy._core.relay cimport relay_event, relay_timer, relay_turn, relay_turns_of_bulk
from tcpproxy._core.shaper cimport Shaping
from tcpproxy._core.sources cimport sources_leave
from tcpproxy._core.spin cimport SPIN_OFF, spin_wait
from tcpproxy._core.splice cimport PIPE_BYTES
from tcpproxy._core.sync cimport sync_add, sync_bump, sync_check, sync_load, sync_load_pointer, sync_peek, sync_set, sync_store, \
    sync_sub, sync_swap, sync_swap_pointer
from tcpproxy._core.table cimport table_at, table_find, table_release
from tcpproxy._core.tap cimport tap_catch_up, tap_claim, tap_close
from tcpproxy._core.tag cimport TAG_LISTENER, tag_listener_number, tag_socket
from tcpproxy._core.thread cimport clock_ns, thread_block_sigpipe, thread_nap_us, thread_yield
from tcpproxy._core.timers cimport alarms_pop, timers_pop, timers_wait_ns

cdef enum:
    # Bytes of one splice while a worker has interactive traffic: a larger one delays all sockets. Measured: docs/decisions.md,
    # "Smaller splices beside interactive traffic".
    SPLICE_SHARED_BYTES = 131072
    # ns for which interactive traffic of one relay limits the splices of all workers. A choice: longer than the pauses of a
    # ping-pong, short beside a transfer.
    INTERACTIVE_HOLD_NS = 100000000
    # ns between two stores of the time of interactive traffic: each takes the cache line from the other workers. A choice,
    # short beside the hold.
    INTERACTIVE_STORE_NS = INTERACTIVE_HOLD_NS // 8
    # us between two looks of a thread that waits for a worker, which takes one batch, usually microseconds. A choice: such
    # waits are rare.
    ASK_NAP_US = 50

cdef int engine_run(Loop *loop) noexcept nogil:
    cdef int count = 0, turns
    thread_block_sigpipe()
    loop.now_ns = clock_ns()
    accepting_watch(loop)
    while True:
        _commands(loop)
        if loop.timers.alarms != NULL:
            _alarms(loop)
        turns = _run_queue(loop)
        if loop.bulk_queue.first != NULL:
            relay_turns_of_bulk(loop, turns)
        _timers(loop)
        if loop.closed != 0:
            _reclaim(loop)
        if sync_peek(&loop.stop) and _may_end(loop):
            break
        count = _wait(loop)
        sync_bump(&loop.counters.wakeups, 1)
        if count < 0:
            break
        _events(loop, count)
    _finish(loop)
    return count if count < 0 else 0


cdef bint _may_end(Loop *loop) noexcept nogil:
    """Returns whether the loop may end: no relay is left, and no command is on its way.

    A sender adds to `active` or `asking`, then reads `finished`. This sets `finished`, then reads the counts. At least one
    of the two sees the other's change (sync.pxd).
    """
    if sync_load(&loop.counters.active) or loop.lingering:
        return False
    accepting_close(loop)               # the stop may be younger than _commands; who reads `finished` counts on that
    sync_swap(&loop.finished, 1)
    if sync_check(&loop.counters.active) == 0 and sync_check(&loop.asking) == 0:
        return True
    sync_store(&loop.finished, 0)       # a command is on its way: its sender may have read `finished` before it was set
    return False


cdef void _finish(Loop *loop) noexcept nogil:
    cdef Message message
    accepting_close(loop)
    sync_swap(&loop.finished, 1)
    _abort_all(loop)                    # there are none, unless the poller has failed
    _reclaim(loop)
    while sync_check(&loop.counters.active) or sync_check(&loop.asking):   # a command is on its way: see _may_end
        if not inbox_pop(&loop.inbox, &message):
            thread_yield()
        elif message.kind == MESSAGE_CONNECTION:
            if not message.proxied:
                sources_leave(&loop.group.sources, &message.client)
            opening_turn_away(loop, &message, REASON_SHUTDOWN, 0)
        else:
            _carry_out(loop, &message)
    if loop.pump.tap != NULL:
        tap_close(loop.pump.tap)


cdef void _events(Loop *loop, int count) noexcept nogil:
    cdef uint64_t tag
    cdef Relay *relay
    cdef bint found = False
    cdef int i
    for i in range(count):
        tag = loop.ready[i].tag
        if loop.ready[i].bits == 0:             # a wake-up: _commands looks for its cause
            continue
        if tag_socket(tag) == TAG_LISTENER:
            found = True
            accepting_event(loop, tag_listener_number(tag))
            continue
        relay = table_find(&loop.table, tag)
        if relay != NULL:
            relay_event(loop, relay, tag_socket(tag), loop.ready[i].bits)
            loop.last_side = CLIENT if tag_socket(tag) == 0 else UPSTREAM
    if not found:
        loop.accepting.found = False


cdef void _alarms(Loop *loop) noexcept nogil:
    cdef int kind = 0
    cdef void *relay
    while True:
        relay = alarms_pop(&loop.timers, loop.now_ns, &kind)
        if relay == NULL:
            break
        relay_timer(loop, <Relay *> relay, kind)


cdef int _run_queue(Loop *loop) noexcept nogil:
    """A turn for every relay that is on the run queue now. Returns the number of turns.

    One that needs another turn gets it in the next batch.
    """
    cdef Relay *relay = loop.queue.first
    cdef Relay *rest
    cdef int turns = 0
    loop.queue.first = loop.queue.last = NULL
    while relay != NULL:
        rest = relay.next
        relay.queued = QUEUED_NOT       # before the turn, which may ask for another one
        relay_turn(loop, relay)
        turns += 1
        relay = rest
    return turns


cdef void _timers(Loop *loop) noexcept nogil:
    cdef int kind = 0
    cdef void *relay
    while True:
        relay = timers_pop(&loop.timers, loop.now_ns, &kind)
        if relay == NULL:
            break
        relay_timer(loop, <Relay *> relay, kind)
    if loop.accepting.resume_ns and loop.accepting.resume_ns <= loop.now_ns:
        accepting_watch(loop)


cdef void _reclaim(Loop *loop) noexcept nogil:
    """Reclaims closed relays. One that is still on a run queue is reclaimed in a later batch."""
    cdef uint32_t rest = loop.closed
    cdef Relay *relay
    loop.closed = 0
    while rest != 0:
        relay = table_at(&loop.table, rest - 1)
        rest = relay.next_closed
        if relay.queued != QUEUED_NOT:          # it was given another turn and then closed in the same batch
            loop_bury(loop, relay)
        else:
            table_release(&loop.table, relay)
    accepting_freed(loop)


# --- waiting ---

cdef int _wait(Loop *loop) noexcept nogil:
    """Waits for events and updates now_ns. Returns the number of events, or -errno."""
    cdef int64_t timeout_ns
    cdef int count
    cdef bint exact, interactive = _group_interactive(loop)
    if interactive != loop.beside_interactive:
        loop.beside_interactive = interactive
        loop.pump.splice_size = SPLICE_SHARED_BYTES if interactive else PIPE_BYTES
        loop.pump.budget = loop.turn_bytes // 2 if interactive else loop.turn_bytes
    if bulk_count(&loop.bulk, _moved(loop), not interactive, loop.now_ns):
        bulk_judge(&loop.bulk, _all_moved(loop.group))
    timeout_ns = _wait_ns(loop)
    exact = loop.timers.alarms != NULL  # of faults, whose delays are to be right to less than a millisecond
    if loop.spin.mode != SPIN_OFF and not loop.bulk.on and timeout_ns != 0 and sync_peek(&loop.counters.active):
        return spin_wait(&loop.spin, loop.pump.poller, loop.ready, POLLER_BATCH, timeout_ns, exact, loop.last_side,
                         &loop.now_ns)
    if loop.bulk.on and timeout_ns != 0:
        thread_yield()                  # a sender or receiver on this processor runs first: the next batch is larger
    count = poller_wait(loop.pump.poller, loop.ready, POLLER_BATCH, timeout_ns, exact)
    loop.now_ns = clock_ns()
    return count


cdef uint64_t _moved(Loop *loop) noexcept nogil:            # bytes, both ways
    return sync_peek(&loop.counters.to_upstream) + sync_peek(&loop.counters.to_client)


cdef uint64_t _all_moved(Group *group) noexcept nogil:
    cdef uint64_t total = 0
    cdef int i
    for i in range(group.count):
        total += _moved(group.members[i])
    return total


cdef bint _group_interactive(Loop *loop) noexcept nogil:
    """Tells the group of this worker's interactive traffic. Returns whether any worker has had some lately.

    While one has, all workers splice less at once: on Linux the packets of all sockets share the softirq queues, so that a
    large splice delays every worker.
    """
    cdef uint64_t now_ns = loop.now_ns, interactive_ns = sync_peek(&loop.group.interactive_ns)
    if loop.interactive:
        loop.interactive = False
        if now_ns > interactive_ns + INTERACTIVE_STORE_NS:
            sync_set(&loop.group.interactive_ns, now_ns)
            interactive_ns = now_ns
    return now_ns < interactive_ns + INTERACTIVE_HOLD_NS


cdef int64_t _wait_ns(Loop *loop) noexcept nogil:
    """Nanoseconds until the next thing to do; 0: now; -1: none is planned."""
    cdef int64_t wait, pause
    if loop.queue.first != NULL or loop.bulk_queue.first != NULL:
        return 0
    wait = timers_wait_ns(&loop.timers, loop.now_ns)
    if loop.accepting.resume_ns:
        pause = <int64_t> (loop.accepting.resume_ns - loop.now_ns) if loop.accepting.resume_ns > loop.now_ns else 0
        if wait < 0 or pause < wait:
            wait = pause
    if loop.bulk.batch_policy and (wait < 0 or wait > BULK_OVER_NS):
        wait = BULK_OVER_NS
    return wait


# --- commands from other threads ---

cdef void _commands(Loop *loop) noexcept nogil:
    cdef Message message
    cdef AddressList *list
    cdef int i
    while inbox_pop(&loop.inbox, &message):
        if message.kind == MESSAGE_CONNECTION:
            opening_start(loop, &message)
        else:
            _carry_out(loop, &message)
    for i in range(loop.upstream_count):
        if sync_load_pointer(&loop.upstreams[i].incoming) != NULL:
            list = <AddressList *> sync_swap_pointer(&loop.upstreams[i].incoming, NULL)
            _take_addresses(loop, i, list)
    _obey_stop(loop)
    if loop.pump.tap != NULL and tap_catch_up(loop.pump.tap) and loop.stalled.first != NULL \
            and tap_claim(loop.pump.tap, loop.pump.size) != NULL:
        loop_resume(loop)


cdef void _obey_stop(Loop *loop) noexcept nogil:
    cdef uint64_t stop = sync_load(&loop.stop)
    if stop:
        accepting_close(loop)
    if stop == ABORT:
        _abort_all(loop)


cdef void _take_addresses(Loop *loop, int target, AddressList *list) noexcept nogil:
    """A lookup has completed, perhaps with no addresses: connects or fails the relays that waited."""
    cdef uint32_t i
    addresses_release(loop.upstreams[target].list)
    loop.upstreams[target].list = list
    if not loop.upstreams[target].waiting:
        return
    loop.upstreams[target].waiting = False
    for i in range(loop.table.size):
        if table_at(&loop.table, i).target == target:
            opening_resolved(loop, table_at(&loop.table, i))


cdef void _abort_all(Loop *loop) noexcept nogil:
    cdef Relay *relay
    cdef uint32_t i
    for i in range(loop.table.size):
        relay = table_at(&loop.table, i)
        if relay_alive(relay):
            closing_abort(loop, relay)


cdef void _carry_out(Loop *loop, const Message *message) noexcept nogil:
    """Carries out a command whose sender waits for it."""
    if message.kind == MESSAGE_VIEW:
        _fill_view(loop, <View *> message.body)
    elif message.kind == MESSAGE_SYNC:
        _obey_stop(loop)
    elif message.kind == MESSAGE_ACCEPT:
        accepting_take_all(loop)
    elif message.kind == MESSAGE_LISTEN:
        accepting_replace(loop, <NewListeners *> message.body)
    elif message.kind == MESSAGE_HANG:
        (<int64_t *> message.body)[0] = accepting_hang(loop, message.id != 0)
    elif message.kind == MESSAGE_PAUSE:
        control_pause(loop, <uint8_t> message.id)
    elif message.kind == MESSAGE_KILL:
        control_kill(loop, <Kill *> message.body)
    elif message.kind == MESSAGE_PLAN:
        bending_change(loop, <Plan *> message.body)
    sync_sub(&loop.asking, 1)
    sync_store(message.done, 1)         # last: after this store the sender may return, and `done` is in its frame


cdef void _fill_view(Loop *loop, View *view) noexcept nogil:
    cdef ViewItem *item
    cdef Relay *relay
    cdef uint32_t i
    for i in range(loop.plan.count if loop.plan != NULL else 0):
        view.keys[i] = loop.plan.rules[i].key
    for i in range(loop.table.size):
        relay = table_at(&loop.table, i)
        if not relay_alive(relay) or relay.killed or relay.state == RELAY_INTRODUCING:
            continue
        if view.count < view.room:
            item = &view.items[view.count]
            item.id = relay.id
            item.client = relay.client
            item.upstream = relay.upstream
            item.to_upstream = relay.halves[CLIENT].delivered
            item.to_client = relay.halves[UPSTREAM].delivered
            item.age_ns = loop.now_ns - relay.accepted_ns
            item.connect_ns = relay.connected_ns - relay.accepted_ns if relay.connected_ns else 0
            item.idle_ns = loop.now_ns - (relay.moved_ns or relay.connected_ns or relay.accepted_ns)
            item.waiting[CLIENT] = half_waiting(&relay.halves[CLIENT])
            item.waiting[UPSTREAM] = half_waiting(&relay.halves[UPSTREAM])
            item.held[CLIENT] = item.held[UPSTREAM] = item.acted = 0
            if bending_has(relay):
                _fill_faults(loop, item, relay)
            item.outgoing.length = item.via.length = 0
            if relay.origin != NULL:
                item.via = relay.origin.via
            if relay.connected_ns and relay.sides[UPSTREAM].watch.fd != NET_NONE:
                net_own_address(relay.sides[UPSTREAM].watch.fd, &item.outgoing)
            item.state = relay.state
            item.target = relay.target
        view.count += 1


cdef void _fill_faults(const Loop *loop, ViewItem *item, const Relay *relay) noexcept nogil:
    cdef const Shaping *shaping = relay_shaping(relay)
    cdef uint32_t i
    item.held[CLIENT] = shaping.halves[CLIENT].held
    item.held[UPSTREAM] = shaping.halves[UPSTREAM].held
    for i in range(shaping.plan.count):                 # not always loop.plan: one that is closing keeps its own
        if shaping.acted & <uint32_t> 1 << i:
            item.acted |= plan_bit(loop.plan, shaping.plan.rules[i].key)


cdef void engine_ask(Loop *loop, Message *message) noexcept nogil:
    cdef uint64_t done = 0
    message.done = &done
    sync_add(&loop.asking, 1)
    if sync_check(&loop.finished):
        sync_sub(&loop.asking, 1)
        poller_wake(loop.pump.poller)   # it may have cancelled its end because of `asking`
        return
    while not inbox_push(&loop.inbox, message):
        thread_nap_us(ASK_NAP_US)       # the worker empties it with its next batch
    poller_wake(loop.pump.poller)
    while not sync_load(&done):
        thread_nap_us(ASK_NAP_US)
