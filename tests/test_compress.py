"""Masked search and gathered inference are one definition run in two ways."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diffrate_jax as dr
from diffrate_jax import tokens as tk
from diffrate_jax.models.attention import mix, soften_masked
from diffrate_jax.pairs import Pairs
from diffrate_jax.rates import Kept
from diffrate_jax.rules import RULES, rule_of
from diffrate_jax.shapes import Geometry
from diffrate_jax.tokens import Attended, Tokens

DEPTH, TOKENS = 3, 17
MARGIN = 1e-5
SLOW_TOME = pytest.param("cls", "tome", marks=pytest.mark.slow)


def tiny(pool: str, dtype: type = np.float32):
    """Returns a model of 17 tokens, weights that spread the tokens, and images."""
    model = dr.create_model(
        "vit", image_size=8, patch_size=2, width=12, depth=DEPTH, num_heads=2,
        num_classes=5, pool=pool, compress=(True,) * DEPTH,
        prefix_tokens=1 if pool == "cls" else 0,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda w: np.asarray(w + 0.3 * rng.standard_normal(w.shape), dtype),
        dr.init_weights(model),
    )
    images = rng.standard_normal((16, 8, 8, 3)).astype(dtype)
    return model.clone(dtype=jnp.dtype(dtype)), params, images


def geometry_of(pool: str) -> Geometry:
    """Returns the geometry of `tiny`."""
    prefix = 1 if pool == "cls" else 0
    return Geometry(TOKENS - 1 + prefix, prefix, (True,) * DEPTH)


@st.composite
def schedules(
    draw: st.DrawFn, rule: str, pool: str, least: int = 2, most: int = 16
) -> dr.Schedule:
    """Draws counts that keep two tokens, keep all, rise and fall, as a rule can."""
    count = st.one_of(st.just(least), st.just(most), st.integers(least, most))
    row = st.lists(count, min_size=DEPTH, max_size=DEPTH).map(tuple)
    prune = draw(st.one_of(st.none(), row)) if RULES[rule].prunes else None
    schedule = dr.Schedule(prune, draw(row), rule=rule)
    return schedule.feasible(geometry_of(pool)) if rule == "tome" else schedule


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Measured(dr.Gathered):
    """Gathered, writing down by how much each decision was won, per example."""

    margins: list = dataclasses.field(default_factory=list, compare=False)

    def step(
        self, block: int, tokens: Tokens, seen: Attended, kept: Kept, geometry: Geometry
    ) -> Tokens:
        """Measures the ranking and matching of this block, then compresses."""
        coming, middle, last = self.schedule.steps(geometry.num_tokens)[block]
        prefix = geometry.prefix_tokens
        pairs = Pairs(rule_of(self.schedule.rule), tokens, seen, prefix)
        low, high = (
            tk.ranking_score(s, None, prefix) for s in score_bounds(pairs, seen)
        )
        score = tk.ranking_score(pairs.score(), None, prefix)
        order = jnp.argsort(-score, axis=1, stable=True)
        low, high = (jnp.take_along_axis(s, order, axis=1) for s in (low, high))
        for cut in {middle, last} - {coming}:
            self.margins.append(low[:, :cut].min(axis=1) - high[:, cut:].max(axis=1))
        if last < middle:
            stays, goes = order[:, :last], order[:, last:middle]
            allowed = tk.rows(pairs.receives_BN, stays)[:, None, :]
            closeness = jnp.take_along_axis(
                tk.rows(pairs.closeness(), goes), stays[:, None, :], axis=2
            )
            closeness = jnp.sort(jnp.where(allowed, closeness, -jnp.inf))
            self.margins.append((closeness[..., -1] - closeness[..., -2]).min(axis=1))
        return super().step(block, tokens, seen, kept, geometry)


def score_bounds(pairs: Pairs, seen: Attended) -> tuple[jax.Array, jax.Array]:
    """Returns the scores if importances that lie close were in another order.

    Only "redundancy" asks which of two tokens is the more important one: the fewer are
    more important than a token, the higher its score.
    """
    if pairs.rule.name != "redundancy":
        return pairs.score(), pairs.score()
    lead = seen.importance[:, None, :] - seen.importance[:, :, None]
    other = pairs.receives_BN[:, None, :] & ~jnp.eye(lead.shape[-1], dtype=bool)
    low, high = (
        -tk.most(pairs.closeness(), other & (lead > least))
        for least in (-MARGIN, MARGIN)
    )
    return low, high


@functools.cache
def compiled(pool: str, dtype: type):
    """Returns a function of a compression; compiling fast matters more than running."""
    model, params, images = tiny(pool, dtype)

    def run(compression) -> tuple:
        # Not through `forward`: margins may not cross its inner jit.
        out = model.apply({"params": params}, images, compression, trace=True)
        margins = getattr(compression, "margins", [])
        return out.logits, out.tokens, [jnp.ones(len(images)), *margins]

    options = {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    }
    return jax.jit(run, compiler_options=options)


def both_forms(pool: str, dtype: type, schedule: dr.Schedule):
    """Returns logits, sizes and origins of the living, and margins, in both forms."""
    for compression in (dr.Masked(schedule), Measured(schedule)):
        logits, tokens, margins = compiled(pool, dtype)(compression)
        alive = np.asarray(tokens.alive) == 1
        size = np.asarray(tokens.size)[alive].reshape(len(alive), -1)
        origin = np.asarray(tokens.origin)[alive].reshape(*size.shape, -1)
        yield np.asarray(logits), size, origin, np.min(margins, axis=0)


@pytest.mark.parametrize(
    ("pool", "rule"),
    [
        ("cls", "redundancy"),
        ("cls", "diffrate"),
        pytest.param("cls", "evit", marks=pytest.mark.slow),
        pytest.param("cls", "tome", marks=pytest.mark.slow),
        pytest.param("avg", "diffrate", marks=pytest.mark.slow),
        pytest.param("cls", "prune_only", marks=pytest.mark.slow),
        pytest.param("cls", "merge_only", marks=pytest.mark.slow),
        pytest.param("avg", "redundancy", marks=pytest.mark.slow),
        pytest.param("avg", "tome", marks=pytest.mark.slow),
    ],
)
def test_masked_equals_gathered_in_float64(pool: str, rule: str) -> None:
    @settings(max_examples=4, deadline=None)
    @given(schedule=schedules(rule, pool))
    def check(schedule: dr.Schedule) -> None:
        with jax.enable_x64(True):
            masked, gathered = both_forms(pool, np.float64, schedule)
        np.testing.assert_allclose(masked[0], gathered[0], atol=1e-9)
        # Survivors stand in their original order in both forms.
        np.testing.assert_allclose(masked[1], gathered[1], atol=1e-9)
        np.testing.assert_array_equal(masked[2], gathered[2])

    check()


@pytest.mark.parametrize(
    ("pool", "rule"),
    [
        ("cls", "redundancy"),
        SLOW_TOME,
        pytest.param("avg", "diffrate", marks=pytest.mark.slow),
    ],
)
def test_masked_equals_gathered_in_float32(pool: str, rule: str) -> None:
    """Rounding may decide a tie; wherever the margin is clear the forms agree."""
    rng = np.random.default_rng(1)
    decided = []
    for _ in range(2):
        prune, merge = rng.integers(2, TOKENS, (2, DEPTH)).tolist()
        schedule = dr.Schedule(prune if RULES[rule].prunes else None, merge, rule=rule)
        schedule = schedule.feasible(geometry_of(pool))
        masked, gathered = both_forms(pool, np.float32, schedule)
        clear = gathered[3] > MARGIN
        decided.extend(clear)
        np.testing.assert_allclose(masked[0][clear], gathered[0][clear], atol=1e-5)
    assert np.mean(decided) >= 0.95


def test_one_compilation_runs_every_schedule() -> None:
    model, params, images = tiny("cls")
    run = jax.jit(lambda c: dr.forward(model, params, images, c).logits)
    for kept in (17, 9, 2):
        run(dr.Masked(dr.Schedule((17,) * DEPTH, (kept,) * DEPTH)))
    assert run._cache_size() == 1


@pytest.mark.slow
def test_origins_partition_what_was_kept() -> None:
    """Without pruning every patch ends in exactly one token, and sizes add up."""
    model, params, images = tiny("cls")
    out = dr.forward(
        model, params, images, dr.Gathered(dr.Schedule(None, (12, 7, 4))), trace=True
    )
    np.testing.assert_array_equal(np.asarray(out.tokens.origin).sum(axis=1), 1.0)
    out = dr.forward(model, params, images, dr.ToMe(3), trace=True)
    np.testing.assert_array_equal(
        np.asarray(out.tokens.origin).sum(axis=2), out.tokens.size
    )


def masked_softmax(score: jax.Array, alive: jax.Array) -> jax.Array:
    """Returns the map of weights, which attention itself never forms."""
    own = jnp.diagonal(score, axis1=-2, axis2=-1)[..., None]
    weights = soften_masked(score, own, jnp.ones_like(alive), alive, 0.0)
    return mix(weights, jnp.broadcast_to(jnp.eye(score.shape[-1]), score.shape))


def test_a_wide_score_of_a_dead_token_harms_nobody() -> None:
    """A dead key far above all others neither overflows nor hides the living."""
    score = jnp.zeros((1, 1, 3, 3)).at[..., 2].set(500.0).at[..., 0].set(1.0)
    alive = jnp.array([[1.0, 1.0, 0.0]])
    weight = masked_softmax(score, alive)
    wanted = jax.nn.softmax(jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(weight[0, 0, 0, :2], wanted, rtol=1e-6)
    assert weight[0, 0, 0, 2] == 0
    grad = jax.grad(lambda a: masked_softmax(score, a)[0, 0, 0, 0])(alive)
    assert np.isfinite(np.asarray(grad)).all()


@pytest.mark.parametrize(
    ("schedule", "sentence"),
    [
        (dr.Schedule((17,), (9,)), "has 3 attention blocks"),
        (dr.Schedule(None, (17, 1, 1)), "between 2 and 17"),
        (dr.Schedule(None, (18, 5, 5)), "between 2 and 17"),
    ],
)
def test_schedules_that_do_not_fit(schedule: dr.Schedule, sentence: str) -> None:
    model, params, images = tiny("cls")
    for run in (dr.Gathered(schedule), dr.Masked(schedule)):
        with pytest.raises(dr.UserError, match=sentence):
            dr.forward(model, params, images, run)
