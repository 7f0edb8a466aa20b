# Rates of --max-rate and --max-rate-per-connection: how much a relay may read, and when.
#
# The limit is applied to reads, and there is no queue. Bytes that exceed the rate stay unread in the socket, and TCP slows the
# sender down (back-pressure). What was read is sent at once.
#
# A direction with unread bytes reserves a portion of the rate. bucket_reserve schedules the portion after those that all other
# directions, of all workers, have reserved before. An alarm of the relay fires at the scheduled time. Then the direction reads
# the portion, and reserves the next one. So all connections that share a rate take turns.
#
#   Portion      PORTION_NS of the rate, of the lower rate if there are two; at least a segment, and at most what a turn reads.
#                It is never larger than the number of unread bytes, for which the socket is asked first (FIONREAD).
#   Ends         An end of file or a failure with no unread bytes before it needs no portion, and is passed on at once.
#   Ended        A relay that ends gives back what it has reserved of a shared rate and not read.
#   Debt         A read may be larger than the portion, as the last read of a turn may be. The excess is charged to the rate.
#   Splice       is used as without a rate, except for portions that fit into one read of the scratch buffer.
#   Faults       A direction that faults shape is limited in the same way.
from libc.stdint cimport uint32_t, uint64_t
from tcpproxy._core.loop cimport RELAY_RELAYING, Group, Loop, Relay
from tcpproxy._core.timers cimport TIMER_NONE

# Sets the rates of one direction, in bytes per second; 0: no limit. To be called before a worker runs
cdef void metering_set(Group *group, int side, uint64_t total, uint64_t each) noexcept nogil
cdef bint metering_begin(Relay *relay) noexcept nogil       # when a relay is connected. False: out of memory
cdef void metering_end(Loop *loop, Relay *relay) noexcept nogil     # also if metering_begin was not called
# Pumps the direction whose source is this side, as far as the rates allow. Returns PUMP_ bits, with PUMP_SHAPED if
# faults shape it
cdef int metering_pump(Loop *loop, Relay *relay, int side) noexcept nogil


cdef inline bint metering_waits(const Relay *relay) noexcept nogil:
    """A direction waits for the rate, not for a peer."""
    return relay.state == RELAY_RELAYING and relay.origin != NULL and relay.origin.meter != NULL \
        and relay.origin.meter.alarm.kind != TIMER_NONE
