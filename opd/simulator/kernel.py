"""Compiled request-level simulation of a pipeline: one kernel for training and evaluation.

Every request is followed through every stage. A stage has one central first-in-first-out queue. An idle replica takes
a batch when ``batch_size`` requests wait or the oldest has waited ``batch_timeout``; a batch of k takes the profiled
time of k; its requests then join the next queue. A request that reaches its age limit while it waits reneges and is
dropped. Because the chain has no feedback, the stages of one interval can be simulated one after the other, each on
the complete list of its arrivals: requests that reach a stage after the end of the interval stay in its queue, in
order of time, until the next one.

A reconfiguration never loses work. New replicas serve after the variant's start-up time; until all of them do,
replicas of the previous variant go on; surplus replicas leave at once, and a batch they have begun is finished.

Compiled functions take a :class:`~opd.simulator.simulator.SimulatorState` and change it in place.

They are all in this module because Numba's cache notices changes in the file of a function, but not in the files of
the functions that it calls.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# --- replicas --------------------------------------------------------------------------------------------------------


@njit(cache=True)
def _reconfigure(state, e, n, variant, replicas, startup_time):
    """Change one stage to ``replicas`` of ``variant``; what serves now goes on until the new replicas do.

    Places are in order of age: where some of a variant's replicas must leave, the oldest stay.
    """
    remaining, serving = _keep_variant(state, e, n, variant, replicas)
    handover = _time_all_ready(state, e, n, variant, remaining < replicas, startup_time)
    _retire_others(state, e, n, variant, serving == replicas, handover)
    _remove_retired(state, e, n)
    _start(state, e, n, variant, replicas - remaining, startup_time)


@njit(cache=True)
def _keep_variant(state, e, n, variant, replicas):
    """Keep up to ``replicas`` of ``variant``, serving ones first, and retire the rest of that variant.

    Returns:
        how many stay, and how many of those already serve.
    """
    now = state.now[e]
    kind, ready, retire = state.replica_variant[e, n], state.replica_ready[e, n], state.replica_retire[e, n]
    remaining = 0
    serving = 0
    for still_starting in range(2):
        for r in range(state.replicas[e, n]):
            if kind[r] != variant or (ready[r] > now) != (still_starting == 1):
                continue
            if remaining < replicas and retire[r] > now:
                retire[r] = np.inf
                remaining += 1
                serving += 1 - still_starting
            else:
                retire[r] = -np.inf
    return remaining, serving


@njit(cache=True)
def _time_all_ready(state, e, n, variant, some_missing, startup_time):
    """Time at which every replica of ``variant`` serves, including those that are yet to be started."""
    time = state.now[e]
    for r in range(state.replicas[e, n]):
        if state.replica_variant[e, n, r] == variant and state.replica_retire[e, n, r] == np.inf:
            time = max(time, state.replica_ready[e, n, r])
    return max(time, state.now[e] + startup_time) if some_missing else time


@njit(cache=True)
def _retire_others(state, e, n, variant, at_once, handover):
    """Retire the replicas of other variants: at the handover if they serve, at once if they do not or need not."""
    now, retire = state.now[e], state.replica_retire[e, n]
    for r in range(state.replicas[e, n]):
        if state.replica_variant[e, n, r] != variant:
            if at_once or state.replica_ready[e, n, r] > now or retire[r] <= now:
                retire[r] = -np.inf
            else:
                retire[r] = handover


@njit(cache=True)
def _remove_retired(state, e, n):
    """Close the gaps that retired replicas leave."""
    kind, ready = state.replica_variant[e, n], state.replica_ready[e, n]
    free, retire = state.replica_free[e, n], state.replica_retire[e, n]
    used = 0
    for r in range(state.replicas[e, n]):
        if retire[r] > state.now[e]:
            kind[used], ready[used], free[used], retire[used] = kind[r], ready[r], free[r], retire[r]
            used += 1
    state.replicas[e, n] = used


@njit(cache=True)
def _start(state, e, n, variant, replicas, startup_time):
    """Start new replicas, which serve after the start-up time."""
    ready = state.now[e] + startup_time
    for _ in range(replicas):
        place = state.replicas[e, n]
        state.replica_variant[e, n, place] = variant
        state.replica_ready[e, n, place] = ready
        state.replica_free[e, n, place] = ready
        state.replica_retire[e, n, place] = np.inf
        state.replicas[e, n] = place + 1


@njit(cache=True)
def _first_idle(free, retire, places):
    """The replica that is idle first, or -1 if all have retired."""
    best = -1
    for r in range(places):
        if free[r] < retire[r] and (best < 0 or free[r] < free[best]):
            best = r
    return best


@njit(cache=True)
def _ready_throughput(state, e, n, end, batch_size, service_time):
    """t_n: f b / service time, every replica weighted by the share of the interval in which it was ready."""
    start = state.now[e]
    total = 0.0
    for r in range(state.replicas[e, n]):
        ready = min(state.replica_retire[e, n, r], end) - max(state.replica_ready[e, n, r], start)
        if ready > 0.0:
            total += ready / (end - start) * batch_size / service_time[n, state.replica_variant[e, n, r], batch_size]
    return total


# --- queues ----------------------------------------------------------------------------------------------------------


@njit(cache=True)
def _join(times, births, length, time, birth):
    """Insert a request into a queue of ``length`` entries that has room: in order of time, last among equals."""
    place = length
    while place > 0 and times[place - 1] > time:
        times[place] = times[place - 1]
        births[place] = births[place - 1]
        place -= 1
    times[place] = time
    births[place] = birth


@njit(cache=True)
def _time_due(times, head, length, batch_size, timeout):
    """Time at which a batch is due: when it is full or its oldest request has waited for the timeout."""
    due = times[head] + timeout
    return min(due, times[head + batch_size - 1]) if head + batch_size <= length else due


@njit(cache=True)
def _batch(times, births, head, length, batch_size, begin, drop_after):
    """Size of the batch taken at ``begin``, and the place of its first request that is too old, or -1."""
    size = 0
    while size < batch_size and head + size < length and times[head + size] <= begin:
        if begin - births[head + size] > drop_after:
            return size, head + size
        size += 1
    return size, -1


@njit(cache=True)
def _patience(time, birth, drop_after):
    """Seconds from joining a queue to reneging at the age limit; 0 for a request that is too old when it joins."""
    return max(birth + drop_after - time, 0.0)


@njit(cache=True)
def _remove(times, births, head, place):
    """Remove one request; those before it move up and the queue begins at ``head + 1``."""
    for request in range(place, head, -1):
        times[request] = times[request - 1]
        births[request] = births[request - 1]


@njit(cache=True)
def _pass_on(state, e, n, head, size, done, seconds):
    """Put a batch that is served at ``done`` into the next queue; return ``seconds`` plus those in this stage."""
    times, births = state.queue_time[e, n], state.queue_birth[e, n]
    next_times, next_births = state.queue_time[e, n + 1], state.queue_birth[e, n + 1]
    length = state.queue_length[e, n + 1]
    for request in range(head, head + size):
        seconds += done - times[request]
        _join(next_times, next_births, length, done, births[request])
        length += 1
    state.queue_length[e, n + 1] = length
    return seconds


@njit(cache=True)
def _keep_waiting(state, e, n, head, end, drop_after, seconds):
    """Move what was not served to the front of the queue, less the requests that reneged by ``end``.

    Returns:
        the number of those, and ``seconds`` plus theirs in this stage.
    """
    times, births = state.queue_time[e, n], state.queue_birth[e, n]
    used = 0
    reneged = 0
    for request in range(head, state.queue_length[e, n]):
        if times[request] < end and end - births[request] > drop_after:
            seconds += _patience(times[request], births[request], drop_after)
            reneged += 1
        else:
            times[used] = times[request]
            births[used] = births[request]
            used += 1
    state.queue_length[e, n] = used
    return reneged, seconds


@njit(cache=True)
def _waiting(state, e, n, end):
    """Requests in a queue at ``end``."""
    waiting = 0
    while waiting < state.queue_length[e, n] and state.queue_time[e, n, waiting] < end:
        waiting += 1
    return waiting


@njit(cache=True)
def _service_factor(generator, factors):
    """One of the equally likely ``factors``."""
    return factors[int(len(factors) * generator.random())] if len(factors) > 1 else factors[0]


@njit(cache=True)
def _serve(state, e, n, batch_size, service_time, end, timeout, drop_after, generator, factors, interval):
    """Serve one stage until ``end``; record its batches in ``interval`` if that has places for them.

    Returns:
        requests that left the queue, their summed seconds there, requests that reneged, and if the next queue had room.
    """
    times, births, length = state.queue_time[e, n], state.queue_birth[e, n], state.queue_length[e, n]
    free, retire, places = state.replica_free[e, n], state.replica_retire[e, n], state.replicas[e, n]
    start, next_places = state.now[e], state.queue_time.shape[2]
    head = 0
    reneged = 0
    seconds = 0.0
    room = True
    while head < length:
        r = _first_idle(free, retire, places)
        if r < 0:
            break
        begin = max(free[r], _time_due(times, head, length, batch_size, timeout), start)
        if begin >= end:
            break
        if begin >= retire[r]:
            free[r] = np.inf
            continue
        size, expired = _batch(times, births, head, length, batch_size, begin, drop_after)
        if expired >= 0:
            # It reneged before this batch began, so the batch is formed again without it.
            seconds += _patience(times[expired], births[expired], drop_after)
            reneged += 1
            _remove(times, births, head, expired)
            head += 1
            continue
        room = state.queue_length[e, n + 1] + size <= next_places
        if not room:
            break
        variant = state.replica_variant[e, n, r]
        free[r] = begin + service_time[n, variant, size] * _service_factor(generator, factors)
        if interval.busy.shape[2] > 0:
            interval.busy[e, n, variant] += free[r] - begin
            interval.batches[e, n, variant, size] += 1
        seconds = _pass_on(state, e, n, head, size, free[r], seconds)
        head += size
    waited_too_long, seconds = _keep_waiting(state, e, n, head, end, drop_after, seconds)
    return head + waited_too_long, seconds, reneged + waited_too_long, room


# --- arrivals --------------------------------------------------------------------------------------------------------


@njit(cache=True)
def _arrive(state, e, counts, generator):
    """Spread each second's count uniformly over that second; the gaps of k uniforms are k + 1 exponentials."""
    times, births, length = state.queue_time[e, 0], state.queue_birth[e, 0], state.queue_length[e, 0]
    for second in range(counts.shape[0]):
        k = counts[second]
        if k == 0:
            continue
        if length + k > times.shape[0]:
            return False
        total = 0.0
        for request in range(length, length + k):
            total += generator.standard_exponential()
            times[request] = total
        total += generator.standard_exponential()
        for request in range(length, length + k):
            times[request] = state.now[e] + second + times[request] / total
            births[request] = times[request]
        length += k
    state.queue_length[e, 0] = length
    return True


@njit(cache=True)
def draw_arrivals(state, counts, interval, generator):
    """Draw the arrivals of one interval for every environment; return whether the queues had room."""
    room = True
    for e in range(counts.shape[0]):
        interval.offered[e] = counts[e].sum()
        room = _arrive(state, e, counts[e], generator) and room
    return room


@njit(cache=True)
def add_arrivals(state, times, interval):
    """Let requests arrive in the first environment at the ascending ``times``; return whether its queue had room."""
    interval.offered[0] = times.shape[0]
    length = state.queue_length[0, 0]
    if length + times.shape[0] > state.queue_time.shape[2]:
        return False
    for time in times:
        _join(state.queue_time[0, 0], state.queue_birth[0, 0], length, time, time)
        length += 1
    state.queue_length[0, 0] = length
    return True


# --- interval --------------------------------------------------------------------------------------------------------


@njit(cache=True)
def _percentile_99(values):
    """Nearest-rank 99th percentile, keeping only the largest hundredth in order."""
    largest = np.full(values.shape[0] - (99 * values.shape[0] + 99) // 100 + 1, -np.inf)
    for value in values:
        if value > largest[0]:
            place = 0
            while place + 1 < largest.shape[0] and largest[place + 1] < value:
                largest[place] = largest[place + 1]
                place += 1
            largest[place] = value
    return largest[0]


@njit(cache=True)
def _complete(state, e, end, objective, interval):
    """Remove the requests that left the last task by ``end``; record their number, latencies and those within it."""
    last = state.queue_time.shape[1] - 1
    times, births, length = state.queue_time[e, last], state.queue_birth[e, last], state.queue_length[e, last]
    done = _waiting(state, e, last, end)
    interval.completed[e] = done
    if done > 0:
        latencies = times[:done] - births[:done]
        if interval.latencies.shape[1] > 0:
            interval.latencies[e, :done] = latencies
        interval.within[e] = np.count_nonzero(latencies <= objective)
        interval.latency_mean[e] = latencies.mean()
        interval.latency_p99[e] = _percentile_99(latencies)
    else:
        interval.within[e] = 0
        interval.latency_mean[e] = 0.0
        interval.latency_p99[e] = 0.0
    for request in range(done, length):
        times[request - done] = times[request]
        births[request - done] = births[request]
    state.queue_length[e, last] = length - done


@njit(cache=True)
def simulate(state, configurations, tables, length, timeout, drop_after, objective, factors, interval, generator):
    """Simulate one interval of every environment, given its arrivals; return whether all queues had room."""
    room = True
    for e in range(state.now.shape[0]):
        end = state.now[e] + length
        interval.dropped[e] = 0
        for n in range(state.replicas.shape[1]):
            variant, replicas, batch_size = configurations[e, n]
            _reconfigure(state, e, n, variant, replicas, tables.startup_time[n, variant])
            left, seconds, reneged, fits = _serve(
                state, e, n, batch_size, tables.service_time, end, timeout, drop_after, generator, factors, interval
            )
            room = room and fits
            interval.dropped[e] += reneged
            interval.task_latency[e, n] = seconds / left if left > 0 else tables.service_time[n, variant, 1]
            interval.ready_throughput[e, n] = _ready_throughput(state, e, n, end, batch_size, tables.service_time)
            interval.queue[e, n] = _waiting(state, e, n, end)
        _complete(state, e, end, objective, interval)
        state.now[e] = end
    return room


@njit(cache=True)
def first_out_of_bounds(configurations, variants, max_replicas, max_batch_size):
    """First environment with a configuration that would index outside the arrays of the kernel, or -1."""
    for e in range(configurations.shape[0]):
        for n in range(configurations.shape[1]):
            variant, replicas, batch_size = configurations[e, n]
            if not (0 <= variant < variants[n] and 1 <= replicas <= max_replicas and 1 <= batch_size <= max_batch_size):
                return e
    return -1


# --- planning --------------------------------------------------------------------------------------------------------


@njit(cache=True)
def _copy_state(source, target):
    """Make the one environment of ``target`` that of ``source``."""
    target.now[0] = source.now[0]
    for stage in range(source.queue_length.shape[1]):
        length = source.queue_length[0, stage]
        target.queue_length[0, stage] = length
        target.queue_time[0, stage, :length] = source.queue_time[0, stage, :length]
        target.queue_birth[0, stage, :length] = source.queue_birth[0, stage, :length]
    for n in range(source.replicas.shape[1]):
        places = source.replicas[0, n]
        target.replicas[0, n] = places
        target.replica_variant[0, n, :places] = source.replica_variant[0, n, :places]
        target.replica_ready[0, n, :places] = source.replica_ready[0, n, :places]
        target.replica_free[0, n, :places] = source.replica_free[0, n, :places]
        target.replica_retire[0, n, :places] = source.replica_retire[0, n, :places]


@njit(cache=True)
def _record(interval, record, c, f, h):
    """Store the measurements of an interval that the reward depends on."""
    record.offered[c, f, h] = interval.offered[0]
    record.completed[c, f, h] = interval.completed[0]
    record.within[c, f, h] = interval.within[0]
    record.dropped[c, f, h] = interval.dropped[0]
    record.task_latency[c, f, h] = interval.task_latency[0]
    record.ready_throughput[c, f, h] = interval.ready_throughput[0]


@njit(cache=True)
def roll_out(present, scratch, candidates, arrivals, continuation, tables, device, interval, record, chosen, generator):
    """Simulate every candidate against every future, each from the present state.

    The first interval runs the candidate. Every later one runs the continuation for the load planned for in this future
    and for the requests that wait, as if they came within the interval. A future has the same arrivals for every
    candidate.

    Args:
        present: state of one environment; stays as it is.
        scratch: state of one environment of the same shape, with room for all arrivals; overwritten.
        candidates: (C, N, 3) configurations for the first interval.
        arrivals: :class:`~opd.simulator.rollouts.Arrivals` of F futures and H intervals.
        continuation: :class:`~opd.simulator.rollouts.Continuation`.
        tables: of the pipeline.
        device: length, timeout, drop_after, objective and factors as in :func:`simulate`.
        interval: measurements of one environment; overwritten.
        record: measurements by candidate, future and interval; written.
        chosen: (C, F, H, N, 3) the configurations that ran; written.
        generator: of the service times.
    """
    length, last = device[0], len(continuation.loads) - 1
    for c in range(candidates.shape[0]):
        for f in range(arrivals.times.shape[0]):
            _copy_state(present, scratch)
            begin = 0
            for h in range(arrivals.loads.shape[1]):
                chosen[c, f, h] = candidates[c]
                if h > 0:
                    load = arrivals.loads[f, h] + interval.queue[0].sum() / length
                    chosen[c, f, h] = continuation.table[min(np.searchsorted(continuation.loads, load), last)]
                end = np.searchsorted(arrivals.times[f], scratch.now[0] + length)
                add_arrivals(scratch, arrivals.times[f, begin:end], interval)
                begin = end
                simulate(scratch, chosen[c, f, h : h + 1], tables, *device, interval, generator)  # type: ignore[call-arg]
                _record(interval, record, c, f, h)
