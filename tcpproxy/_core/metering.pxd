# Rates of --max-rate and --max-rate-per-connection: how much a relay may read, and when.
#
# The limit applies to reads, and there is no queue. Bytes that exceed the rate stay unread in the socket, and TCP slows the
# sender down (back-pressure). The pump sends at once the bytes that it has read.
#
# A direction with unread bytes reserves a portion of the rate. bucket_reserve schedules the portion after those that all other
# directions, of all workers, have reserved before. An alarm of the relay fires at the scheduled time. Then the direction reads
# the portion, and reserves the next one. So all connections that share a rate take turns.
#
#   Portion      The bytes of PORTION_NS at the rate, or at the lower rate if there are two; at least a segment, at most the bytes
#                of a turn, and at most the unread bytes of the socket (FIONREAD).
#   Ends         An end of file or a failure with no unread bytes before it needs no portion, and is passed on at once.
#   Ended        A relay that ends gives back the bytes of a shared rate that it has reserved and not read.
#   Debt         A read may be larger than the portion, as the last read of a turn may be. The excess is charged to the rate.
#   Splice       It is used as without a rate, except for portions that fit into one read of the scratch buffer.
#   Faults       A direction that faults shape is limited in the same way.
from libc.stdint cimport uint32_t, uint64_t
from tcpproxy._core.loop cimport RELAY_RELAYING, Group, Loop, Relay
from tcpproxy._core.timers cimport TIMER_NONE

# Sets the rates of one direction, in bytes per second; 0: no limit. To be called before a worker runs
cdef void metering_set(Group *group, int side, uint64_t total, uint64_t each) noexcept nogil
cdef bint metering_begin(Relay *relay) noexcept nogil       # to be called when a relay is connected. False: out of memory
cdef void metering_end(Loop *loop, Relay *relay) noexcept nogil     # also if metering_begin was not called
# Pumps the direction whose source is `side`, as far as the rates allow. Returns PUMP_ bits, with PUMP_SHAPED if faults shape it
cdef int metering_pump(Loop *loop, Relay *relay, int side) noexcept nogil


cdef inline bint metering_waits(const Relay *relay) noexcept nogil:
    """A direction waits for a rate, not for a peer."""
    return relay.state == RELAY_RELAYING and relay.origin != NULL and relay.origin.meter != NULL \
        and relay.origin.meter.alarm.kind != TIMER_NONE
