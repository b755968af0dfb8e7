"""Plans of transitions: known answers, then properties."""

from hypothesis import given
from hypothesis import strategies as st
from small_pipelines import every_configuration, pipelines, stages
from tiny_cluster import INITIAL, LARGE, SMALL, THIRD, tiny_pipeline

from opd.cluster.transition import Move, describe, plan
from opd.pipeline import used_cores

# --- plans: known answers --------------------------------------------------------------------------------------------


def test_changes_that_fit_happen_at_once_by_surge():
    old, new = stages((SMALL, 1, 1), (SMALL, 1, 1)), stages((LARGE, 1, 1), (SMALL, 2, 2))
    assert plan(tiny_pipeline(6), old, new, 6) == [[Move(0, old[0], new[0], 1, 1), Move(1, old[1], new[1], 1, 2)]]
    assert "surge, all at once" in describe(tiny_pipeline(6), plan(tiny_pipeline(6), old, new, 6), 6)


def test_without_a_change_there_is_no_round():
    assert plan(tiny_pipeline(), INITIAL, INITIAL, 6) == []


def test_stages_that_give_cores_back_change_first():
    old, new = stages((SMALL, 1, 1), (LARGE, 2, 1)), stages((LARGE, 2, 1), (SMALL, 1, 1))
    rounds = plan(tiny_pipeline(6), old, new, 6)
    assert [[move.stage for move in moves] for moves in rounds] == [[1], [0]]
    assert not any(move.in_place for moves in rounds for move in moves)
    assert "one after another (second, first)" in describe(tiny_pipeline(6), rounds, 6)


def test_replicas_that_do_not_fit_together_are_replaced_in_place():
    old, new = stages((LARGE, 2, 1), (SMALL, 1, 1)), stages((THIRD, 2, 1), (SMALL, 1, 1))
    assert plan(tiny_pipeline(5), old, new, 5) == [[Move(0, old[0], new[0], 1, 1)]]
    text = describe(tiny_pipeline(5), plan(tiny_pipeline(5), old, new, 5), 5)
    assert "5 cores do not hold old and new together" in text and "1 of 2 old replicas next to 1 new" in text


def test_without_room_for_one_of_each_requests_wait():
    old, new = stages((LARGE, 1, 1), (SMALL, 1, 1)), stages((THIRD, 1, 1), (SMALL, 1, 1))
    assert plan(tiny_pipeline(3), old, new, 3) == [[Move(0, old[0], new[0], 0, 1)]]
    assert "requests wait" in describe(tiny_pipeline(3), plan(tiny_pipeline(3), old, new, 3), 3)


# --- plans: properties -----------------------------------------------------------------------------------------------


@given(pipelines(max_tasks=2, max_replicas=3), st.data())
def test_a_plan_keeps_the_capacity_and_reaches_the_new_configuration(pipeline, data):
    known = every_configuration(pipeline)
    old, new = data.draw(st.sampled_from(known)), data.draw(st.sampled_from(known))
    now = list(old)
    for moves in plan(pipeline, old, new, pipeline.capacity):
        cores = float(used_cores(pipeline, tuple(now)))
        for n, before, after, kept, first in moves:
            assert before == now[n] and 1 <= first <= after.replicas and 0 <= kept <= before.replicas
            one_old, one_new = (pipeline.tasks[n].variants[stage.variant].cores for stage in (before, after))
            if before.variant == after.variant:
                cores += max(after.replicas - before.replicas, 0) * one_old
            else:
                cores += first * one_new - (before.replicas - kept) * one_old
            now[n] = after
        assert cores <= pipeline.capacity
        assert used_cores(pipeline, tuple(now)) <= pipeline.capacity
    assert tuple(now) == new
