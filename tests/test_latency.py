"""Latency tables: what they say, what they refuse, and where they lead a search."""

import dataclasses
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diffrate_jax as dr
from diffrate_jax import benchmark
from diffrate_jax.baselines import hand_made
from diffrate_jax.budget import (
    CLOSE,
    fit_to_budget,
    one_more,
    parse_budget,
    smallest_schedule,
    uniform,
)
from diffrate_jax.cost import Measure, macs_of
from diffrate_jax.latency import (
    MILLISECONDS,
    BlockTimes,
    LatencyTable,
    LatencyTerms,
    along,
)
from diffrate_jax.learning import budgets_of
from diffrate_jax.learning.projected import Projected
from diffrate_jax.learning.refine import refine
from diffrate_jax.models import architecture
from diffrate_jax.timing import probes
from diffrate_jax.timing.curves import Fit, Timing

pytestmark = pytest.mark.usefixtures("cache")
RULE, DEPTH = "redundancy", 4
COMPRESSION = (0.3, 1e-3, 2e-5, 3e-5)


def small(depth: int = DEPTH, image_size: int = 16):
    """Returns a model of 65 tokens of which all blocks may compress."""
    return dr.create_model(
        "vit", image_size=image_size, patch_size=2, width=48, depth=depth, num_heads=2,
        num_classes=5, compress=(True,) * depth,
    )  # fmt: skip


def times(blocks=range(DEPTH), factor: float = 1.0, **changed) -> BlockTimes:
    """Returns made-up times, with a step of the hardware in them."""
    fields = {
        "blocks": tuple(blocks),
        "tokens": (2.0, 16.0, 33.0, 50.0, 65.0),
        "attention": tuple(factor * np.array([0.2, 0.4, 0.9, 1.0, 1.8])),
        "mlp": tuple(factor * np.array([0.1, 0.6, 1.3, 2.5, 3.0])),
        "compression": COMPRESSION,
    }
    return BlockTimes(**fields | changed)


def table(terms: LatencyTerms | None = None, **changed) -> LatencyTable:
    """Returns a made-up table of the small model."""
    terms = terms or LatencyTerms(2.0, (times(range(DEPTH - 1)), times([DEPTH - 1])))
    fields = {"model": architecture(small()), "rule": RULE, "batch_size": 8}
    about = {"environment": {"device": "made up"}}
    fields |= {"dtype": "float32", "terms": terms, "about": about}
    return LatencyTable(**fields | changed)


def proportional(model, factor: float = 1e-5) -> LatencyTerms:
    """Returns times that are multiply-accumulates by a factor, block by block."""
    tokens = np.arange(2.0, model.geometry.num_tokens + 1)
    rows = []
    for block in range(model.depth):
        linear_in, quadratic_in, linear_out = model.macs.of_block(block)
        attention = factor * (linear_in * tokens + quadratic_in * tokens**2)
        curves = tuple(attention), tuple(factor * linear_out * tokens)
        rows.append(BlockTimes((block,), tuple(tokens), *curves, (0.0,) * 4))
    return LatencyTerms(factor * model.macs.fixed, tuple(rows))


LATENCY = jax.jit(lambda kept: table().measure(small(), RULE)(dr.Kept(None, kept)))
PRICES = jax.jit(jax.grad(LATENCY))
falling = st.lists(
    st.integers(2, small().geometry.num_tokens), min_size=DEPTH, max_size=DEPTH
).map(lambda counts: sorted(counts, reverse=True))


@given(
    at=st.lists(st.floats(0, 80), min_size=1, max_size=5),
    rises=st.lists(st.floats(0, 5), min_size=4, max_size=4),
)
def test_curves_are_straight_between_their_points(at, rises):
    knots, values = times().tokens, np.cumsum([1.0, *rises])
    inside = np.clip(at, knots[0], knots[-1])
    found = along(knots, tuple(values), inside)
    np.testing.assert_allclose(found, np.interp(inside, knots, values), atol=1e-9)
    # Beyond both ends the lines go on.
    ends = along(knots, tuple(values), np.array([1.0, 70.0]))
    slopes = np.diff(values) / np.diff(knots)
    wanted = values[0] - slopes[0], values[-1] + 5 * slopes[-1]
    np.testing.assert_allclose(ends, wanted, atol=1e-9)


@settings(deadline=None)
@given(merge=falling)
def test_exact_and_traced_latencies_are_the_same(merge):
    measure, schedule = table().measure(small(), RULE), dr.Schedule(None, merge)
    traced = LATENCY(jnp.array(merge, jnp.float32))
    assert isinstance(measure(schedule), float)
    np.testing.assert_allclose(traced, measure(schedule), rtol=2e-6)


@settings(max_examples=40, deadline=None)
@given(merge=falling, data=st.data())
def test_a_price_is_the_change_of_the_latency(merge, data):
    """Between knots, in blocks that compress: by differences, in float64."""
    # Not on a whole number, so that no neighbour and no knot is within the difference.
    kept = np.array(merge) - np.linspace(0.1, 0.4, DEPTH)
    block = data.draw(st.integers(0, DEPTH - 1))
    measure = table().measure(small(), RULE)
    price = PRICES(jnp.array(kept, jnp.float32))

    def latency(change: float) -> float:
        left = kept.copy()
        left[block] += change
        return measure.terms.total([65, *left[:-1]], left)

    np.testing.assert_allclose(
        price[block], (latency(1e-3) - latency(-1e-3)) / 2e-3, rtol=1e-3
    )


def test_compressing_at_all_costs_and_has_no_price():
    model = small()
    with_step, without = (
        Measure(model.geometry, LatencyTerms(0.0, (row,)), MILLISECONDS)
        for row in (times(compression=(0.3, 0, 0, 0)), times(compression=(0.0,) * 4))
    )
    # Two blocks of four compress.
    kept = dr.Kept(None, jnp.array([40.0, 40.0, 20.0, 20.0]))
    assert with_step(kept) == pytest.approx(float(without(kept)) + 0.6)
    prices = [jax.grad(lambda k, m=m: m(dr.Kept(None, k)))(kept.merge)
              for m in (with_step, without)]  # fmt: skip
    np.testing.assert_array_equal(*prices)


def test_a_file_is_read_as_it_was_written(tmp_path: Path):
    first = table(about={"name": "vit", "checks": [{"ms": 1.5, "left": [3]}]})
    first.save(tmp_path / "a.json")
    again = LatencyTable.load(tmp_path / "a.json")
    again.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()
    assert again.terms == first.terms
    schedule = dr.Schedule(None, (50, 33, 33, 9))
    wanted = first.measure(small(), RULE)(schedule)
    assert again.measure(small(), RULE)(schedule) == wanted
    assert "commit" not in (tmp_path / "a.json").read_text()


def spoilt(change) -> str:
    """Returns the text of a table's file after a change of its record."""
    record = json.loads(json.dumps(table().record()))
    change(record)
    return json.dumps(record)


def put(*path, value):
    """Returns a change that puts a value at a place of a record."""

    def change(record: dict) -> None:
        *places, last = path
        for place in places:
            record = record[place]
        record[last] = value

    return change


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "is not a latency table"),
        ("{", "is not JSON"),
        (spoilt(put("format", value="x")), "is not a latency table"),
        (spoilt(put("version", value=2)), "version 2, this package reads version 1"),
        (spoilt(put("rule", value=3)), "'rule' must be a str"),
        (spoilt(put("model", value=None)), "'model' must be a dict"),
        (spoilt(put("terms", value=[])), "the number 'fixed' and the list 'times'"),
        (spoilt(put("terms", "fixed", value="2")), "the number 'fixed'"),
        (spoilt(put("terms", "times", value=[])), "at least one kind of block"),
        (spoilt(put("terms", "times", 0, value={})), "each of 'times' must have"),
        (spoilt(put("terms", "times", 0, "mlp", value="abc")), "a list of numbers"),
        (spoilt(put("terms", "times", 0, "mlp", value=[1, 2])), "as long as each"),
        (spoilt(put("terms", "times", 0, "mlp", 2, value=0.0)), "may fall"),
        (spoilt(put("terms", "times", 0, "mlp", 2, value=None)), "a list of numbers"),
        (spoilt(put("terms", "times", 0, "tokens", 2, value=4)), "must rise"),
        (spoilt(put("terms", "times", 0, "blocks", value=[])), "must have at least"),
        (spoilt(put("terms", "times", 0, "blocks", value=[0, 1])), "every block once"),
        (spoilt(put("terms", "times", 1, "blocks", value=[2])), "every block once"),
        (spoilt(put("terms", "times", 1, "blocks", value=[9])), "every block once"),
        (spoilt(put("terms", "times", 1, "blocks", value=[-1])), "every block once"),
        (spoilt(put("terms", "times", 0, "compression", 1, value=-1)), "negative"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, text: str, words: str):
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(dr.UserError, match=words) as caught:
        LatencyTable.load(path).measure(small(), RULE)
    assert "\n" not in str(caught.value)


def test_a_table_of_another_model_or_rule_is_refused():
    with pytest.raises(dr.UserError, match=r"of a model with depth=4, this one has 3"):
        table().measure(small(3), RULE)
    with pytest.raises(dr.UserError, match=r"rule 'redundancy', the search has 'tome'"):
        table().measure(small(), "tome")
    # Which blocks may compress is a search's own choice.
    assert table().measure(small().clone(compress=None), RULE)


def test_budgets_in_milliseconds():
    model, measure = small(), table().measure(small(), RULE)
    least, most = measure(smallest_schedule(model)), measure(None)
    budget = parse_budget(" 15.5ms", model, measure)
    assert (budget.text, budget.limit) == ("15.5ms", 15.5)
    assert least < 15.5 < most
    for text in (f"{least * 0.99}ms", f"{most * 1.01}ms", "0ms", "-3ms", "nanms"):
        sentence = rf"{text} is out of reach: .* {least:.4g} and {most:.4g} ms \("
        with pytest.raises(dr.UserError, match=sentence):
            parse_budget(text, model, measure)
    # What is not in milliseconds is in operations, with a table or without.
    assert parse_budget("60%", model, measure) == parse_budget("60%", model)
    with pytest.raises(dr.UserError, match=r"needs a latency table .*latency_table"):
        parse_budget("6.5ms", model)
    slow = LatencyTerms(2.0, (times(compression=(99.0, 0, 0, 0)),))
    with pytest.raises(dr.UserError, match=r"longer than it saves .* larger batches"):
        parse_budget("15ms", model, table(slow).measure(model, RULE))


def test_budgets_of_one_search_share_a_unit():
    model, recipe = small(), dr.Recipe()
    found = budgets_of(model, recipe, ["15ms", "14 ms"], table())
    assert [budget.limit for budget in found] == [15, 14]
    with pytest.raises(dr.UserError, match=r"one unit, got GMACs and ms"):
        budgets_of(model, recipe, ["15ms", "60%"], table())
    published = dr.Recipe.published(rule=RULE, penalty_unit="gmacs")
    with pytest.raises(dr.UserError, match=r"'gmacs' and the budget is in ms"):
        budgets_of(model, published, ["15ms"], table())


@settings(max_examples=40, deadline=None)
@given(merge=falling, share=st.floats(0.05, 1))
def test_a_fitted_schedule_fills_its_milliseconds(merge, share):
    model, measure = small(), table().measure(small(), RULE)
    least = measure(smallest_schedule(model))
    limit = least + share * (measure(None) - least)
    fitted = fit_to_budget(dr.Schedule(None, merge, rule=RULE), measure, limit)
    fitted.check(model.geometry)
    assert measure(fitted) <= limit
    longer = [m + 1 for m in fitted.merge]
    for block in range(DEPTH):
        left = [*fitted.merge[:block], longer[block], *fitted.merge[block + 1 :]]
        if left[block] <= ([65, *left])[block]:
            full = measure(fitted) >= CLOSE * limit
            assert full or measure(dr.Schedule(None, left, rule=RULE)) > limit


def test_refining_holds_the_milliseconds():
    """Tokens are worth most in the last block: some go there, and the time holds."""
    measure = table().measure(small(), RULE)
    start = dr.Schedule(None, (50, 40, 30, 20), rule=RULE)
    limit = measure(start) * 1.001
    loss = lambda s: np.full(4, -1.0 * s.merge[3])  # noqa: E731
    found = refine(start, measure, limit, loss)
    assert found.moves
    assert found.schedule.merge[3] > 20
    assert 0.98 * limit <= measure(found.schedule) <= limit
    # A token more in one block makes the next compress, which takes longer than that.
    for block in range(4):
        longer = one_more(found.schedule, block, small().geometry)
        assert longer is None or measure(longer) > limit


def test_baselines_at_equal_milliseconds():
    measure = table().measure(small(), RULE)
    cost = measure(uniform(small(), RULE))
    found = hand_made(measure, cost, RULE)
    assert {"ToMe constant", "merge only"} <= found.keys()
    for name, run in found.items():
        counts = getattr(run, "schedule", None)
        schedule = run if isinstance(run, dr.ToMe) else counts
        assert 1 <= measure(schedule) / cost <= 1.02, name


def descend(measure: Measure, limit: float, value: np.ndarray) -> dr.Schedule:
    """Returns where the search ends if a token's worth in a block is known."""
    recipe, steps = dr.Recipe(learning_rate=0.02), 150
    method, start = Projected(measure, recipe), uniform(small(), RULE)

    def step(state, index):
        expected, motion = state
        gradient = -value * jnp.exp(-expected / 16.0)
        return method.update(expected, motion, gradient, index / steps, limit), None

    @jax.jit
    def run(expected):
        state = expected, method.fresh(expected)
        return jax.lax.scan(step, state, jnp.arange(steps))[0][0]

    expected = run(method.start(fit_to_budget(start, measure, limit)))
    kept = method.masked(expected, jnp.ones(())).kept(measure.geometry)
    return fit_to_budget(dr.Schedule.from_kept(kept, RULE), measure, limit)


VALUE = np.float32([4.0, 2.0, 1.5, 1.0])


@pytest.mark.slow
def test_milliseconds_in_proportion_to_operations_change_nothing():
    model = small()
    macs = macs_of(model)
    ms = table(proportional(model)).measure(model, RULE)
    for counts in (None, dr.Schedule(None, (40, 30, 20, 7)), dr.ToMe(9)):
        assert ms(counts) == pytest.approx(1e-5 * macs(counts), rel=1e-12)
    limit = 0.6 * macs(None)
    assert descend(ms, 1e-5 * limit, VALUE) == descend(macs, limit, VALUE)


@pytest.mark.slow
@pytest.mark.parametrize("dear", [0, 2])
def test_where_one_block_is_dear_it_saves(dear: int):
    """Its MLP takes ten times as long: most tokens go right before it."""
    model, even = small(), proportional(small())
    row = even.times[dear]
    slow = dataclasses.replace(row, mlp=tuple(10 * np.array(row.mlp)))
    rows = (*even.times[:dear], slow, *even.times[dear + 1 :])
    gone = []
    for terms in (even, dataclasses.replace(even, times=rows)):
        measure = table(terms).measure(model, RULE)
        found = descend(measure, 0.7 * measure(None), VALUE)
        gone.append(-np.diff([65, *found.merge]))
    usual, now = gone
    assert now[dear] > usual[dear] + 5
    assert now.argmax() == dear


def made_up_timings(noise: float, seed: int) -> tuple[list[Timing], LatencyTerms]:
    """Returns what the probes of the small model would take, and by which times."""
    model, rng = small(), np.random.default_rng(seed)
    last = times([DEPTH - 1], factor=0.5)
    terms = LatencyTerms(2.0, (times(range(DEPTH - 1)), last))
    timings = []
    for probe in probes.probes_of(model, RULE):
        timing, total = probe.timing(1.0), 2.0
        for kind, row in enumerate(terms.times):
            steps = [s for s, k in zip(timing.steps, timing.kinds, strict=True)
                     if k == kind]  # fmt: skip
            total += row.total(*np.array(steps).T)
        ms = total * (1 + noise * rng.standard_normal())
        timings.append(dataclasses.replace(timing, ms=ms))
    return timings, terms


@pytest.mark.parametrize(("noise", "error"), [(0.0, 0.02), (0.02, 0.04)])
@pytest.mark.parametrize("seed", range(3))
def test_a_fit_predicts_schedules_that_were_not_timed(noise, error, seed):
    model = small()
    timings, terms = made_up_timings(noise, seed)
    fitted = probes.terms_of(model, timings)
    true, found = (Measure(model.geometry, t, MILLISECONDS) for t in (terms, fitted))
    checks = probes.checks_of(model, RULE, 20, seed)
    wrong = [found(c.schedule) / true(c.schedule) - 1 for c in checks]
    assert np.abs(wrong).mean() < error
    assert [row.blocks for row in fitted.times] == [(0, 1, 2), (3,)]


def test_probes_reach_all_counts_and_are_few():
    for model in (small(), dr.create_model("deit_small_patch16_224"),
                  dr.create_model("caformer_s36")):  # fmt: skip
        for rule in ("redundancy", "tome"):
            found = probes.probes_of(model, rule)
            assert len({probe.name for probe in found}) == len(found) <= 40
            steps = set(itertools.chain(*(p.timing(1.0).steps for p in found)))
            coming = {step[0] for step in steps}
            assert max(coming) == model.geometry.num_tokens
            assert min(coming) < 0.2 * model.geometry.num_tokens
            for probe in found:
                probe.schedule.check(probe.model.geometry)


def test_a_fit_never_gives_a_token_for_nothing():
    """Where all takes as long, as small batches do on a large device."""
    timings, _ = made_up_timings(0.0, 0)
    flat = [
        dataclasses.replace(timing, ms=1.0 * len(timing.steps)) for timing in timings
    ]
    for row in probes.terms_of(small(), flat).times:
        assert (np.diff(np.add(row.attention, row.mlp)) > 0).all()
    knots = np.array([2.0, 65.0])
    alone = Fit(flat[:1], knots, np.array([0.5]), 2)
    assert alone.times(0, [0]).blocks == (0,)


@pytest.mark.parametrize("slow", range(4, 8))
def test_times_are_those_of_one_pace(slow: int):
    """Half of the rounds, and some of a round, on a machine half as fast."""
    own, rng = np.linspace(1, 3, 20), np.random.default_rng(slow)
    pace = np.ones((20, 11))
    pace[:, slow:] = 2.0
    pace[:9, slow - 1] = 2.0
    seconds = own[:, None] * pace * rng.uniform(0.99, 1.01, pace.shape)
    found = probes.steady(seconds)
    np.testing.assert_allclose(found / found[0], own / own[0], rtol=0.02)
    assert found[0] == pytest.approx(1.0, rel=0.02) or found[0] == pytest.approx(
        2.0, rel=0.02
    )


RECIPE = """
from configs import quickstart

def get_config():
    config = quickstart.get_config()
    config.model_fields.update(depth=2, width=12)
    config.cpu_devices, config.steps = 0, 4
    return config
"""


def test_a_table_is_measured_by_the_program(tmp_path, capsys, monkeypatch, cache):
    monkeypatch.setattr(probes, "LONG", 2)
    monkeypatch.setattr(probes, "SHORT", 1)
    monkeypatch.setattr(probes, "SHARES", (1.0, 0.4))
    monkeypatch.setattr(probes, "RATIOS", (0.8,))
    recipe, path = tmp_path / "recipe.py", tmp_path / "tables/small.json"
    recipe.write_text(RECIPE)
    words = f"benchmark --recipe={recipe} --latency_table={path} --batch=2 --rounds=2"
    assert benchmark.main([*words.split(), "--checks=1"]) == 0
    printed = capsys.readouterr()
    assert "1 random schedules: predicted to" in printed.out
    assert str(path) in printed.out
    assert "compile" in printed.err
    found = LatencyTable.load(path)
    assert (found.batch_size, found.dtype, found.rule) == (2, "float32", RULE)
    assert len(found.about["checks"]) == 1
    assert all(probe["ms"] > 0 for probe in found.about["probes"])
    model = dr.create_model("vit", **{
        field: found.model[field]
        for field in ("image_size", "patch_size", "width", "depth", "num_heads",
                      "num_classes")
    })  # fmt: skip
    # How near it comes is a matter of the machine: README.
    assert found.measure(model, RULE)(None) > 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--batch=1,2", "of one batch size"),
        ("--schedule=tome:4", "takes no --schedule"),
        ("--checks=-1", "--checks=-1"),
        ("--dtype=float16", "--dtype must be one of"),
        ("--rule=tomb", "unknown rule 'tomb'"),
        ("--rounds=0", "--rounds must be at least 1"),
        ("--model=deit_smal", "unknown model"),
    ],
)
def test_flags_that_make_no_table(tmp_path, capsys, flags: str, words: str):
    model = [] if "--model" in flags else ["--model=deit_tiny_patch16_224"]
    where = f"--latency_table={tmp_path}/table.json"
    assert benchmark.main(["benchmark", where, *model, flags]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_blocks_rest_where_compressing_takes_longest():
    """A loss that every token lowers alike: one block compresses for all."""
    free = (times(compression=(0.0,) * 4), times(compression=(0.8, 0, 0, 0)))
    for row, most in zip(free, (DEPTH, 1), strict=True):
        terms = LatencyTerms(2.0, (row,))
        measure = Measure(small().geometry, terms, MILLISECONDS)
        start = dr.Schedule(None, (60, 55, 50, 45), rule=RULE)
        loss = lambda s: np.full(4, -1.0 * sum(s.merge))  # noqa: E731
        found = refine(start, measure, measure(start), loss)
        steps = found.schedule.steps(measure.geometry)
        assert sum(left < coming for coming, _, left in steps) <= most
        assert measure(found.schedule) <= measure(start)
        rested = [move["rests"] for move in found.moves if "rests" in move]
        assert bool(rested) == (most == 1)
        assert len(set(rested)) == len(rested)
