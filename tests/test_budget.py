"""Budgets, schedules made to meet them, and the baselines of the same cost."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diffrate_jax as dr
from diffrate_jax.baselines import baselines, hand_made
from diffrate_jax.budget import (
    fit_to_budget,
    parse_budget,
    smallest_schedule,
    uniform,
)
from diffrate_jax.compressions import parse_compression
from diffrate_jax.cost import macs_of
from diffrate_jax.models.vit import ViT

DEIT = "deit_small_patch16_224"


def vit(image_size: int, depth: int, pool: str, **fields) -> ViT:
    return dr.create_model(
        "vit", image_size=image_size, patch_size=2, width=12, depth=depth, num_heads=2,
        num_classes=5, pool=pool, **fields,
    )  # fmt: skip


@st.composite
def tasks(draw: st.DrawFn) -> tuple[ViT, dr.Schedule, float]:
    """Draws a model, a schedule within what may compress, and a cost within reach."""
    size, depth = draw(st.sampled_from([8, 16])), draw(st.integers(3, 5))
    model = vit(size, depth, draw(st.sampled_from(["cls", "avg"])))
    geometry = model.geometry

    def row() -> list[int]:
        count = st.integers(2, geometry.num_tokens)
        return [draw(count) if c else geometry.num_tokens for c in geometry.compress]

    schedule = dr.Schedule(row() if draw(st.booleans()) else None, row())
    least = dr.cost_macs(model, smallest_schedule(model))
    share = draw(st.floats(0, 1))
    return model, schedule, least + share * (dr.cost_macs(model, None) - least)


def one_token_more(model: ViT, schedule: dr.Schedule) -> list[int]:
    """Returns what every schedule costs that keeps one token more in one block."""
    costs, geometry = [], model.geometry
    for block, (coming, _, last) in enumerate(schedule.steps(geometry.num_tokens)):
        if last < coming:
            merge = list(schedule.merge)
            merge[block] += 1
            # What was pruned and what was merged does not matter to the cost.
            pairs = zip(merge, geometry.compress, strict=True)
            longer = [n if free else geometry.num_tokens for n, free in pairs]
            costs.append(dr.cost_macs(model, dr.Schedule(None, longer)))
    return costs


@settings(max_examples=80, deadline=None)
@given(task=tasks())
def test_a_fitted_schedule_fills_its_budget(task):
    model, schedule, macs = task
    fitted = fit_to_budget(schedule, macs_of(model), macs)
    fitted.check(model.geometry)
    cost = dr.cost_macs(model, fitted)
    assert cost <= macs
    more = one_token_more(model, fitted)
    if more and min(more) - cost < 0.005 * macs:
        assert cost >= 0.995 * macs
    assert fit_to_budget(fitted, macs_of(model), macs) == fitted


@settings(max_examples=80, deadline=None)
@given(task=tasks())
def test_blocks_that_may_not_compress_keep_all(task):
    model, schedule, macs = task
    fitted = fit_to_budget(schedule, macs_of(model), macs)
    assert (fitted.prune is None) == (schedule.prune is None)
    steps = fitted.steps(model.geometry.num_tokens)
    for free, (coming, _, last) in zip(model.geometry.compress, steps, strict=True):
        assert free or last == coming


def test_a_schedule_that_fits_is_left_alone():
    model = dr.create_model(DEIT)
    schedule = dr.published_schedule(DEIT, 2.9)
    cost = dr.cost_macs(model, schedule)
    for room in (1.0, 1.004):
        fitted = fit_to_budget(schedule, macs_of(model), cost * room)
        assert fitted == schedule.canonical(197)


@pytest.mark.parametrize("target", [2.0, 2.9, 4.0])
def test_a_published_schedule_is_carried_to_another_cost(target: float):
    """All blocks move the same way, and the budget is filled to 0.5 %."""
    model = dr.create_model(DEIT)
    schedule = dr.published_schedule(DEIT, 2.7)
    fitted = fit_to_budget(schedule, macs_of(model), target * 1e9)
    assert 0.995 <= dr.cost_macs(model, fitted) / (target * 1e9) <= 1
    pairs = zip(fitted.merge, schedule.canonical(197).merge, strict=True)
    down = [new <= old for new, old in pairs]
    assert all(down) if target < 2.7 else sum(down) <= 2


@pytest.mark.parametrize(
    ("text", "gmacs"),
    [("2.9", 2.9), (2.9, 2.9), (" 4 ", 4.0), ("60%", None), ("100%", None)],
)
def test_budgets(text: str | float, gmacs: float | None):
    model = dr.create_model(DEIT)
    budget = parse_budget(text, model)
    assert budget.text == str(text).strip()
    if gmacs is None:
        gmacs = dr.cost_macs(model, None) / 1e11 * float(text.rstrip("%"))
    assert budget.limit == pytest.approx(gmacs * 1e9, rel=1e-12)


@pytest.mark.parametrize(
    "text", ["", "%", "two", "ms", "%ms", "2,9", "60%%", "2.9 GMACs"]
)
def test_budgets_that_are_none(text: str):
    with pytest.raises(dr.UserError, match=r"GMACs such as '2.9', a share of dense"):
        parse_budget(text, dr.create_model(DEIT))


@pytest.mark.parametrize(
    "text", ["0", "-1", "4.6", "101%", "9%", "0%", "nan", "inf", "-60%", "2900000000"]
)
def test_budgets_out_of_reach(text: str):
    sentence = (
        f"the target {text} is out of reach: this model's schedules cost between "
        r"0.6207 and 4.599 GMACs \(13.5% to 100%\); choose one of them"
    )
    with pytest.raises(dr.UserError, match=sentence):
        parse_budget(text, dr.create_model(DEIT))


@pytest.mark.parametrize("pool", ["cls", "avg"])
def test_the_ends_of_what_is_in_reach(pool: str):
    model = vit(16, 4, pool)
    least = dr.cost_macs(model, smallest_schedule(model))
    dense = dr.cost_macs(model, None)
    flat = dr.Schedule.dense(model.geometry)
    assert (
        fit_to_budget(flat, macs_of(model), least)
        == smallest_schedule(model).canonical()
    )
    assert fit_to_budget(flat, macs_of(model), dense) == flat
    halfway = fit_to_budget(flat, macs_of(model), (least + dense) / 2)
    assert dr.cost_macs(model, halfway) <= (least + dense) / 2


@pytest.fixture(scope="module")
def found() -> dict:
    return baselines(macs_of(dr.create_model(DEIT)), 2_900_000_000, seed=3)


def test_baselines_cost_as_much_and_at_most_one_percent_more(found):
    model = dr.create_model(DEIT)
    assert len(found) == 7 + 5
    for name, run in found.items():
        schedule = dr.Schedule.from_kept(run.kept(model.geometry))
        assert 1 <= dr.cost_macs(model, schedule) / 2.9e9 <= 1.01, name
        prunes = name.startswith(("prune", "random"))
        assert (schedule.prune is not None) == prunes, name
    assert found["merge only"].schedule.merge == found["prune only"].schedule.prune
    assert set(found["prune only"].schedule.merge) == {197}
    falling = found["ToMe decreasing"].r
    assert list(falling) == sorted(falling, reverse=True)
    assert falling[-1] == 0 < falling[0]
    rising = found["ToMe increasing"].r
    assert list(rising) == sorted(rising)
    assert rising[0] == 0 < rising[-1]
    assert max(found["ToMe constant"].r) - min(found["ToMe constant"].r) <= 1
    removed = np.diff([197, *found["uniform"].schedule.merge])
    assert removed[0] == 0
    assert np.ptp(removed[1:]) <= 2


def test_evit_fuses_in_three_blocks_that_keep_like_shares(found):
    schedule = found["EViT"].schedule
    steps = schedule.steps(197)
    at = [block for block, (coming, _, left) in enumerate(steps) if left < coming]
    assert (schedule.rule, at) == ("evit", [3, 6, 9])
    # Without the class token, and without the one that all the rest become.
    shares = [(steps[b][2] - 2) / (steps[b][0] - 1) for b in at]
    least, most = (
        max(s - 1 / (steps[b][0] - 1) for s, b in zip(shares, at, strict=True)),
        min(shares),
    )
    assert least < most  # One share, rounded up in each, explains all three.


def test_evit_is_for_models_with_a_class_token():
    pooled = dr.create_model(
        "vit", image_size=32, patch_size=4, width=12, depth=4, num_heads=2,
        num_classes=10, pool="avg", prefix_tokens=0,
    )  # fmt: skip
    names = hand_made(macs_of(pooled), 0.7 * dr.cost_macs(pooled, None), "redundancy")
    assert "EViT" not in names
    assert {"uniform", "ToMe constant", "redundancy constant"} <= names.keys()


@pytest.mark.parametrize(
    "rule", ["redundancy", pytest.param("tome", marks=pytest.mark.slow)]
)
def test_a_rule_runs_at_the_constant_counts_too(found, rule: str):
    """DiffRate's own does already, as "merge only"."""
    others = hand_made(macs_of(dr.create_model(DEIT)), 2_900_000_000, rule)
    schedule = others.pop(f"{rule} constant").schedule
    assert schedule == dr.Schedule(None, found["merge only"].schedule.merge, rule=rule)
    drawn = {name: run for name, run in found.items() if name.startswith("random")}
    even = others.pop("uniform").schedule
    assert even.rule == rule
    wanted = {name: run for name, run in found.items() if name != "uniform"}
    assert others | drawn == wanted


def test_random_baselines_differ_and_repeat_with_the_seed():
    model = vit(image_size=16, depth=6, pool="cls")
    measure, cost = macs_of(model), 0.6 * dr.cost_macs(model, None)
    found, same, other = (baselines(measure, cost, seed=seed) for seed in (3, 3, 4))
    assert found == same
    random = {run for name, run in found.items() if name.startswith("random")}
    assert len(random) == 5
    assert not random & {run for name, run in other.items() if "random" in name}


def test_a_family_that_cannot_cost_so_little_is_left_out(capsys):
    found = baselines(macs_of(dr.create_model(DEIT)), 100_000_000)
    assert "ToMe constant" not in found
    said = capsys.readouterr().err
    assert "left out: no ToMe constant schedule costs 0.1 GMACs" in said


def test_compressions_by_name(tmp_path: Path):
    model = dr.create_model(DEIT)
    published = dr.published_schedule(DEIT, "2.9")
    published.save(tmp_path / "s.json")
    parse = lambda text: parse_compression(text, model, DEIT)  # noqa: E731
    assert parse("none") is None
    assert parse("published:2.9") == dr.Gathered(published, reference=True)
    assert parse(str(tmp_path / "s.json")) == dr.Gathered(published)
    assert parse("tome:8") == dr.ToMe(8)
    even = parse("uniform:60%").schedule
    cost = dr.cost_macs(model, even) / dr.cost_macs(model, None)
    assert 0.597 <= cost <= 0.6
    assert parse("uniform:2.9").schedule.merge[0] == 197


@pytest.mark.parametrize("pool", ["cls", "avg"])
def test_uniform_loses_evenly_where_it_may(pool: str):
    model = vit(16, 6, pool)
    steps = uniform(model).steps(65)
    lost = [coming - last for coming, _, last in steps]
    free = [n for n, c in zip(lost, model.geometry.compress, strict=True) if c]
    assert lost[0] == 0
    assert (lost[-1] == 0) == (pool == "avg")
    assert max(free) - min(free) <= 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("nothing", "none, published:2.9, tome:8, uniform:60% or the path of a file"),
        ("nothing.json", "path of a file that exists, got 'nothing.json'"),
        ("", "cannot read the schedule"),
        ("tome", "whole number of tokens removed per block, got ''"),
        ("tome:2.5", "whole number of tokens removed per block, got '2.5'"),
        ("tome:-1", "ToMe removes a whole number of tokens"),
        ("published:9", "no schedule for 9 GMACs was published for deit_small"),
        ("published", "no schedule for  GMACs was published"),
        ("uniform:two", "a budget is GMACs such as"),
        ("uniform:5%", "out of reach"),
    ],
)
def test_compressions_that_are_none(text: str, sentence: str):
    with pytest.raises(dr.UserError, match=sentence):
        parse_compression(text, dr.create_model(DEIT), DEIT)


def test_compressions_made_for_another_model(tmp_path: Path):
    dr.Schedule(None, (5, 5)).save(tmp_path / "s.json")
    with pytest.raises(dr.UserError, match="12 attention blocks, .* counts for 2"):
        parse_compression(str(tmp_path / "s.json"), dr.create_model(DEIT), DEIT)
    with pytest.raises(dr.UserError, match="no schedule was published for model 'vit'"):
        parse_compression("published:2.9", vit(8, 3, "cls"), "vit")
