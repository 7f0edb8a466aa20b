# Scheduling in bulk: the model is in docs/core.md, "Scheduling and polling".
from libc.stdint cimport uint64_t
from tcpproxy._core.thread cimport thread_batch_policy
from tcpproxy._core.trial cimport Trial, trial_arm, trial_count, trial_due, trial_init, trial_restart

cdef enum:                  # the measurements are in docs/decisions.md
    BULK_BATCH_BYTES = 16384    # a batch that moved more is bulk. Busy polling after one gained nothing and cost 10 % (iperf3)
    # Bytes per batch that make bulk steady, as a mean. A minimum per batch would not do: of 131,072 bytes sent at a time the
    # last segment has 106, which arrive alone.
    STEADY_MEAN_BYTES = 32768
    COUNTED_MOST_BYTES = 131072     # of a batch for the mean, or the largest batch alone would decide it. A choice
    MEAN_BATCHES = 16               # that the mean reaches back. A choice
    SAMPLE_BYTES = 134217728        # of a sample and of a probe: some 30 ms
    # SCHED_BATCH pays if it takes less than these per cent of the time and of the processor time. Where it helped, 73 to 110
    # and 34 to 85 were seen (iperf3, one stream and more); beside programs that compute all the time, 75 to 250 of the time.
    TIME_PERCENT = 110
    COST_PERCENT = 90


cdef void bulk_init(Bulk *bulk) noexcept nogil:
    # Both arms cost the same to try: probe = sample.
    trial_init(&bulk.trial, SAMPLE_BYTES, SAMPLE_BYTES, TIME_PERCENT, COST_PERCENT, 0)


cdef bint bulk_count(Bulk *bulk, uint64_t total, bint bulk_only, uint64_t now_ns) noexcept nogil:
    cdef uint64_t moved = total - bulk.moved, took_ns = now_ns - bulk.since_ns
    if moved:
        bulk.on = moved > BULK_BATCH_BYTES or bulk.steady
        bulk.moved = total
        bulk.since_ns = now_ns
    if bulk.unavailable:
        return False
    if not bulk_only or took_ns >= BULK_OVER_NS:
        bulk.mean = 0
    elif moved:
        bulk.mean = (bulk.mean * (MEAN_BATCHES - 1) + min(moved, <uint64_t> COUNTED_MOST_BYTES)) // MEAN_BATCHES
    if bulk.mean < STEADY_MEAN_BYTES:
        bulk.steady = False
        _set_policy(bulk, False)
        return False
    if not bulk.steady:
        bulk.steady = True
        trial_restart(&bulk.trial)
        return True
    if moved == 0:
        return False
    trial_count(&bulk.trial, moved, took_ns)
    return trial_due(&bulk.trial)


cdef void bulk_judge(Bulk *bulk, uint64_t group_moved) noexcept nogil:
    cdef Trial *trial = &bulk.trial
    if trial_due(trial):
        # Time per byte of the whole group: workers share processors, so what one gains another may lose.
        trial.took_ns = <uint64_t> (<double> trial.took_ns * trial.units / (group_moved - bulk.group_moved))
    bulk.group_moved = group_moved
    _set_policy(bulk, trial_arm(trial))


cdef void _set_policy(Bulk *bulk, bint batch) noexcept nogil:
    if bulk.batch_policy != batch:
        bulk.unavailable = not thread_batch_policy(batch)
        bulk.batch_policy = batch and not bulk.unavailable
        bulk.steady = bulk.steady and not bulk.unavailable
