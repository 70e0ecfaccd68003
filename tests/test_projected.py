"""Descent on expected counts: starts, budgets, and an optimum that is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffrate_jax as dr
from diffrate_jax.budget import fit_to_budget, parse_budget, uniform
from diffrate_jax.cost import macs_of
from diffrate_jax.learning.penalised import Penalised, tilted
from diffrate_jax.learning.projected import Projected, without
from diffrate_jax.rates import candidate_counts

STEPS = 400
START = dr.Schedule(None, (13, 9, 6))


def small(compress: tuple[bool, ...] = (True,) * 3, **fields):
    """Returns a model without weights; only its geometry and its cost matter."""
    fields = {"image_size": 8, "patch_size": 2, "width": 12, "num_heads": 2} | fields
    return dr.create_model(
        "vit", depth=len(compress), num_classes=5, compress=compress, **fields
    )


def counts(method, learned, model, share: float = 1.0) -> dr.Schedule:
    """Returns the schedule that what was learned stands for, as it really runs."""
    run = method.masked(learned, jnp.float32(share))
    schedule = dr.Schedule.from_kept(run.kept(model.geometry), run.rule)
    return schedule.canonical(model.geometry.num_tokens)


@pytest.mark.parametrize("pool", ["cls", "avg"])
@pytest.mark.parametrize(
    ("compress", "schedule"),
    [
        ((True,) * 3, dr.Schedule(None, (16, 9, 2), rule="redundancy")),
        ((True,) * 3, dr.Schedule(None, (2, 2, 2), rule="redundancy")),
        ((True,) * 3, dr.Schedule(None, (12, 7, 4), rule="tome")),
        ((False, True, True), dr.Schedule(None, (17, 9, 5), rule="redundancy")),
        ((True, False, True), dr.Schedule(None, (9, 9, 5), rule="redundancy")),
        ((True, True, False), dr.Schedule(None, (9, 5, 5), rule="tome")),
        ((True,) * 3, dr.Schedule((15, 9, 7), (12, 8, 3))),
        ((True, False, True), dr.Schedule((15, 12, 7), (12, 12, 3))),
    ],
)
def test_a_start_stands_for_exactly_its_schedule(compress, schedule, pool: str):
    model = small(compress, pool=pool, prefix_tokens=1 if pool == "cls" else 0)
    recipe = dr.Recipe(rule=schedule.rule)
    method = Projected(macs_of(model), recipe)
    schedule = schedule.canonical(model.geometry.num_tokens)
    expected = method.start(schedule)
    assert expected.shape == (sum(compress) * (1 + (schedule.prune is not None)),)
    for share in (0.0, 1.0):
        assert counts(method, expected, model, share) == schedule
    assert (np.diff(expected) <= 0).all()


def test_the_spread_goes_from_one_end_to_the_other():
    method = Projected(macs_of(small()), dr.Recipe(spread=2.0, final_spread=0.5))
    expected = method.start(START)
    for share, wanted in ((0.0, 2.0), (0.5, 1.0), (1.0, 0.5)):
        spread = method.masked(expected, jnp.float32(share)).counts.spread
        np.testing.assert_allclose(spread, wanted, rtol=1e-6)


def test_without_leaves_nothing_along_the_prices():
    rng = np.random.default_rng(0)
    price, gradient = rng.uniform(1, 5, 6), rng.standard_normal(6)
    found = without(price, gradient)
    np.testing.assert_allclose(found @ price, 0, atol=1e-5)
    np.testing.assert_allclose(without(price, 3 * price), 0, atol=1e-5)
    np.testing.assert_allclose(without(price, found), found, atol=1e-5)


def descend(model, recipe, start, budget: float, gradient_of, steps: int = STEPS):
    """Returns the expected counts after every step."""
    method = Projected(macs_of(model), recipe)

    def step(state, index):
        expected, motion = state
        gradient = gradient_of(expected, index)
        state = method.update(expected, motion, gradient, index / steps, budget)
        return state, state[0]

    @jax.jit
    def run(expected, budget):
        state = expected, method.fresh(expected)
        return jax.lax.scan(step, state, jnp.arange(steps))[1]

    return np.asarray(run(method.start(start), jnp.float32(budget)))


def by_hand(model, kept: np.ndarray) -> np.ndarray:
    """Returns the cost of falling counts [n, L], written out."""
    terms, tokens = model.macs, model.geometry.num_tokens
    total = np.full(len(kept), float(terms.fixed))
    for left in kept.T:
        total += terms.linear_in * tokens + terms.quadratic_in * tokens**2
        total += terms.linear_out * left
        tokens = left
    return total


def noise(expected: jax.Array, index: jax.Array) -> jax.Array:
    """Returns gradients that lead nowhere."""
    return jax.random.normal(jax.random.key(index), expected.shape)


@pytest.mark.parametrize(
    ("rule", "compress"),
    [
        ("redundancy", (True, True, True)),
        ("redundancy", (True, False, True)),
        ("tome", (True, True, True)),
        ("diffrate", (True, True, True)),
    ],
)
def test_every_step_is_on_the_budget(rule: str, compress):
    model = small(compress)
    start = dr.Schedule(None, (13, 13, 7) if not all(compress) else (13, 9, 7))
    budget = dr.cost_macs(model, start) * 0.97
    recipe = dr.Recipe(rule=rule, learning_rate=0.1)
    rows = descend(model, recipe, start, budget, noise, steps=30)
    assert (np.diff(rows, axis=1) <= 0).all()
    assert rows.min() >= 0.5
    assert rows.max() <= 15.5
    merge = np.full((len(rows), 3), 17.0)
    merge[:, compress] = rows[:, 1::2] + 1.5 if rule == "diffrate" else rows + 1.5
    spent = by_hand(model, np.minimum.accumulate(merge, axis=1))
    assert spent.max() <= budget * (1 + 1e-6)
    assert spent.min() >= budget * (1 - 1e-4)
    # They really moved.
    assert np.abs(rows[-1] - rows[0]).max() > 0.5
    if rule == "tome":
        least = merge[:, :-1] - (merge[:, :-1] - 1) // 2
        assert (merge[:, 1:] >= least - 1e-4).all()


def known_optimum(model, value: np.ndarray, reach: float, budget: float) -> np.ndarray:
    """Returns the best falling counts of 16 patches, to a quarter of a token."""
    axis = np.arange(0.5, 15.75, 0.25)
    kept = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    kept = kept[(np.diff(kept, axis=1) <= 0).all(axis=1)]
    kept = kept[by_hand(model, kept + 1.5) <= budget]
    return kept[np.argmin(np.exp(-kept / reach) @ value)]


@pytest.mark.parametrize(
    "value",
    [
        (3.0, 1.0, 0.4),
        (8.0, 1.2, 0.1),
        (1.5, 1.2, 0.6),
        (30.0, 1.0, 0.3),
    ],
)
def test_descent_finds_the_optimum_that_is_known(value: tuple[float, ...]):
    """A token less in a block is the dearer the fewer are left there."""
    model, reach, value = small(), 4.0, np.float32(value)
    # The last one leaves all tokens after the first block, and less for the others.
    start = dr.Schedule(None, (17, 9, 6)) if value[0] > 10 else START
    budget = dr.cost_macs(model, start)
    best = known_optimum(model, value, reach, budget)

    def gradient_of(expected, index):
        return -value / reach * jnp.exp(-expected / reach)

    recipe = dr.Recipe(rule="redundancy", learning_rate=0.02)
    found = descend(model, recipe, start, budget, gradient_of)[-1]
    np.testing.assert_allclose(found, best, atol=1.0)


def test_the_scale_of_the_gradient_does_not_matter():
    model, budget = small(), dr.cost_macs(small(), START)
    recipe = dr.Recipe(rule="redundancy", learning_rate=0.02)
    rows = [
        descend(model, recipe, START, budget, lambda e, i, f=f: f * noise(e, i), 20)
        for f in (1.0, 1000.0)
    ]
    np.testing.assert_allclose(*rows, atol=1e-2)
    assert np.abs(rows[0][-1] - rows[0][0]).max() > 0.1


def test_no_gradient_moves_nothing():
    model, budget = small(), dr.cost_macs(small(), START)
    flat = lambda expected, index: jnp.zeros_like(expected)  # noqa: E731
    rows = descend(model, dr.Recipe(), START, budget, flat, steps=5)
    np.testing.assert_allclose(rows, rows[:1].repeat(5, axis=0), atol=1e-3)
    wanted = Projected(macs_of(model), dr.Recipe()).start(START)
    np.testing.assert_allclose(rows[-1], wanted, atol=1e-2)


@pytest.mark.parametrize("granularity", [1, 4])
@pytest.mark.parametrize("wanted", [8.5, 100.0, 150.25, 195.5])
def test_tilted_logits_expect_what_is_wanted(granularity: int, wanted: float):
    candidates = candidate_counts(196, granularity)
    logits = tilted(candidates, wanted)
    expected = lambda z: jax.nn.softmax(z) @ candidates  # noqa: E731
    np.testing.assert_allclose(expected(logits), wanted, atol=1e-3)
    steps = np.diff(logits)
    np.testing.assert_allclose(steps, steps.mean(), atol=1e-4)
    # Wherever it stands, the expectation can be moved.
    slope = jax.grad(expected)(logits)
    assert np.abs(slope).max() > 1e-3


def test_tilted_logits_stay_inside_of_the_candidates():
    candidates = candidate_counts(16, 1)
    for wanted, end in ((0.5, 1), (16.5, 16)):
        logits = tilted(candidates, wanted)
        expected = float(jax.nn.softmax(logits) @ candidates)
        assert 0 < abs(expected - end) < 0.02


@pytest.mark.parametrize(
    ("compress", "schedule"),
    [
        ((True,) * 3, dr.Schedule((15, 9, 7), (12, 8, 3))),
        ((True,) * 3, dr.Schedule((17, 17, 17), (17, 17, 17))),
        ((False, True, True), dr.Schedule((17, 12, 6), (17, 9, 5))),
        ((True,) * 3, dr.Schedule(None, (16, 9, 3), rule="redundancy")),
        ((True,) * 3, dr.Schedule(None, (12, 7, 4), rule="tome")),
    ],
)
def test_a_penalised_start_stands_for_exactly_its_schedule(compress, schedule):
    model = small(compress)
    recipe = dr.Recipe(rule=schedule.rule, method="penalised")
    method = Penalised(macs_of(model), recipe)
    rates = method.start(schedule)
    assert (rates.prune is None) == (schedule.prune is None)
    assert counts(method, rates, model) == schedule


def test_the_published_start_is_even():
    model = small()
    method = Penalised(macs_of(model), dr.Recipe.published(granularity=4))
    rates = method.start(None)
    assert rates.prune.shape == rates.merge.shape == (3, 4)
    assert not rates.prune.any()
    assert not rates.merge.any()
    merging = Penalised(macs_of(model), dr.Recipe(rule="tome", method="penalised"))
    assert merging.start(None).prune is None


@pytest.mark.parametrize("target", ["70%", "35%"])
@pytest.mark.parametrize(
    ("name", "gmacs"),
    [
        ("small", 0.02),
        ("deit_small_patch16_224", 4.6),
        pytest.param(
            *("vit_large_patch16_224.mae_finetuned", 60), marks=pytest.mark.slow
        ),
    ],
)
def test_models_of_any_size_end_just_under_the_target(name, gmacs, target):
    """Whatever the gradients say: nothing is weighed against the cost."""
    model = (
        small((True,) * 6, width=64, image_size=16)
        if name == "small"
        else dr.create_model(name)
    )
    model = model.clone(compress=(True,) * model.depth)
    dense = dr.cost_macs(model, None)
    assert dense / 1e9 == pytest.approx(gmacs, rel=0.6)
    method = Projected(macs_of(model), dr.Recipe(steps=30))
    budget = parse_budget(target, model).limit
    expected = method.start(fit_to_budget(uniform(model), macs_of(model), budget))
    motion, rng = method.fresh(expected), np.random.default_rng(0)
    update = jax.jit(method.update)
    for step in range(30):
        gradient = -rng.exponential(size=expected.shape).astype(np.float32)
        expected, motion = update(expected, motion, gradient, step / 30, budget)
    found = fit_to_budget(counts(method, expected, model), macs_of(model), budget)
    assert 0.995 * budget <= dr.cost_macs(model, found) <= budget
