"""Schedules: what is written is read, what is wrong is refused in a sentence."""

import doctest
import importlib
import json
import os
import pkgutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diffrate_jax as dr
from diffrate_jax.published import PUBLISHED
from diffrate_jax.rates import Kept
from diffrate_jax.shapes import Geometry

TOKENS = 17
DEPTHS = st.integers(1, 5)
GOOD = {"format": "diffrate_jax.schedule", "version": 1, "prune": None, "merge": [5]}

few = settings(max_examples=60, deadline=None)


@st.composite
def schedules(draw: st.DrawFn, most: int = TOKENS) -> dr.Schedule:
    depth = draw(DEPTHS)
    row = st.lists(st.integers(2, most), min_size=depth, max_size=depth)
    return dr.Schedule(draw(st.one_of(st.none(), row)), draw(row))


def released() -> list[tuple[str, str]]:
    return [
        (path.stem, target)
        for path in sorted(PUBLISHED.glob("*.json"))
        for target in json.loads(path.read_text())["schedules"]
    ]


@few
@given(schedule=schedules(), note=st.text(max_size=5))
def test_what_is_saved_is_loaded(tmp_path_factory, schedule, note):
    path = tmp_path_factory.getbasetemp() / "round_trip" / "s.json"
    noted = dr.Schedule(schedule.prune, schedule.merge, {"target": note})
    noted.save(path)
    loaded = dr.Schedule.load(path)
    assert loaded == schedule
    assert loaded.provenance == {"target": note}
    assert type(loaded.merge) is tuple


@few
@given(schedule=schedules())
def test_canonical_runs_the_same_and_is_its_own_canonical(schedule):
    canonical = schedule.canonical(TOKENS)
    assert canonical.steps(TOKENS) == schedule.steps(TOKENS)
    assert canonical.canonical(TOKENS) == canonical
    assert canonical.canonical() == canonical
    steps = canonical.steps(TOKENS)
    assert canonical.merge == tuple(last for _, _, last in steps)
    if schedule.prune is not None:
        assert canonical.prune == tuple(middle for _, middle, _ in steps)


def test_steps_by_eye():
    """17 tokens; block 0 prunes, block 1 asks for more than is left, block 2 merges."""
    schedule = dr.Schedule(prune=(12, 16, 9), merge=(17, 17, 4))
    assert schedule.steps(17) == ((17, 12, 12), (12, 12, 12), (12, 9, 4))
    assert schedule.canonical(17) == dr.Schedule((12, 12, 9), (12, 12, 4))
    merging = dr.Schedule(None, (9, 11, 4))
    assert merging.steps(17) == ((17, 17, 9), (9, 9, 9), (9, 9, 4))


def test_equality_and_hash_ignore_provenance():
    one, other = (dr.Schedule([5, 4], (5, 3), {"from": name}) for name in "ab")
    assert one == other
    assert hash(one) == hash(other)
    assert one != dr.Schedule(None, (5, 3))
    assert one != dr.Schedule((5, 4), (5, 4))
    assert "from" not in repr(one)


def test_kept_counts_become_integers():
    kept = Kept([16.9999, 9.0001], [17.0, 8.0])
    assert dr.Schedule.from_kept(kept) == dr.Schedule((17, 9), (17, 8))
    assert dr.Schedule.from_kept(Kept(None, [17.0, 8.0])).prune is None


@few
@given(schedule=schedules())
def test_scaled_to_the_same_model_is_the_same_execution(schedule):
    assert schedule.scaled(TOKENS, TOKENS) == schedule.canonical(TOKENS)


@few
@given(schedule=schedules(), new=st.integers(2, 60), depth=DEPTHS)
def test_scaled_fits_the_new_model(schedule, new, depth):
    scaled = schedule.scaled(TOKENS, new, depth=depth)
    scaled.check(Geometry(new, 1, (True,) * depth))
    for counts in (scaled.merge, scaled.prune or (new,)):
        assert list(counts) == sorted(counts, reverse=True)
    everything = dr.Schedule.dense(Geometry(TOKENS, 1, (True,) * schedule.depth))
    assert set(everything.scaled(TOKENS, new, depth=depth).merge) == {new}


def test_scaled_by_eye():
    """16 patches to 64: every share of patches stays; 3 blocks to 5: in between."""
    schedule = dr.Schedule((17, 13, 9), (15, 9, 5))
    bigger = schedule.scaled(17, 65)
    assert bigger == dr.Schedule((65, 49, 33), (57, 33, 17))
    deeper = dr.Schedule(None, (17, 9, 5)).scaled(17, 17, depth=5)
    assert deeper.merge == (17, 13, 9, 7, 5)
    no_class_token = dr.Schedule(None, (16, 8)).scaled(16, 32, prefix_tokens=0)
    assert no_class_token.merge == (32, 16)


@pytest.mark.parametrize(
    ("prune", "merge", "sentence"),
    [
        ((5, 4), (5,), "as many prune as merge counts, got 2 and 1; give one of each"),
        (None, (), "schedule.merge is empty; give one count per block"),
        ((), (5,), "schedule.prune is empty; give one count per block"),
        (None, (5, 0), "merge must hold positive integers, got 0; give the number"),
        (None, (5, -3), "merge must hold positive integers, got -3"),
        ((True,), (5,), "prune must hold positive integers, got True"),
        (None, (5.0,), "merge must hold positive integers, got 5.0"),
        (None, ("5",), "merge must hold positive integers, got '5'"),
        (None, (None,), "merge must hold positive integers, got None"),
        (None, "55", "merge must be a list of integers, got '55'; give one count"),
        (None, 5, "merge must be a list of integers, got 5"),
        (None, None, "merge must be a list of integers, got None"),
        ({5: 4}, (5,), "prune must be a list of integers, got {5: 4}"),
    ],
)
def test_counts_that_are_none(prune, merge, sentence):
    with pytest.raises(dr.UserError, match=sentence):
        dr.Schedule(prune, merge)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "s.json is not JSON .*; expected a schedule"),
        ("", "s.json is not JSON"),
        ("[5]", "is not a schedule: expected a JSON object with format 'diffrate_jax"),
        (json.dumps(GOOD | {"format": "x"}), "is not a schedule"),
        (
            json.dumps(GOOD | {"version": 3}),
            "version 3, this package reads versions up to 2; ",
        ),
        (json.dumps({**GOOD, "version": None}), "version None, this package reads"),
        (json.dumps({k: GOOD[k] for k in GOOD if k != "merge"}), "has no 'merge' coun"),
        (json.dumps(GOOD | {"merge": [5, 2.5]}), "positive integers, got 2.5"),
        (json.dumps(GOOD | {"merge": [True]}), "positive integers, got True"),
        (json.dumps(GOOD | {"prune": [5, 4]}), "counts, got 2 and 1"),
        (json.dumps(GOOD | {"provenance": [1]}), "'provenance' must be a JSON object"),
        *[
            (json.dumps(GOOD | {"rule": rule}), "'rule' must be the name of a rule, g")
            for rule in (None, 2, ["tome"])
        ],
    ],
)
def test_files_that_hold_no_schedule(tmp_path: Path, text: str, sentence: str):
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(dr.UserError, match=sentence):
        dr.Schedule.load(path)


def test_files_that_cannot_be_read(tmp_path: Path):
    for path, reason in ((tmp_path / "none.json", "No such file"), (tmp_path, "Is a")):
        with pytest.raises(dr.UserError, match=f"cannot read the schedule .*{reason}"):
            dr.Schedule.load(path)
    binary = tmp_path / "b.json"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(dr.UserError, match="b.json is not JSON"):
        dr.Schedule.load(binary)


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch):
    path = tmp_path / "deep" / "s.json"
    old = dr.Schedule(None, (5, 4))
    old.save(path)

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(dr.UserError, match="cannot write .*s.json: No space left"):
        dr.Schedule(None, (5, 3)).save(path)
    assert dr.Schedule.load(path) == old


def test_a_save_leaves_nothing_else_behind(tmp_path: Path):
    for merge in ((5, 4), (5, 3)):
        dr.Schedule(None, merge).save(tmp_path / "s.json")
    assert [path.name for path in tmp_path.iterdir()] == ["s.json"]
    with pytest.raises(dr.UserError, match="cannot write .*s.json/t.json"):
        dr.Schedule(None, (5,)).save(tmp_path / "s.json" / "t.json")


def test_all_released_schedules_are_there():
    assert len(released()) == 31


@pytest.mark.parametrize(("model", "target"), released())
def test_a_released_schedule_costs_what_was_computed_for_it(model: str, target: str):
    record = json.loads((PUBLISHED / f"{model}.json").read_text())
    schedule = dr.published_schedule(model, target)
    assert schedule.provenance == {"published": target}
    if model.startswith("caformer"):
        assert schedule.prune is None
        return
    vit = dr.create_model(model)
    schedule.check(vit.geometry)
    row = record["schedules"][target]
    assert round(dr.cost_macs(vit, schedule) / 1e9, 4) == row["gmacs"]
    assert round(dr.cost_macs(vit, None) / 1e9, 4) == record["dense_gmacs"]


def test_unknown_released_schedules():
    assert dr.published_schedule("deit_small_patch16_224", 2.9).depth == 12
    with pytest.raises(dr.UserError, match="did you mean 'deit_small_patch16_224'?"):
        dr.published_schedule("deit_small", 2.9)
    with pytest.raises(dr.UserError, match="for model 'zzz'; known: caformer_s36, "):
        dr.published_schedule("zzz", 2.9)
    with pytest.raises(dr.UserError, match=r"3\.0 GMACs .* released: 2\.3, 2\.5, "):
        dr.published_schedule("deit_small_patch16_224", 3.0)


def modules() -> list[str]:
    """Returns the modules that can be imported without TensorFlow."""
    found = pkgutil.walk_packages(dr.__path__, "diffrate_jax.")
    return [m.name for m in found if not m.name.startswith("diffrate_jax.data.")]


def test_examples_in_docstrings():
    with_examples = set()
    for name in modules():
        if "__main__" not in name:
            failed, tried = doctest.testmod(importlib.import_module(name))
            assert not failed, name
            if tried:
                with_examples.add(name.removeprefix("diffrate_jax."))
    assert {"errors", "rates", "schedule", "tome", "sources.names"} <= with_examples
