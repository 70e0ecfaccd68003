"""Counts refined by held-out images: where it pays, and is affordable."""

import dataclasses
import functools

import numpy as np
import pytest

import diffrate_jax as dr
from diffrate_jax.budget import CLOSE, Budget, fit_to_budget, one_more
from diffrate_jax.cost import macs_of
from diffrate_jax.learning.moves import LINES, lines, one_fewer
from diffrate_jax.learning.parabolas import shifted
from diffrate_jax.learning.refine import (
    FEW,
    NEAR,
    ROUNDS,
    Refined,
    held_out_losses,
    improve,
    refine,
)
from diffrate_jax.learning.refined import RefinedFile
from diffrate_jax.learning.result import refined_by
from diffrate_jax.learning.valley import TRUST
from diffrate_jax.models import init_weights
from diffrate_jax.shapes import Geometry

IMAGES = 64
VALUE = np.array([9.0, 4.0, 2.0, 0.25])
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


def lowest(model, macs: float, value: np.ndarray = VALUE) -> np.ndarray:
    """Returns the counts of lowest loss that cost at most `macs`, but for rounding.

    Every token is kept whose worth exceeds its price, at the price that fills the
    budget: losses and costs are sums over the counts.
    """
    counts = np.arange(2, 198)

    def cost(block: int, count: int) -> float:
        merge = [197] * block + [int(count)] + [2] * (3 - block)
        return dr.cost_macs(model, dr.Schedule(None, merge))

    costs = np.array([[cost(block, n) for n in counts] for block in range(4)])
    losses = value[:, None] * np.exp(-counts / 100)
    low, high = 0.0, 1.0
    for _ in range(100):
        price = (low + high) / 2
        best = counts[np.argmin(losses + price * costs, axis=1)]
        kept = dr.Schedule(None, np.minimum.accumulate(best).tolist())
        low, high = (price, high) if dr.cost_macs(model, kept) > macs else (low, price)
    return counts[np.argmin(losses + high * costs, axis=1)]


def ended(schedule: dr.Schedule, model, macs: float, images: Images) -> Refined:
    """Refines round after round, until it comes to rest."""
    for _ in range(20):
        found = refine(schedule, macs_of(model), macs, images)
        if not any("step" in move for move in found.moves):
            return found
        schedule = found.schedule
    raise AssertionError("it never comes to rest")


@pytest.mark.parametrize("start", [START.merge, (197, 197, 40, 9), (98, 97, 96, 95)])
def test_it_comes_to_rest_at_the_lowest_point(start):
    model, images = wide(), Images()
    start = dr.Schedule(None, start, rule="redundancy")
    macs = dr.cost_macs(model, start)
    found = ended(start, model, macs, images)
    best = lowest(model, macs)
    assert (np.diff(best) < 0).all()
    wanted = images.mean(dr.Schedule(None, best.tolist()))
    # Single tokens of the first block are worth 2 % of what is to be gained.
    assert found.loss < wanted + 0.04 * (images.mean(start) - wanted)
    apart = np.abs(np.subtract(found.schedule.merge, best))
    assert apart[:3].max() <= 2
    assert apart[3] <= 16
    assert CLOSE * macs <= dr.cost_macs(model, found.schedule) <= macs


def test_steps_are_recorded_and_affordable():
    model, images = wide(), Images()
    macs = dr.cost_macs(model, START) * 1.001
    found = refine(START, macs_of(model), macs, images)
    assert 1 <= len(found.moves) <= ROUNDS - 1
    now = START
    for move in found.moves:
        before = images.mean(now)
        now = dataclasses.replace(now, merge=np.add(now.merge, move["step"]).tolist())
        assert images.mean(now) - before == pytest.approx(move["loss"])
        assert move["loss"] < -move["standard_error"] <= 0
        assert CLOSE * macs <= dr.cost_macs(model, now) <= macs
    assert now == found.schedule
    assert found.schedule.rule == "redundancy"
    assert found.loss == pytest.approx(images.mean(now))


def test_gains_are_those_of_the_last_schedule():
    model, images = wide((False, True, False, True)), Images()
    start = dr.Schedule(None, (197, 90, 90, 80), rule="redundancy")
    found = refine(start, macs_of(model), dr.cost_macs(model, start), images)
    assert [gain["block"] for gain in found.gains] == [1, 3]
    assert found.schedule.merge[0] == 197
    assert found.schedule.merge[1] == found.schedule.merge[2] != 90
    now = images.mean(found.schedule)
    for gain in found.gains:
        tokens = round(196 / 32)
        for way, sign in (("more", 1), ("fewer", -1)):
            there, moved = shifted(
                found.schedule, gain["block"], sign * tokens, model.geometry
            )
            assert moved == sign * tokens
            change = (images.mean(there) - now) / tokens
            assert gain[way] == pytest.approx(change)
        assert gain["more"] < 0 < gain["fewer"]


def test_worthless_tokens_pay_for_others():
    """Nothing reads what a class token's model keeps last: it goes at once."""
    model, images = wide(), Images()
    images.mean = lambda s: float((VALUE * np.exp(-np.array(s.merge) / 100))[:3].sum())
    macs = dr.cost_macs(model, START)
    found = refine(START, macs_of(model), macs, images)
    assert found.moves[0]["step"][3] < -2.5 * round(TRUST * 196)
    # Single tokens of the cheapest block use up what rounding leaves of the budget.
    assert found.schedule.merge[3] <= 4


def test_a_gain_below_its_standard_error_is_not_taken():
    model = wide()
    macs = dr.cost_macs(model, START)
    assert refine(START, macs_of(model), macs, Images()).moves
    noisy = Images(own=1.0)
    found = refine(START, macs_of(model), macs, noisy)
    assert found.moves == ()
    assert found.schedule == START
    # It was not for want of trying: the start, its neighbours, and then steps.
    assert len(noisy.asked) > 1 + 2 * 4
    slight = refine(START, macs_of(model), macs, Images(own=1e-9))
    assert slight.moves
    for move in slight.moves:
        assert 0 < move["standard_error"] < -move["loss"]


class Unlucky(Images):
    """Where the parabolas are lowest is one schedule that seems worse than it is."""

    START = dr.Schedule(None, (197, 116, 73, 73), rule="redundancy")
    LOWEST = dr.Schedule(None, (197, 117, 72, 72), rule="redundancy")
    # What this costs may be spent.
    LIMIT = dr.Schedule(None, (197, 110, 80, 80), rule="redundancy")

    def __call__(self, schedule: dr.Schedule) -> np.ndarray:
        return super().__call__(schedule) + 0.01 * (schedule == self.LOWEST)


def settled(own: float, start: dr.Schedule = Unlucky.START) -> Refined:
    """Returns what becomes of a start when images differ by so much."""
    measure = macs_of(wide((False, True, True, False)))
    return refine(start, measure, measure(Unlucky.LIMIT), Unlucky(own))


def test_counts_settle_where_images_do_not_tell_them_apart():
    found = settled(own=1.0)
    (move,) = found.moves
    assert move["settles"]
    assert move["step"] == [0, 1, -1, -1]
    assert 0 < move["loss"] < move["standard_error"]
    assert found.schedule == Unlucky.LOWEST


def test_counts_do_not_settle_against_what_images_say():
    assert settled(own=1e-9).moves == ()


@pytest.mark.parametrize("more", range(-30, 31, 3))
def test_counts_settle_once_and_only_nearby(more: int):
    _, first, second, _ = Unlucky.START.merge
    merge = (197, first + more, min(first + more, second), min(first + more, second))
    measure = macs_of(wide((False, True, True, False)))
    start = fit_to_budget(
        dr.Schedule(None, merge, rule="redundancy"), measure, measure(Unlucky.LIMIT)
    )
    moves = settled(own=1.0, start=start).moves
    assert len(moves) <= 1
    assert all(move["settles"] and np.abs(move["step"]).max() <= NEAR for move in moves)


def test_no_step_is_tried_that_costs_too_much():
    """Only neighbours with a few tokens more in one block are above the budget."""
    model, images = wide(), Images()
    macs = dr.cost_macs(model, START)
    refine(START, macs_of(model), macs, images)
    visited = [START]
    for schedule in images.asked:
        if dr.cost_macs(model, schedule) <= macs:
            visited.append(schedule)
            continue
        longer = [
            shifted(s, b, 6, model.geometry)[0] for s in visited for b in range(4)
        ]
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
        found = one_fewer(dr.Schedule(None, merge, rule=rule), block, small().geometry)
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
    assert one_fewer(schedule, 0, model.geometry) is None
    assert one_fewer(schedule, 1, model.geometry) is None
    assert one_fewer(schedule, 2, model.geometry).merge == (9, 5, 3, 3)
    assert one_fewer(schedule, 3, model.geometry) is None
    assert one_more(schedule, 0, model.geometry).merge == (10, 6, 4, 3)
    macs = dr.cost_macs(model, schedule)
    found = refine(schedule, macs_of(model), macs, Images())
    found.schedule.check(model.geometry)
    assert dr.cost_macs(model, found.schedule) <= macs
    assert found.gains[0]["fewer"] is None


def test_counts_after_pruning_follow():
    model = small()
    schedule = dr.Schedule((13, 11, 9, 7), (12, 10, 9, 6))
    assert one_fewer(schedule, 2, model.geometry).merge == (12, 10, 8, 6)
    assert one_fewer(schedule, 1, model.geometry) == dr.Schedule(
        (13, 11, 9, 7), (12, 9, 9, 6)
    )
    longer = one_more(schedule, 2, model.geometry)
    assert longer == dr.Schedule((13, 11, 10, 7), (12, 10, 10, 6))
    macs = dr.cost_macs(model, schedule)
    found = refine(schedule, macs_of(model), macs, Images())
    assert dr.cost_macs(model, found.schedule) <= macs
    assert found.schedule == found.schedule.canonical(17)


@pytest.mark.parametrize("rule", ["redundancy", "diffrate", "prune_only"])
@pytest.mark.parametrize("share", [0.4, 0.6, 0.8])
def test_lines_fill_the_budget_and_fall_as_they_are_called(rule, share):
    model = wide()
    measure = macs_of(model)
    limit = share * measure(None)
    found = dict(lines(measure, limit, rule))
    assert list(found) == list(LINES)
    lost = {}
    for name, line in found.items():
        assert CLOSE * limit <= measure(line) <= limit
        assert line.rule == rule
        lost[name] = -np.diff([197, *line.merge])
    assert lost["decreasing"][0] > lost["constant"][0] > lost["increasing"][0]
    assert lost["decreasing"][-1] < lost["increasing"][-1]


def test_blocks_that_keep_all_are_in_no_line():
    model = wide((False, True, False, True))
    found = dict(lines(macs_of(model), 0.7 * dr.cost_macs(model, None), "tome"))
    assert list(found) == ["constant", "increasing"]
    for line in found.values():
        assert line.merge[0] == 197
        assert line.merge[1] == line.merge[2]


def test_a_line_ends_a_descent_that_went_astray():
    """As pruning does on CIFAR-10: all tokens at first, then far too few."""
    model, images = wide(), Images()
    astray = dr.Schedule(None, (197, 197, 30, 8), rule="redundancy")
    limit = dr.cost_macs(model, astray)
    found = improve(astray, macs_of(model), limit, images)
    first, *others = found.moves
    assert first["line"] in LINES
    assert first["loss"] < -2 * first["standard_error"]
    assert all("line" not in move for move in others)
    assert found.loss < images.mean(astray) + first["loss"] + 1e-9
    assert dr.cost_macs(model, found.schedule) <= limit


def test_what_is_better_than_every_line_stays():
    model, images = wide(), Images()
    macs = dr.cost_macs(model, START)
    settled = ended(START, model, macs, images).schedule
    found = improve(settled, macs_of(model), macs, images)
    assert (found.schedule, found.moves) == (settled, ())


def test_few_images_come_first_and_all_have_the_last_word():
    """What few images got wrong by a noise of their own is put right by the others."""
    model, few, all_of_them = wide(), Images(own=1e-6), Images()
    macs = dr.cost_macs(model, START)
    budget, file = Budget("53%", macs, macs_of(model)), RefinedFile(None)
    found = refined_by([few, all_of_them], START, budget, file)
    misled = refine(START, macs_of(model), macs, Images(own=1e-6))
    exact = refine(START, macs_of(model), macs, Images())
    assert all_of_them.asked[0] == misled.schedule
    assert found.moves[: len(misled.moves)] == misled.moves
    assert found.loss == pytest.approx(all_of_them.mean(found.schedule))
    assert found.loss < all_of_them.mean(misled.schedule)
    assert found.loss == pytest.approx(exact.loss, rel=1e-4)


@pytest.mark.parametrize(
    ("batches", "counts"),
    [
        (1, [600]),
        pytest.param(2, [1200], marks=pytest.mark.slow),
        (4, [1200, 2400]),
    ],
)
def test_images_are_taken_in_turn(batches: int, counts: list[int]):
    """The few are the first of all; where there are no more than that, only all."""
    model, rng = small(), np.random.default_rng(0)
    held_out = [
        {
            "image": rng.integers(0, 256, (600, 8, 8, 3), np.uint8),
            "label": np.zeros(600, np.int32),
        }
        for _ in range(batches)
    ]
    losses = held_out_losses(model, init_weights(model), dr.Recipe(), held_out)
    found = [
        loss(dr.Schedule(None, (15, 12, 9, 5), rule="redundancy")) for loss in losses
    ]
    assert [len(loss_n) for loss_n in found] == counts
    assert counts[0] == min(600 * batches, 600 * -(-FEW // 600))
    np.testing.assert_array_equal(found[0], found[-1][: counts[0]])
    assert (found[-1] > 0).all()
