"""Compiled drawing of arrivals: the requests of every second, spread over it."""

from __future__ import annotations

from numba import njit


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
