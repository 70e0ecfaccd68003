"""The last tokens: moved one by one, where it pays and is affordable."""

import functools
import itertools

import numpy as np
import pytest

import diffrate_jax as dr
from diffrate_jax.budget import CLOSE, one_more
from diffrate_jax.refine import ROUNDS, one_fewer, refine
from diffrate_jax.shapes import Geometry

IMAGES = 64
VALUE = np.array([1.0, 2.0, 3.0, 4.0])
START = dr.Schedule(None, (150, 110, 80, 60), rule="redundancy")


def small(compress: tuple[bool, ...] = (True,) * 4, image_size: int = 8):
    """Returns a model without weights; only its geometry and its cost matter."""
    return dr.create_model(
        "vit", image_size=image_size, patch_size=2, width=12, depth=len(compress),
        num_heads=2, num_classes=5, compress=compress,
    )  # fmt: skip


# 197 tokens: one of them is a small part of the budget.
wide = functools.partial(small, image_size=28)


class Images:
    """Losses of a schedule: what single counts are worth, and what images differ by.

    Attributes:
        asked: every schedule whose loss was wanted.
    """

    def __init__(self, own: float = 0.0) -> None:
        rng = np.random.default_rng(0)
        noise = rng.standard_normal((2, IMAGES))
        noise -= noise.mean(axis=1, keepdims=True)
        self._shared_n, self._own_n = 5.0 * noise[0], own * noise[1]
        self.asked = []

    def mean(self, schedule: dr.Schedule) -> float:
        return float((VALUE * np.exp(-np.array(schedule.merge) / 100)).sum())

    def __call__(self, schedule: dr.Schedule) -> np.ndarray:
        """Returns the losses; `own` noise differs from one schedule to another."""
        self.asked.append(schedule)
        factor = np.dot(schedule.merge, (1, 20, 400, 8000))
        return self.mean(schedule) + self._shared_n + factor * self._own_n


def best_single_move(model, images: Images, macs: float, schedule: dr.Schedule):
    """Returns (loss, schedule) of the best exchange that fills the budget."""
    least = min(CLOSE * macs, dr.cost_macs(model, schedule))
    found = [(images.mean(schedule), schedule.merge)]
    for more, fewer in itertools.product(range(4), (None, 0, 1, 2, 3)):
        merge = list(schedule.merge)
        merge[more] += 1
        if fewer is not None:
            merge[fewer] -= 1
        if more == fewer or merge != sorted(merge, reverse=True):
            continue
        new = dr.Schedule(None, merge, rule=schedule.rule)
        if least <= dr.cost_macs(model, new) <= macs:
            found.append((images.mean(new), new.merge))
    return min(found)


def test_every_move_is_the_best_of_all_single_ones():
    model, images = wide(), Images()
    macs = dr.cost_macs(model, START) * 1.001
    found = refine(START, model, macs, images)
    assert len(found.moves) == ROUNDS - 1
    now = START
    for move in found.moves:
        before = images.mean(now)
        wanted = best_single_move(model, images, macs, now)
        now = one_more(now, move["more"], model.geometry)
        if move["fewer"] is not None:
            now = one_fewer(now, move["fewer"], model)
        assert now.merge == wanted[1]
        assert images.mean(now) - before == pytest.approx(move["loss"])
        assert move["loss"] < -move["standard_error"] <= 0
        assert CLOSE * macs <= dr.cost_macs(model, now) <= macs
    assert now == found.schedule
    assert found.schedule.rule == "redundancy"
    assert found.loss == pytest.approx(images.mean(now))


def test_where_nothing_moves_no_single_move_would_help():
    """Round after round it comes to rest, and that is at an optimum."""
    model, images = wide(), Images()
    macs, schedule = dr.cost_macs(model, START), START
    for _ in range(80):
        found = refine(schedule, model, macs, images)
        schedule = found.schedule
        if not found.moves:
            break
    assert not found.moves
    assert images.mean(schedule) < images.mean(START) - 0.05
    loss, merge = best_single_move(model, images, macs, schedule)
    assert merge == schedule.merge
    assert found.loss == pytest.approx(loss)


def test_gains_are_those_of_the_last_schedule():
    model, images = wide((False, True, False, True)), Images()
    start = dr.Schedule(None, (197, 110, 110, 60), rule="redundancy")
    found = refine(start, model, dr.cost_macs(model, start), images)
    assert [gain["block"] for gain in found.gains] == [1, 3]
    now = images.mean(found.schedule)
    for gain in found.gains:
        more = one_more(found.schedule, gain["block"], model.geometry)
        fewer = one_fewer(found.schedule, gain["block"], model)
        assert gain["more"] == pytest.approx(images.mean(more) - now)
        assert gain["fewer"] == pytest.approx(images.mean(fewer) - now)
        assert gain["more"] < 0 < gain["fewer"]


def test_a_gain_below_its_standard_error_is_not_taken():
    model = wide()
    macs = dr.cost_macs(model, START)
    assert refine(START, model, macs, Images()).moves
    noisy = Images(own=1.0)
    found = refine(START, model, macs, noisy)
    assert found.moves == ()
    assert found.schedule == START
    # It was not for want of trying: the start, its neighbours, and then exchanges.
    assert len(noisy.asked) > 1 + 2 * 4
    slight = refine(START, model, macs, Images(own=1e-9))
    assert slight.moves
    for move in slight.moves:
        assert 0 < move["standard_error"] < -move["loss"]


def test_no_exchange_is_tried_that_costs_too_much():
    """Only neighbours with one token more are measured above the budget."""
    model, images = wide(), Images()
    macs = dr.cost_macs(model, START)
    refine(START, model, macs, images)
    visited = [START]
    for schedule in images.asked:
        if dr.cost_macs(model, schedule) <= macs:
            visited.append(schedule)
            continue
        longer = [one_more(s, b, model.geometry) for s in visited for b in range(4)]
        assert schedule in longer


@pytest.mark.parametrize(
    ("merge", "block", "wanted"),
    [
        ((13, 10, 8, 6), 0, (12, 10, 8, 6)),
        ((9, 9, 9, 5), 0, (8, 8, 8, 5)),
        ((9, 9, 9, 5), 1, (9, 8, 8, 5)),
        ((17, 17, 17, 17), 3, (17, 17, 17, 16)),
        ((9, 5, 3, 2), 3, None),
        ((9, 5, 2, 2), 2, None),
        ((3, 3, 2, 2), 1, (3, 2, 2, 2)),
    ],
)
def test_one_fewer_by_eye(merge, block: int, wanted):
    for rule in ("redundancy", "diffrate"):
        found = one_fewer(dr.Schedule(None, merge, rule=rule), block, small())
        assert found == (wanted and dr.Schedule(None, wanted, rule=rule))


@pytest.mark.parametrize(
    ("merge", "block", "wanted"),
    [
        ((13, 10, 8, 6), 0, (14, 10, 8, 6)),
        ((17, 10, 8, 6), 0, None),
        ((9, 9, 9, 5), 1, None),
        ((9, 8, 8, 5), 1, (9, 9, 8, 5)),
        ((16, 10, 8, 6), 0, (17, 10, 8, 6)),
    ],
)
def test_one_more_by_eye(merge, block: int, wanted):
    found = one_more(dr.Schedule(None, merge), block, small().geometry)
    assert found == (wanted and dr.Schedule(None, wanted))


def test_one_more_is_kept_by_blocks_that_may_not_compress():
    geometry = Geometry(17, 1, (True, False, True, True))
    found = one_more(dr.Schedule(None, (9, 9, 6, 6)), 0, geometry)
    assert found.merge == (10, 10, 6, 6)
    found = one_more(dr.Schedule(None, (9, 9, 6, 6)), 2, geometry)
    assert found.merge == (9, 9, 7, 6)


def test_rules_that_cannot_lose_more_say_so():
    """Of 17 tokens 9 are the fewest; one more there, and two more come after it."""
    model = small()
    schedule = dr.Schedule(None, (9, 5, 4, 3), rule="tome")
    assert one_fewer(schedule, 0, model) is None
    assert one_fewer(schedule, 1, model) is None
    assert one_fewer(schedule, 2, model).merge == (9, 5, 3, 3)
    assert one_fewer(schedule, 3, model) is None
    assert one_more(schedule, 0, model.geometry).merge == (10, 6, 4, 3)
    macs = dr.cost_macs(model, schedule)
    found = refine(schedule, model, macs, Images())
    found.schedule.check(model.geometry)
    assert dr.cost_macs(model, found.schedule) <= macs
    assert found.gains[0]["fewer"] is None


def test_counts_after_pruning_follow():
    model = small()
    schedule = dr.Schedule((13, 11, 9, 7), (12, 10, 9, 6))
    assert one_fewer(schedule, 2, model).merge == (12, 10, 8, 6)
    assert one_fewer(schedule, 1, model) == dr.Schedule((13, 11, 9, 7), (12, 9, 9, 6))
    longer = one_more(schedule, 2, model.geometry)
    assert longer == dr.Schedule((13, 11, 10, 7), (12, 10, 10, 6))
    macs = dr.cost_macs(model, schedule)
    found = refine(schedule, model, macs, Images())
    assert dr.cost_macs(model, found.schedule) <= macs
    assert found.schedule == found.schedule.canonical(17)
