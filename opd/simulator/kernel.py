"""Compiled request-level simulation of a pipeline: one kernel for training and evaluation.

Every request is followed through every stage. A stage has one central first-in-first-out queue. An idle replica takes
a batch when ``batch_size`` requests wait or the oldest has waited ``batch_timeout``; a batch of k takes the profiled
time of k; its requests then join the next queue. A request that reaches its age limit while it waits reneges and is
dropped. Because the chain has no feedback, the stages of one interval can be simulated one after the other, each on
the complete list of its arrivals: requests that reach a stage after the end of the interval stay in its queue, in
order of time, until the next one.

A reconfiguration never loses work. New replicas serve after the variant's start-up time; until all of them do,
replicas of the previous variant go on; surplus replicas leave at once, and a batch they have begun is finished.

Where replicas share the cores of the device, stages depend on each other and are served together, from one batch that
begins or ends to the next. All batches progress at one speed; when it changes, what is left of them is stretched.

Compiled functions take a :class:`~opd.simulator.simulator.SimulatorState` and change it in place; ``device`` is a
:class:`~opd.simulator.simulator.Device`.

Those that call each other are all in this module because Numba's cache notices changes in the file of a function, but
not in the files of the functions that it calls.
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
def _serve(state, e, n, batch_size, service_time, end, speed, device, interval, left, generator):
    """Serve one stage at ``speed`` until ``end``; return whether the next queue had room.

    Adds to ``left`` the requests that left the queue, and to the measurements of ``interval`` their seconds in the
    stage, requests that reneged, and batches if there are places for them.
    """
    times, births, length = state.queue_time[e, n], state.queue_birth[e, n], state.queue_length[e, n]
    free, retire, places = state.replica_free[e, n], state.replica_retire[e, n], state.replicas[e, n]
    now, next_places, factors = state.now[e], times.shape[0], device.factors
    timeout, drop_after = device.batch_timeout, device.drop_after
    head, reneged, seconds, room = 0, 0, 0.0, True
    while head < length:
        r = _first_idle(free, retire, places)
        if r < 0:
            break
        begin = max(free[r], _time_due(times, head, length, batch_size, timeout), now)
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
        free[r] = begin + service_time[n, variant, size] * _service_factor(generator, factors) / speed
        if interval.busy.shape[2] > 0:
            interval.busy[e, n, variant] += free[r] - begin
            interval.batches[e, n, variant, size] += 1
        seconds = _pass_on(state, e, n, head, size, free[r], seconds)
        head += size
    waited_too_long, seconds = _keep_waiting(state, e, n, head, end, drop_after, seconds)
    left[n] += head + waited_too_long
    interval.task_latency[e, n] += seconds
    interval.dropped[e] += reneged + waited_too_long
    return room


# --- shared cores ----------------------------------------------------------------------------------------------------


@njit(cache=True)
def _is_serving(state, e, n, r):
    """Check whether a replica serves a batch; one that is still starting is ready when it is idle."""
    return max(state.now[e], state.replica_ready[e, n, r]) < state.replica_free[e, n, r] < np.inf


@njit(cache=True)
def _speed(state, e, cores, device_cores):
    """Speed of all batches: 1, or less if the replicas that serve them need more cores than the device has."""
    busy = 0.0
    for n in range(state.replicas.shape[1]):
        for r in range(state.replicas[e, n]):
            if _is_serving(state, e, n, r):
                busy += cores[n, state.replica_variant[e, n, r]]
    return device_cores / busy if busy > device_cores else 1.0


@njit(cache=True)
def _stretch(state, e, factor, interval):
    """Let everything that is being served take ``factor`` times as long from now on."""
    now = state.now[e]
    for n in range(state.replicas.shape[1]):
        free, times = state.replica_free[e, n], state.queue_time[e, n + 1]
        for r in range(state.replicas[e, n]):
            if _is_serving(state, e, n, r):
                if interval.busy.shape[2] > 0:
                    interval.busy[e, n, state.replica_variant[e, n, r]] += (factor - 1.0) * (free[r] - now)
                free[r] = now + factor * (free[r] - now)
        for request in range(state.queue_length[e, n + 1]):
            if times[request] > now:
                interval.task_latency[e, n] += (factor - 1.0) * (times[request] - now)
                times[request] = now + factor * (times[request] - now)


@njit(cache=True)
def _next_event(state, e, configuration, timeout):
    """The next time at which a batch begins or ends, and the stage where one begins, or -1."""
    time, stage = np.inf, -1
    for n in range(state.replicas.shape[1]):
        times, free, length = state.queue_time[e, n], state.replica_free[e, n], state.queue_length[e, n]
        r = _first_idle(free, state.replica_retire[e, n], state.replicas[e, n]) if length > 0 else -1
        if r >= 0:
            begin = max(free[r], _time_due(times, 0, length, configuration[n, 2], timeout), state.now[e])
            if begin < time:
                time, stage = begin, n
        for r in range(state.replicas[e, n]):
            if _is_serving(state, e, n, r) and free[r] <= time:
                time, stage = free[r], -1
    return time, stage


@njit(cache=True)
def _serve_together(state, e, configuration, tables, end, speed, device, interval, left, generator):
    """Serve all stages until ``end``, what is under way at ``speed`` at first; return whether the queues had room."""
    room = True
    while room:
        speed_before, speed = speed, _speed(state, e, tables.cores, device.cores)
        if speed != speed_before:
            _stretch(state, e, speed_before / speed, interval)
        time, n = _next_event(state, e, configuration, device.batch_timeout)
        if time > end or (n >= 0 and time == end):
            break
        state.now[e] = time
        if n >= 0:
            size, just_after = configuration[n, 2], np.nextafter(time, np.inf)
            room = _serve(state, e, n, size, tables.service_time, just_after, speed, device, interval, left, generator)
    return room


# --- arrivals --------------------------------------------------------------------------------------------------------


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
def _complete(state, e, end, device, interval):
    """Remove the requests that left the last task by ``end``; record number, latencies and those within the level."""
    last = state.queue_time.shape[1] - 1
    times, births, length = state.queue_time[e, last], state.queue_birth[e, last], state.queue_length[e, last]
    done = _waiting(state, e, last, end)
    interval.completed[e] = done
    if done > 0:
        latencies = times[:done] - births[:done] + device.added_latency
        if interval.latencies.shape[1] > 0:
            interval.latencies[e, :done] = latencies
        interval.within[e] = np.count_nonzero(latencies <= device.objective)
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
def simulate(state, configurations, tables, device, interval, generator):
    """Simulate one interval of every environment, given its arrivals; return whether all queues had room."""
    tasks, room = state.replicas.shape[1], True
    left = np.zeros(tasks, dtype=np.int64)
    for e in range(state.now.shape[0]):
        end = state.now[e] + device.interval
        speed = _speed(state, e, tables.cores, device.cores) if device.cores > 0.0 else 1.0
        interval.dropped[e] = 0
        for n in range(tasks):
            variant, replicas, batch_size = configurations[e, n]
            _reconfigure(state, e, n, variant, replicas, tables.startup_time[n, variant])
            interval.ready_throughput[e, n] = _ready_throughput(state, e, n, end, batch_size, tables.service_time)
            interval.task_latency[e, n], left[n] = 0.0, 0
        if device.cores > 0.0:
            room &= _serve_together(state, e, configurations[e], tables, end, speed, device, interval, left, generator)
        for n in range(tasks):
            variant, _, batch_size = configurations[e, n]
            room &= _serve(state, e, n, batch_size, tables.service_time, end, speed, device, interval, left, generator)
            alone = tables.service_time[n, variant, 1]
            interval.task_latency[e, n] = interval.task_latency[e, n] / left[n] if left[n] > 0 else alone
            interval.queue[e, n] = _waiting(state, e, n, end)
        _complete(state, e, end, device, interval)
        state.now[e] = end
    return room


# --- planning --------------------------------------------------------------------------------------------------------


@njit(cache=True)
def _copy_state(source, target):
    """Make the one environment of ``target`` that of ``source``."""
    longest = source.queue_length.max()
    target.now[:], target.queue_length[:], target.replicas[:] = source.now, source.queue_length, source.replicas
    target.queue_time[:, :, :longest] = source.queue_time[:, :, :longest]
    target.queue_birth[:, :, :longest] = source.queue_birth[:, :, :longest]
    target.replica_variant[:], target.replica_ready[:] = source.replica_variant, source.replica_ready
    target.replica_free[:], target.replica_retire[:] = source.replica_free, source.replica_retire


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
        device: as in :func:`simulate`.
        interval: measurements of one environment; overwritten.
        record: measurements by candidate, future and interval; written.
        chosen: (C, F, H, N, 3) the configurations that ran; written.
        generator: of the service times.
    """
    length, last = device.interval, len(continuation.loads) - 1
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
                simulate(scratch, chosen[c, f, h : h + 1], tables, device, interval, generator)
                _record(interval, record, c, f, h)
