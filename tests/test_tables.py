"""Tables for the terminal: which rows are one line, and what is not known."""

import pytest
from made_up import evaluation

from diffrate_jax.tables import LATENCY, evaluation_table

NAMES = ("dense", "random_init", "random 1", "random 2", "random 3b")


def test_only_random_schedules_are_one_line():
    record = evaluation(names=NAMES)
    first = [line.split("  ")[0] for line in evaluation_table(record).splitlines()]
    assert first[1:] == ["dense", "random_init", "random 3b", "random, 2 draws"]


@pytest.mark.parametrize("timed", [False, True])
def test_a_rate_of_zero_is_none(timed: bool):
    record = evaluation(names=NAMES)
    for row in record["rows"]:
        row |= {"images_per_second": 0.0} | ({LATENCY: 2.5} if timed else {})
    last = ["–", "2.5"] if timed else ["–"]
    for line in evaluation_table(record).splitlines()[1:]:
        assert line.split()[-len(last) :] == last
