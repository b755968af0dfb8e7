"""The reason of an error, and lists of problems."""

import pytest

from opd.host.errors import MAX_PROBLEMS, problem_list, reason_of


class Silent(Exception):
    def __str__(self):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("x\n  y"), "ValueError: x y"),
        (ValueError(), "ValueError"),
        (Silent(), "Silent"),
        (SystemExit(1), "SystemExit: 1"),
    ],
)
def test_a_reason_is_type_and_message_in_one_line(error, reason):
    assert reason_of(error) == reason


def test_problems_stand_below_their_heading_a_line_each():
    assert problem_list("the trip fails", ["no train", "no bus"]) == "the trip fails:\n- no train\n- no bus"


def test_the_number_of_problems_beyond_the_limit_is_told():
    full, over = (problem_list("h", range(MAX_PROBLEMS + more)).splitlines() for more in (0, 3))
    assert full == ["h:", *(f"- {number}" for number in range(MAX_PROBLEMS))]
    assert over == [*full, "- and 3 more"]


def test_only_listed_problems_are_described():
    described = []
    problem_list("h", range(10**6), lambda number: described.append(number) or str(number))
    assert described == list(range(MAX_PROBLEMS))
