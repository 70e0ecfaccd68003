"""Rules: who goes first and where to, and what the gradient of a mask stands for."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from hypothesis import given, settings
from hypothesis import strategies as st
from test_compress import compiled, tiny

import diffrate_jax as dr
from diffrate_jax.compress import counts_of, feasible
from diffrate_jax.pairs import Pairs
from diffrate_jax.rates import Kept, Located
from diffrate_jax.rules import LEAST_SIMILARITY, RULES, rule_of
from diffrate_jax.shapes import Geometry
from diffrate_jax.tokens import Attended, Tokens

few = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 2**32 - 1)
both_forms = pytest.mark.parametrize("form", [dr.Gathered, dr.Masked])
every_rule = pytest.mark.parametrize("rule", RULES)


def directions(*degrees: float, length: float = 1.0) -> np.ndarray:
    """Returns features [1, N, 2] that point into the given directions."""
    angle = np.radians(degrees)
    return length * np.stack([np.cos(angle), np.sin(angle)], axis=-1)[None]


def tokens_of(x: np.ndarray, size: list[float] | None = None) -> Tokens:
    """Returns living tokens that remember where they came from."""
    x = jnp.asarray(x, jnp.float32)
    size = None if size is None else jnp.asarray([size], jnp.float32)
    origin = jnp.broadcast_to(jnp.eye(x.shape[1]), (len(x), x.shape[1], x.shape[1]))
    return Tokens(x, size, origin=origin)


def seen_of(importance: list[float], keys: np.ndarray | None = None) -> Attended:
    keys = np.zeros((1, len(importance), 2)) if keys is None else keys
    return Attended(jnp.asarray([importance], jnp.float32), jnp.asarray(keys))


def compress(form, schedule: dr.Schedule, tokens: Tokens, seen: Attended) -> Tokens:
    """Returns the tokens left of one example after one block, class token first."""
    geometry = Geometry(tokens.x.shape[1], 1, (True,))
    run = form(schedule)
    out = run.step(0, run.begin(tokens), seen, run.kept(geometry), geometry)
    stays = slice(None) if out.alive is None else np.asarray(out.alive[0]) == 1
    return jax.tree.map(lambda a: np.asarray(a)[0][stays], out.replace(alive=None))


def groups(tokens: Tokens) -> list[set[int]]:
    """Returns for each token the original ones that ended in it."""
    return [set(np.flatnonzero(row).tolist()) for row in tokens.origin]


@both_forms
@pytest.mark.parametrize(
    ("keep", "wanted"),
    [
        (4, [{0}, {1, 2}, {3}, {4}]),
        (3, [{0}, {1, 2}, {3, 4}]),
        (2, [{0}, {1, 2, 3, 4}]),
    ],
)
def test_redundancy_by_eye(form, keep: int, wanted: list[set[int]]):
    """Patches 1 and 2 are alike, 3 and 4 somewhat; 1 is the most important one.

    The class token points where patch 2 does, and still takes no part.
    """
    tokens = tokens_of(directions(10, 0, 10, 90, 120))
    seen = seen_of([0.0, 0.4, 0.1, 0.3, 0.2])
    out = compress(form, dr.Schedule(None, [keep], rule="redundancy"), tokens, seen)
    assert groups(out) == wanted
    for x, size, group in zip(out.x, out.size, wanted, strict=True):
        np.testing.assert_allclose(x, tokens.x[0, list(group)].mean(axis=0), rtol=1e-6)
        assert size == len(group)


@both_forms
def test_redundancy_of_twins_the_less_important_one_goes(form):
    """All say the same; importance alone decides, among equals the position."""
    tokens = tokens_of(directions(0, 0, 0, 0))
    for importance, stays in (
        ([0.0, 0.1, 0.3, 0.2], 2),
        ([9.0, 0.1, 0.2, 0.3], 3),
        ([0.0, 0.2, 0.2, 0.2], 1),
    ):
        seen = seen_of(importance)
        out = compress(form, dr.Schedule(None, [2], rule="redundancy"), tokens, seen)
        assert groups(out) == [{0}, {1, 2, 3}]
        position = np.argmax(out.origin[1])
        np.testing.assert_allclose(out.size, [1, 3])
        assert position == 1
        kept = RULES["redundancy"].score(
            seen, jnp.zeros((1, 4, 4)), jnp.array([[False, True, True, True]])
        )
        assert np.flatnonzero(np.isinf(kept[0]))[-1] == stays


@both_forms
def test_redundancy_weighs_sizes(form):
    """Two pairs are equally close; the pair of small tokens is the cheaper fold."""
    tokens = tokens_of(directions(0, 0, 20, 180, 200), [1, 5, 4, 3, 1])
    seen = seen_of([0.0, 0.4, 0.3, 0.2, 0.1])
    out = compress(form, dr.Schedule(None, [4], rule="redundancy"), tokens, seen)
    assert groups(out) == [{0}, {1}, {2}, {3, 4}]
    assert out.size.tolist() == [1, 5, 4, 4]
    wanted = (3 * tokens.x[0, 3] + tokens.x[0, 4]) / 4
    np.testing.assert_allclose(out.x[3], wanted, rtol=1e-6)


@both_forms
def test_diffrate_by_eye(form):
    """Patch 2 is dropped; 4, then 3, go into what points most alike; plain means."""
    tokens = tokens_of(directions(0, 10, 20, 60, 100), [1, 2, 1, 3, 4])
    seen = seen_of([0.0, 0.4, 0.1, 0.3, 0.2])
    out = compress(form, dr.Schedule([4], [3]), tokens, seen)
    assert groups(out) == [{0}, {1}, {3, 4}]
    np.testing.assert_allclose(out.x[2], tokens.x[0, 3:].mean(axis=0), rtol=1e-6)
    cosine = np.cos(np.radians(40))
    np.testing.assert_allclose(out.size, [1, 2, 3 + 4 * cosine], rtol=1e-6)
    out = compress(form, dr.Schedule([4], [2]), tokens, seen)
    assert groups(out) == [{0}, {1, 3, 4}]
    # The two point away from the third one's direction: their sizes shrink for it.
    shrunk = 3 * np.cos(np.radians(50)) + 4 * LEAST_SIMILARITY
    np.testing.assert_allclose(out.size, [1, 2 + shrunk], rtol=1e-6)


@both_forms
@pytest.mark.parametrize(
    ("keep", "wanted"),
    [
        (4, [{0}, {1}, {2, 4}, {3}]),
        (3, [{0}, {1}, {2, 3, 4}]),
        (2, [{0}, {1, 2, 3, 4}]),
    ],
)
def test_evit_by_eye(form, keep: int, wanted: list[set[int]]):
    """By falling attention: 1, 3, 2, 4. All but the first few become one token.

    Where they point to does not matter; attention weighs them, their sizes add up.
    """
    attention = [0.0, 0.4, 0.15, 0.3, 0.05]
    tokens = tokens_of(directions(10, 0, 90, 180, 270), [1, 2, 1, 3, 4])
    schedule = dr.Schedule(None, [keep], rule="evit")
    out = compress(form, schedule, tokens, seen_of(attention))
    assert sorted(map(sorted, groups(out))) == sorted(map(sorted, wanted))
    for x, size, group in zip(out.x, out.size, groups(out), strict=True):
        members = sorted(group)
        weights = np.array(attention)[members] + 1e-9
        mean = np.average(tokens.x[0, members], axis=0, weights=weights)
        np.testing.assert_allclose(x, mean, rtol=1e-5, atol=1e-6)
        assert size == np.asarray(tokens.size)[0, members].sum()


@both_forms
def test_evit_of_tokens_that_nobody_attends_to(form):
    """Attention may be rounded to nothing: a mean of them is still a mean."""
    tokens = tokens_of(directions(0, 0, 90, 180, 270))
    schedule = dr.Schedule(None, [3], rule="evit")
    out = compress(form, schedule, tokens, seen_of([0.0, 0.5, 0.0, 0.0, 0.0]))
    members = next(sorted(group) for group in groups(out) if len(group) == 3)
    assert members == [2, 3, 4]
    fused = out.x[[len(group) for group in groups(out)].index(3)]
    np.testing.assert_allclose(fused, tokens.x[0, members].mean(axis=0), atol=1e-6)


def test_evit_counts_every_token_once_in_attention():
    for form in (dr.Gathered, dr.Masked):
        assert form(dr.Schedule(None, (9, 9))).proportional
        assert not form(dr.Schedule(None, (9, 9), rule="evit")).proportional


def test_evit_needs_a_class_token_and_pruning_a_place_to_leave():
    pooled, staged = Geometry(16, 0, (True,)), Geometry(16, 0, (True,) * 2, ((1, 4),))
    for form in (dr.Gathered, dr.Masked):
        for rule, geometry, sentence in (
            ("evit", pooled, "this model has no class token; use another rule"),
            ("prune_only", staged, "'prune_only' drops tokens, and this model only"),
        ):
            counts = [4] * geometry.depth
            run = form(dr.Schedule(None, counts, rule=rule))
            with pytest.raises(dr.UserError, match=sentence):
                run.kept(geometry)


@pytest.mark.slow
@both_forms
@pytest.mark.parametrize(
    "operation", ["prune", pytest.param("merge", marks=pytest.mark.slow)]
)
def test_half_of_the_published_rule_is_the_published_rule(form, operation: str):
    """Alone an operation does what the whole rule does where the other one rests."""
    counts, every = (13, 9, 5), (17,) * 3
    alone = dr.Schedule(None, counts, rule=f"{operation}_only")
    both = dr.Schedule(*{"prune": (counts, every), "merge": (None, counts)}[operation])
    run = compiled("cls", np.float32)
    (half, left, _), (whole, wanted, _) = (run(form(s)) for s in (alone, both))
    np.testing.assert_allclose(half, whole, atol=1e-5)
    np.testing.assert_array_equal(left.origin, wanted.origin)
    model = tiny("cls")[0]
    assert dr.cost_macs(model, alone) == dr.cost_macs(model, both)


@both_forms
@pytest.mark.parametrize(
    ("keep", "wanted"),
    [
        (6, [{0}, {1}, {3}, {4}, {2, 5}, {6}]),
        (5, [{0}, {1}, {3, 4}, {2, 5}, {6}]),
        (4, [{0}, {1}, {3, 4, 6}, {2, 5}]),
    ],
)
def test_tome_by_eye(form, keep: int, wanted: list[set[int]]):
    """Of seven tokens 1, 3 and 5 may receive, and 2, 4 and 6 go, whatever they weigh.

    Their keys are 2, 20 and 80 degrees from the nearest one; 0 and 1 are twins.
    """
    keys = directions(0, 0, 40, 100, 80, 42, 180)
    tokens = tokens_of(directions(*range(0, 70, 10)), [1, 2, 3, 1, 2, 1, 1])
    seen = seen_of([0.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4], keys)
    out = compress(form, dr.Schedule(None, [keep], rule="tome"), tokens, seen)
    size = np.asarray(tokens.size[0])
    assert sorted(map(sorted, groups(out))) == sorted(map(sorted, wanted))
    for x, total, group in zip(out.x, out.size, groups(out), strict=True):
        members = list(group)
        assert total == size[members].sum()
        mean = np.average(tokens.x[0, members], axis=0, weights=size[members])
        np.testing.assert_allclose(x, mean, rtol=1e-6, atol=1e-7)


def test_tome_counts_only_the_living():
    """Of the living 0 1 3 4 5 6 every other one receives: 1, 4 and 6."""
    alive = jnp.array([[1.0, 1, 0, 1, 1, 1, 1]])
    tokens = tokens_of(directions(*range(7))).replace(alive=alive)
    seen = seen_of([1.0] * 7, directions(0, 90, 30, 30, 180, 33, 0))
    pairs = Pairs(RULES["tome"], tokens, seen, 1)
    assert np.flatnonzero(pairs.receives_BN[0]).tolist() == [1, 4, 6]
    geometry = Geometry(7, 1, (True,))
    run = dr.Masked(Kept(None, jnp.array([4.0])), rule="tome")
    out = run.step(0, tokens, seen, Kept(None, jnp.array([4.0])), geometry)
    # 2 is dead, though its key is that of 3; both that go are nearest to 6.
    assert np.asarray(out.alive[0]).tolist() == [1, 1, 0, 0, 1, 0, 1]
    assert out.size[0, 6] == 3
    assert np.flatnonzero(out.origin[0, 6]).tolist() == [3, 5, 6]
    without = tokens.replace(alive=None)
    pairs = Pairs(RULES["tome"], without, seen, 1)
    assert np.flatnonzero(pairs.receives_BN[0]).tolist() == [1, 3, 5]


@functools.partial(jax.jit, static_argnames="rule")
def one_step(kept: jax.Array, tokens: Tokens, seen: Attended, rule: str) -> Tokens:
    """Returns 13 tokens in the masked form, one compilation for each rule."""
    kept = Kept(None, kept)
    return dr.Masked(kept, rule=rule).step(0, tokens, seen, kept, THIRTEEN)


THIRTEEN = Geometry(13, 1, (True,))


@every_rule
def test_whom_no_rule_touches(rule: str):
    """Neither prefix tokens, nor the most important one, nor those that receive."""

    @few
    @given(seed=seeds, keep=st.integers(2, 13))
    def check(seed: int, keep: int):
        rng = np.random.default_rng(seed)
        size = rng.uniform(0.5, 4, (2, 13)).astype(np.float32)
        alive = np.ones((2, 13), np.float32)
        for row in alive:
            row[rng.choice(np.arange(1, 13), 3, replace=False)] = 0
        x = rng.standard_normal((2, 13, 3)).astype(np.float32)
        tokens = Tokens(x, size, alive, np.eye(13, dtype=np.float32)[None].repeat(2, 0))
        importance = rng.uniform(size=(2, 13)).astype(np.float32)
        keys = rng.standard_normal((2, 13, 3)).astype(np.float32)
        least = rule_of(rule).fewest(10, 1)
        kept = np.float32([max(keep, least)])
        out = one_step(kept, tokens, Attended(importance, keys), rule)
        left = np.asarray(out.alive)
        assert left.sum(axis=1).tolist() == [min(10, kept[0])] * 2
        np.testing.assert_allclose(out.x[:, 0], x[:, 0], rtol=1e-6)
        np.testing.assert_array_equal(out.size[:, 0], size[:, 0])
        assert not np.asarray(out.origin)[:, 0, 1:].any()
        assert (left <= alive).all()
        for b in range(2):
            living = np.flatnonzero(alive[b])
            receives = set(np.flatnonzero(np.asarray(out.size)[b] != size[b])) & set(
                np.flatnonzero(left[b])
            )
            assert 0 not in receives
            if rule == "redundancy":
                assert left[b, living[1:][np.argmax(importance[b, living[1:]])]] == 1
            if rule == "tome":
                assert receives <= set(living[1::2])
                assert left[b, living[1::2]].all()
            if rule == "prune_only":
                assert not receives
                np.testing.assert_array_equal(np.asarray(out.x)[b], x[b])
            if rule == "evit":
                assert len(receives) == (kept[0] < 10)
            before, after = (
                Tokens(t.x[b], t.size[b], mark[b])
                for t, mark in ((tokens, alive), (out, left))
            )
            check_sums(rule, before, after)

    check()


def check_sums(rule: str, before: Tokens, after: Tokens) -> None:
    """Sizes add up, and where they weigh means so do the features of an example."""
    living, left = (np.asarray(tokens.alive) == 1 for tokens in (before, after))
    size, x = (np.asarray(array) for array in (after.size, after.x))
    if rule in ("redundancy", "tome", "evit"):
        np.testing.assert_allclose(size[left].sum(), before.size[living].sum(), 1e-5)
    if rule in ("redundancy", "tome"):
        whole = (x * size[:, None])[left].sum(axis=0)
        wanted = (before.x * before.size[:, None])[living].sum(axis=0)
        np.testing.assert_allclose(whole, wanted, atol=1e-4)


@few
@given(seed=seeds)
def test_wards_criterion_computed_directly(seed: int):
    """The loss of variance when two clusters of unit vectors become one.

    s_i s_j / (s_i + s_j) |u_i - u_j|² is Ward's; on the sphere the square is
    2 (1 - cosine), and the rule leaves the factor of two out.
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((1, 5, 4))
    size = rng.uniform(0.5, 6, (1, 5))
    unit = x[0] / np.linalg.norm(x[0], axis=1, keepdims=True)
    cosine = (unit @ unit.T)[None]
    arrays = (cosine, size, size, np.zeros((1, 5)))
    found = RULES["redundancy"].closeness(*map(jnp.float32, arrays))
    for i, j in np.ndindex(5, 5):
        pair, weight = unit[[i, j]], size[0, [i, j]]
        mean = np.average(pair, axis=0, weights=weight)
        ward = (weight * ((pair - mean) ** 2).sum(axis=1)).sum()
        np.testing.assert_allclose(-found[0, i, j], ward / 2, atol=5e-6)


def test_unknown_rules():
    with pytest.raises(dr.UserError, match="unknown rule 'redundanzy'; did you mean"):
        rule_of("redundanzy")
    with pytest.raises(dr.UserError, match="unknown rule 'zzz'; known: redundancy, "):
        dr.Recipe(rule="zzz")


def test_only_the_published_rule_prunes():
    for rule in RULES.keys() - {"diffrate"}:
        with pytest.raises(dr.UserError, match=f"rule '{rule}' has one operation, wh"):
            dr.Schedule((9,), (9,), rule=rule)
        assert dr.Schedule(None, (9,), rule=rule).prune is None
    assert dr.Schedule((9,), (9,)).prune == (9,)


def test_tome_cannot_lose_more_than_half():
    """17 tokens: the 8 at even positions can go; then 4 of the other 8 patches."""
    geometry = Geometry(17, 1, (True,) * 3)
    greedy = dr.Schedule(None, (9, 4, 2), rule="tome")
    sentence = "rule 'tome' cannot leave 4 of 9 tokens in block 1, at the fewest 5"
    with pytest.raises(dr.UserError, match=sentence):
        greedy.check(geometry)
    for form in (dr.Gathered, dr.Masked):
        with pytest.raises(dr.UserError, match=sentence):
            form(greedy).kept(geometry)
    lifted = greedy.feasible(geometry)
    assert lifted == dr.Schedule(None, (9, 5, 3), rule="tome")
    lifted.check(geometry)
    no_prefix = Geometry(17, 0, (True,) * 3)
    assert dr.Schedule(None, (1, 1, 1), rule="tome").feasible(no_prefix).merge == (
        (9, 5, 3)
    )
    for rule in ("redundancy", "diffrate"):
        same = dr.Schedule(None, (9, 4, 2), rule=rule)
        same.check(geometry)
        assert same.feasible(geometry) == same


@functools.partial(jax.jit, static_argnames=("rule", "geometry"))
def traced_feasible(merge: jax.Array, rule: str, geometry: Geometry):
    """Returns the raised counts and what gradients they pass on."""
    raised = lambda merge: feasible(Kept(None, merge), rule_of(rule), geometry).merge  # noqa: E731
    return raised(merge), jax.jacobian(raised)(merge)


@few
@given(
    rule=st.sampled_from(list(RULES)),
    prefix=st.sampled_from([0, 1]),
    merge=st.lists(st.integers(1, 17), min_size=4, max_size=4),
)
def test_traced_and_whole_counts_are_raised_alike(rule: str, prefix: int, merge):
    geometry = Geometry(16 + prefix, prefix, (True,) * 4)
    merge = [max(count, prefix + 1) for count in merge]
    schedule = dr.Schedule(None, merge, rule=rule)
    found, passed = traced_feasible(counts_of(schedule).merge, rule, geometry)
    if rule == "evit" and not prefix:
        with pytest.raises(dr.UserError, match="has no class token; use another rule"):
            schedule.canonical(geometry.num_tokens).check(geometry)
        return
    raised = dr.Schedule.from_kept(Kept(None, found), rule)
    wanted = schedule.feasible(geometry)
    assert raised.canonical(geometry.num_tokens) == wanted
    np.testing.assert_array_equal(passed, np.eye(4))
    wanted.check(geometry)
    assert wanted.feasible(geometry) == wanted


def test_files_know_the_rule(tmp_path: Path):
    path = tmp_path / "s.json"
    for rule in RULES:
        schedule = dr.Schedule(None, (9, 5), {"target": "60%"}, rule)
        schedule.save(path)
        record = json.loads(path.read_text())
        assert (record["version"], record["rule"]) == (2, rule)
        assert dr.Schedule.load(path) == schedule
    old = {"format": "diffrate_jax.schedule", "version": 1, "prune": [9], "merge": [5]}
    path.write_text(json.dumps(old))
    assert dr.Schedule.load(path) == dr.Schedule((9,), (5,), rule="diffrate")
    path.write_text(json.dumps(record | {"rule": "redundansy"}))
    with pytest.raises(dr.UserError, match="unknown rule 'redundansy'"):
        dr.Schedule.load(path).check(Geometry(17, 1, (True, True)))


# Block 0 makes sizes differ and kills some, block 1 is looked at, block 2 mixes what
# comes out of it.
LOOKED_AT, KEPT = 1, (14, 10, 10)
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


@struct.dataclass
class Given(Located):
    """Expected counts whose masks take their gradient from one number per token."""

    offset: jax.Array | None = None

    def survival(self, operation, block, rank_BN, geometry, can_go_BN):
        return self.offset if block == LOOKED_AT else jnp.zeros(())


@struct.dataclass
class Published:
    """The same where the published form of the gradient is to be taken."""

    merge: jax.Array
    offset: jax.Array

    def kept(self, geometry, *, reference=False):
        return Kept(None, self.merge)

    survival = Given.survival


@struct.dataclass
class Soft(dr.Masked):
    """Fixed counts, but in one block a part of each token survives.

    Attributes:
        part: how much of a token survives [B, N].
        folds: whether what does not survive is folded; if not, it is just dropped.
    """

    part: jax.Array | None = None
    folds: jax.Array | None = None

    def step(self, block, tokens, seen, kept, geometry):
        if block > LOOKED_AT:
            return tokens
        hard = super().step(block, tokens, seen, kept, geometry)
        if block < LOOKED_AT:
            return hard
        size, alive = tokens.size, tokens.alive * self.part
        features = seen.keys if self.rule == "tome" else tokens.x
        unit = features / jnp.linalg.norm(features, axis=-1, keepdims=True)
        near = unit @ unit.swapaxes(1, 2)
        allowed = hard.alive == 1
        if self.rule == "redundancy":
            near = (near - 1) / (1 / size[:, :, None] + 1 / size[:, None, :])
        if self.rule == "tome":
            allowed &= jnp.cumsum(tokens.alive, axis=1) % 2 == 0
        allowed = allowed.at[:, : geometry.prefix_tokens].set(False)
        allowed = allowed[:, None, :] & ~jnp.eye(allowed.shape[1], dtype=bool)
        near = jnp.where(allowed, near, -jnp.inf)
        gone = (tokens.alive * (1 - self.part))[..., None]
        gone *= jax.nn.one_hot(jnp.argmax(near, axis=-1), size.shape[1])
        weight, share = size, 1.0
        if self.rule == "diffrate":
            weight, share = jnp.ones_like(size), near.max(axis=-1, keepdims=True)
        moved = gone * weight[..., None]
        x = tokens.x * weight[..., None] + moved.swapaxes(1, 2) @ tokens.x
        x /= (weight + moved.sum(axis=1))[..., None]
        size += (gone * (size[..., None] * share)).sum(axis=1)
        x = jnp.where(self.folds, x, hard.x)
        size = jnp.where(self.folds, size, hard.size)
        return tokens.replace(x=x, size=size, alive=alive)


def numeric_gradient(loss, part: np.ndarray, step: float = 1e-4) -> np.ndarray:
    """Returns the derivative of each example's loss by each token's part [B, N].

    From below 1 and from above 0: a token cannot be less than dead.
    """
    found, here = np.zeros_like(part), loss(part)
    for token in range(part.shape[1]):
        way = np.zeros_like(part)
        way[:, token] = step * np.where(part[:, token] > 0.5, -1, 1)
        slope = 4 * loss(part + way) - loss(part + 2 * way) - 3 * here
        found[:, token] = slope / (2 * way[:, token])
    return found


def gradients(rule: str, pool: str, learned: type):
    """Returns derivatives by each token's part [2, N], and which tokens stay.

    That of the masks, and by finite differences that of what becomes of tokens that are
    folded in part, and of such that are dropped in part. The values are compared, too.
    """
    model, params, images = tiny(pool, np.float64)
    weight = np.random.default_rng(5).standard_normal((2, 5))
    prefix = model.geometry.prefix_tokens

    def run(compression):
        out = model.apply({"params": params}, images[:2], compression)
        return (out.logits * weight).sum(axis=1), out.tokens.alive

    def total(offset):
        counts = Published(jnp.array(KEPT, jnp.float32), offset)
        if learned is Given:
            expected = jnp.array(KEPT, jnp.float32) - prefix - 0.5
            counts = Given(None, expected, jnp.ones(()), offset)
        loss, alive = run(dr.Masked(counts, rule=rule))
        return loss.sum(), (loss, alive)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def loss(part, folds):
        schedule = dr.Schedule(None, KEPT, rule=rule)
        return run(Soft(schedule, part=part, folds=folds))[0]

    offset = np.zeros((2, model.geometry.num_tokens))
    derive = jax.jit(jax.grad(total, has_aux=True), compiler_options=QUICK)
    found, (value, alive) = derive(offset)
    part = np.array(alive)
    for folds in (True, False):
        np.testing.assert_allclose(loss(part, folds), value, atol=1e-9)
    numeric = [
        numeric_gradient(lambda part, folds=folds: np.asarray(loss(part, folds)), part)
        for folds in (True, False)
    ]
    return np.asarray(found), *numeric, part == 1


@pytest.mark.parametrize(
    ("rule", "pool"),
    [
        ("redundancy", "avg"),
        pytest.param("tome", "cls", marks=pytest.mark.slow),
        pytest.param("diffrate", "cls", marks=pytest.mark.slow),
    ],
)
def test_the_gradient_of_a_count_is_that_of_folding(rule: str, pool: str):
    with jax.enable_x64(True):
        found, wanted, dropped, stays = gradients(rule, pool, Given)
    free = found != 0
    # 14 tokens came in. Besides the class token, "redundancy" never gives up one of
    # them, and "tome" none of those at odd positions.
    never = {"diffrate": 0, "redundancy": 1, "tome": 7}[rule] + (pool == "cls")
    assert free.sum(axis=1).tolist() == [14 - never] * 2
    assert (free & ~stays).sum(axis=1).tolist() == [4, 4]
    scale = np.abs(wanted[free]).max()
    np.testing.assert_allclose(found[free], wanted[free], rtol=1e-5, atol=1e-6 * scale)
    # What it would be if only the marks of life carried it is something else.
    assert np.abs(found[free] - dropped[free]).max() > 0.1 * scale


def test_the_published_gradient_is_that_of_dropping():
    with jax.enable_x64(True):
        found, folded, wanted, _ = gradients("diffrate", "cls", Published)
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6 * scale)
    assert np.abs(found - folded).max() > 0.1 * scale


def test_expected_counts_run_as_the_schedule_they_stand_for():
    """One block may not compress; after the last one only the class token matters."""
    model, params, images = tiny("cls")
    model, images = model.clone(compress=(True, False, True)), images[:2]
    schedule = dr.Schedule(None, (10, 10, 6), rule="redundancy")

    def loss(expected):
        counts = Located(None, expected, jnp.float32(1.0))
        run = dr.Masked(counts, rule="redundancy")
        logits = model.apply({"params": params}, images, run).logits
        return (logits**2).sum(), logits

    derive = jax.jit(jax.grad(loss, has_aux=True), compiler_options=QUICK)
    gradient, logits = derive(jnp.float32([8.3, 3.0, 5.0]))
    gathered = functools.partial(model.apply, {"params": params}, images)
    gathered = jax.jit(gathered, compiler_options=QUICK)
    wanted = gathered(dr.Gathered(schedule)).logits
    np.testing.assert_allclose(logits, wanted, atol=1e-5)
    assert gradient[0] != 0
    assert gradient[1:].tolist() == [0, 0]
