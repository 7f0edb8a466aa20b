# Commands of other threads about connections: the model is in control.pxd.
from libc.stdint cimport uint32_t
from tcpproxy._core.closing cimport closing_kill, closing_refuse
from tcpproxy._core.events cimport REASON_KILLED
from tcpproxy._core.loop cimport RELAY_INTRODUCING, RELAY_RELAYING, RELAY_RESETTING, Relay, loop_enqueue, relay_alive
from tcpproxy._core.table cimport table_at
from tcpproxy._core.timers cimport TIMER_NONE, timers_arm


cdef bint _is_meant(const Kill *kill, uint64_t number) noexcept nogil:
    """A binary search."""
    cdef uint64_t first = 0, last = kill.count, middle
    if kill.ids == NULL:
        return number <= kill.last_id
    while first < last:
        middle = first + (last - first) // 2
        if kill.ids[middle] < number:
            first = middle + 1
        else:
            last = middle
    return first < kill.count and kill.ids[first] == number


cdef void control_kill(Loop *loop, Kill *kill) noexcept nogil:
    cdef Relay *relay
    cdef uint32_t i
    for i in range(loop.table.size):
        relay = table_at(&loop.table, i)
        if relay_alive(relay) and not relay.killed and _is_meant(kill, relay.id):
            if relay.state == RELAY_INTRODUCING:        # no connection yet
                closing_refuse(loop, relay, REASON_KILLED, 0, NULL)
                continue
            if kill.killed == kill.most:
                return
            closing_kill(loop, relay, kill.reset)
            kill.killed += 1


cdef void control_pause(Loop *loop, uint8_t directions) noexcept nogil:
    cdef uint8_t resumed = loop.paused & ~directions
    cdef Relay *relay
    cdef uint32_t i
    loop.paused = directions
    if not resumed:
        return
    for i in range(loop.table.size):
        relay = table_at(&loop.table, i)
        if relay.state == RELAY_RELAYING or relay.state == RELAY_RESETTING:
            loop_enqueue(loop, relay)
            if relay.deadline.kind != TIMER_NONE:       # the pause does not count as idle time
                timers_arm(&loop.timers, &relay.deadline, relay.deadline.kind, loop.now_ns)
