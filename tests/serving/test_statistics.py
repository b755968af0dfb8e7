"""Increases, means and quantiles from raw samples: known answers, then properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampled import series

from opd.serving.monitoring.statistics import STALE_SECONDS, counted, from_zero, increase, quantile, time_average

# Counters


def test_an_increase_is_interpolated_at_both_boundaries():
    counter = series([0, 1, 2, 3], [10, 14, 20, 20])
    assert increase(counter, 0.5, 1.5) == pytest.approx(2 + 3)
    assert increase(counter, 0, 3) == 10
    assert increase(counter, 2.25, 2.75) == 0


def test_an_increase_reaches_no_further_than_the_samples():
    counter = series([5, 6], [100, 104])
    assert increase(counter, 0, 5) == 0 and increase(counter, 0, 5.5) == 2 and increase(counter, 0, 60) == 4
    assert increase(series([5], [100]), 0, 10) == 0
    assert increase(series([], []), 0, 10) == 0


def test_a_counter_that_falls_was_restarted_at_zero():
    counter = series([0, 1, 2, 3], [50, 57, 3, 8])
    assert increase(counter, 0, 3) == 7 + 3 + 5
    assert increase(counter, 1, 1.5) == pytest.approx(1.5)


@given(
    st.lists(st.integers(0, 50), min_size=2, max_size=30),
    st.lists(st.floats(0, 30), min_size=2, max_size=8),
)
def test_increases_of_adjacent_intervals_add_up(values, edges):
    counter, edges = series(range(len(values)), values), sorted(edges)
    parts = sum(increase(counter, *pair) for pair in zip(edges, edges[1:], strict=False))
    assert parts == pytest.approx(increase(counter, edges[0], edges[-1]), abs=1e-6)
    assert (np.diff(counted(counter, np.array(edges))) >= -1e-9).all()


def test_a_label_that_appears_late_counts_from_zero():
    late = series([3, 4], [2, 5], instance="gateway")
    scrapes = [series([0, 1, 2, 3, 4], [0, 1, 1, 1, 1], instance="gateway"), series([0.5], [1], instance="other")]
    whole = from_zero(late, scrapes)
    np.testing.assert_array_equal(whole.times, [1, 2, 3, 4])
    np.testing.assert_array_equal(whole.values, [0, 0, 2, 5])
    assert increase(whole, 0, 4) == 5


def test_a_counter_seen_from_the_first_scrape_on_keeps_its_value():
    counter = series([3, 4], [1000, 1001], instance="gateway")
    for scrapes in ([], [series([3, 4], [1, 1], instance="gateway")], [series([2, 3], [0, 1], instance="gateway")]):
        assert increase(from_zero(counter, scrapes), 0, 4) == 1


# Gauges and histograms


def test_a_gauge_holds_until_its_next_sample():
    gauge = series([0, 1, 3], [2, 4, 1])
    assert time_average(gauge, 0, 4) == pytest.approx((2 + 4 + 4 + 1) / 4)
    assert time_average(gauge, 0.5, 1.5) == pytest.approx(3)
    assert time_average(series([5], [3]), 0, 10) == pytest.approx(1.5)
    assert time_average(series([], []), 0, 10) == 0


def test_a_gauge_that_is_no_longer_scraped_soon_counts_as_zero():
    assert time_average(series([0], [2]), 0, 20) == pytest.approx(2 * STALE_SECONDS / 20)


def buckets(**counts):
    return [
        series([0, 10], [0, count], le=bound.removeprefix("le").replace("_", ".")) for bound, count in counts.items()
    ]


def test_a_quantile_is_linear_within_its_bucket():
    observed = buckets(le1=50, le2=90, le4=100, leinf=100)
    assert quantile(observed, 0, 10, 0.5) == 1.0
    assert quantile(observed, 0, 10, 0.25) == 0.5
    assert quantile(observed, 0, 10, 0.95) == pytest.approx(3.0)
    assert quantile(observed, 0, 10, 0.99) == pytest.approx(3.8)
    assert quantile(observed, 2, 4, 0.99) == pytest.approx(3.8), "in a part of the time too"


def test_a_quantile_beyond_the_last_bound_is_that_bound():
    assert quantile(buckets(le1=50, le2=50, leinf=100), 0, 10, 0.99) == 2.0


def test_a_quantile_of_nothing_is_zero():
    assert quantile([], 0, 10, 0.99) == 0.0
    assert quantile(buckets(le1=0, leinf=0), 0, 10, 0.99) == 0.0


def test_a_quantile_joins_the_series_of_several_processes():
    assert quantile(buckets(le1=50, le2=50, leinf=50) + buckets(le1=0, le2=50, leinf=50), 0, 10, 0.75) == 1.5
