"""What refining came to is kept, target by target, while a search goes on."""

import dataclasses
import json
from pathlib import Path

import pytest
from etils import epath
from test_search import PROJECTED, assert_same, small, stream

import diffrate_jax as dr
from diffrate_jax.errors import UserError
from diffrate_jax.learning import learn_schedules, result
from diffrate_jax.learning.refined import FILE, Refined, RefinedFile

LEARNED = dr.Schedule(None, (60, 40, 20), rule="redundancy")
FOUND = Refined(
    dr.Schedule(None, (58, 42, 20), rule="redundancy"),
    0.1 + 0.2,
    ({"block": 0, "more": -1 / 3, "fewer": None},),
    ({"line": "constant", "loss": -1e-9, "standard_error": 1e-10},),
)


def never() -> Refined:
    raise AssertionError("refined twice")


def test_it_is_kept_to_the_last_bit(tmp_path: Path):
    folder = epath.Path(tmp_path)
    assert RefinedFile(folder).get("60%", LEARNED, lambda: FOUND) is FOUND
    assert RefinedFile(folder).get("60%", LEARNED, never) == FOUND
    pruned = dataclasses.replace(LEARNED, prune=(61, 50, 30), rule="diffrate")
    other = dataclasses.replace(FOUND, schedule=pruned, loss=0.5)
    assert RefinedFile(folder).get("50%", pruned, lambda: other) is other
    assert RefinedFile(folder).get("50%", pruned, never) == other
    assert RefinedFile(folder).get("60%", LEARNED, never) == FOUND


def test_of_other_counts_nothing_is_taken(tmp_path: Path):
    """As where somebody took the checkpoints away, and the search learned anew.

    Nor is it where another version made it.
    """
    file = RefinedFile(epath.Path(tmp_path))
    file.get("60%", LEARNED, lambda: FOUND)
    others = dataclasses.replace(LEARNED, merge=(60, 41, 20))
    new = dataclasses.replace(FOUND, loss=0.25)
    assert file.get("60%", others, lambda: new) is new
    assert file.get("60%", others, never) == new
    record = json.loads((tmp_path / FILE).read_text())
    record["60%"]["made_of"]["version"] = "0.0.1"
    (tmp_path / FILE).write_text(json.dumps(record))
    assert file.get("60%", others, lambda: FOUND) is FOUND


def test_without_a_folder_nothing_is_kept():
    file = RefinedFile(None)
    assert file.get("60%", LEARNED, lambda: FOUND) is FOUND
    with pytest.raises(AssertionError, match="refined twice"):
        file.get("60%", LEARNED, never)


COUNTS = {"rule": "redundancy", "prune": None, "merge": [60, 40, 20]}
GOOD = FOUND.record() | {"made_of": {"start": COUNTS, "version": dr.__version__}}


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '{"60%": 3}',
        '{"60%": {}}',
        "",
        "{",
        json.dumps({"60%": {"made_of": GOOD["made_of"]}}),
        json.dumps({"60%": GOOD | {"loss": "x"}}),
        json.dumps({"60%": GOOD | {"merge": [0]}}),
        json.dumps({"60%": GOOD | {"merge": [60, 40]}}),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: str):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(UserError, match=r"refined\.json is damaged; remove it, and"):
        RefinedFile(epath.Path(tmp_path)).get("60%", LEARNED, never)


def test_a_good_file_is_read(tmp_path: Path):
    (tmp_path / FILE).write_text(json.dumps({"60%": GOOD}))
    assert RefinedFile(epath.Path(tmp_path)).get("60%", LEARNED, never) == FOUND


def test_a_search_goes_on_with_the_target_it_had_come_to(tmp_path: Path, monkeypatch):
    model, params = small()
    recipe = dataclasses.replace(PROJECTED, steps=3)
    targets, options = ["85%", "75%"], {"recipe": recipe, "checkpoint_every": 2}
    wanted = learn_schedules(model, params, stream, targets, **options)
    improve, budgets = result.improve, []

    def stopped(schedule, measure, limit, loss) -> Refined:
        budgets.append(limit)
        if len(budgets) == 2:
            raise KeyboardInterrupt
        return improve(schedule, measure, limit, loss)

    monkeypatch.setattr(result, "improve", stopped)
    with pytest.raises(KeyboardInterrupt):
        learn_schedules(model, params, stream, targets, workdir=tmp_path, **options)
    assert list(json.loads((tmp_path / FILE).read_text())) == ["85%, 1 of 1"]
    found = learn_schedules(model, params, stream, targets, workdir=tmp_path, **options)
    assert len(budgets) == 3
    assert budgets[0] > budgets[1] == budgets[2]
    for one, other in zip(found, wanted, strict=True):
        assert_same(one, other)
