# Rates of --max-rate and --max-rate-per-connection: how much a relay may read, and when.
#
# Nothing is held back here. What may not be read yet stays in the socket, and TCP slows its sender: back-pressure. What was
# read is sent at once.
#
# A direction that has something to read reserves a portion of it, which bucket_reserve puts behind the portions of all others, of
# all workers. When its time has come, and not before, it reads so much; then it reserves the next portion.
# So all that share a rate take turns. The time comes by an alarm of the relay.
#
#   Portion      PORTION_NS of the rate, of the lower one if there are two; at least a segment, and no more than a turn reads. A
#                direction that reads less has reserved no more: it asks the socket how much there is.
#   Ends         An end or a failure without bytes before it takes no portion, and is passed on at once.
#   Debt         A read that is larger than the portion, as the last one of a turn may be, is charged all the same.
#   Splice       as ever; but not with portions that one copy of the scratch holds.
#   Faults       A direction that they shape reads by the same rule.
from libc.stdint cimport uint32_t, uint64_t
from tcpproxy._core.loop cimport RELAY_RELAYING, Group, Loop, Relay
from tcpproxy._core.timers cimport TIMER_NONE

# The rates of one direction, in bytes per second, 0: none. Before a worker runs
cdef void metering_set(Group *group, int side, uint64_t total, uint64_t each) noexcept nogil
cdef bint metering_begin(Relay *relay) noexcept nogil       # a relay is connected. False: no memory
cdef void metering_end(Loop *loop, Relay *relay) noexcept nogil     # also of one that has not begun
# Pumps what a side sends, as far as the rates allow. Returns PUMP_ bits, with PUMP_SHAPED if faults shape it
cdef int metering_pump(Loop *loop, Relay *relay, int side) noexcept nogil


cdef inline bint metering_waits(const Relay *relay) noexcept nogil:
    """A direction waits for its time, and not for a peer."""
    return relay.state == RELAY_RELAYING and relay.origin != NULL and relay.origin.meter != NULL \
        and relay.origin.meter.alarm.kind != TIMER_NONE
