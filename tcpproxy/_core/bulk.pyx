# How a worker goes back to sleep that moves bulk: the model is in bulk.pxd.
from libc.stdint cimport uint64_t
from tcpproxy._core.thread cimport thread_batch_policy
from tcpproxy._core.trial cimport Trial, trial_arm, trial_count, trial_due, trial_init, trial_restart

cdef enum:
    MANY = 16384            # bytes: a batch that moved more is bulk, where polling won nothing and cost 10 % (iperf3)
    MEAN = 32768            # bytes a batch are steady. Not the least: of 131,072 sent at a time two segments leave 106
    MOST = 131072           # counted of a batch, or the largest bulk_only would make the mean
    SPAN = 16               # batches of the mean
    SAMPLE = 134217728        # bytes, some 30 ms
    TIME = 110              # per cent: where it helped 73 to 110 (iperf3, one stream and more), beside hungry programs 75 to 250
    COST = 90               # where it helped 34 to 85


cdef void bulk_init(Bulk *bulk) noexcept nogil:
    # The other way is as cheap to try as this one: a glance is a look.
    trial_init(&bulk.trial, SAMPLE, SAMPLE, TIME, COST, 0)


cdef bint bulk_count(Bulk *bulk, uint64_t total, bint bulk_only, uint64_t now_ns) noexcept nogil:
    cdef uint64_t moved = total - bulk.moved, turn_ns = now_ns - bulk.since_ns
    if moved:
        bulk.on = moved > MANY or bulk.steady
        bulk.moved = total
        bulk.since_ns = now_ns
    if bulk.unavailable:
        return False
    if not bulk_only or turn_ns >= OVER_NS:
        bulk.mean = 0
    elif moved:
        bulk.mean = (bulk.mean * (SPAN - 1) + min(moved, <uint64_t> MOST)) // SPAN
    if bulk.mean < MEAN:
        bulk.steady = False
        _set_policy(bulk, False)
        return False
    if not bulk.steady:
        bulk.steady = True
        trial_restart(&bulk.trial)
        return True
    if moved == 0:
        return False
    trial_count(&bulk.trial, moved, turn_ns)
    return trial_due(&bulk.trial)


cdef void bulk_judge(Bulk *bulk, uint64_t group_moved) noexcept nogil:
    cdef Trial *trial = &bulk.trial
    if trial_due(trial):
        # The time of what group_moved moves: workers share processors, and what one gains another may lose.
        trial.took_ns = <uint64_t> (<double> trial.took_ns * trial.units / (group_moved - bulk.group_moved))
    bulk.group_moved = group_moved
    _set_policy(bulk, trial_arm(trial))


cdef void _set_policy(Bulk *bulk, bint last) noexcept nogil:
    if bulk.batch_policy != last:
        bulk.unavailable = not thread_batch_policy(last)
        bulk.batch_policy = last and not bulk.unavailable
        bulk.steady = bulk.steady and not bulk.unavailable
