"""Boards: what belongs together is taken together, and nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import evaluation, write

from diffrate_jax.reporting.boards import Board, boards_of, format_macs
from diffrate_jax.reporting.methods import is_learned
from diffrate_jax.reporting.reader import find_results

TARGETED = ("dense", "learned", "ToMe constant", "prune only")


def board(folder, records: dict[str, dict]) -> Board:
    """Returns the only board of some evaluations."""
    for path, record in records.items():
        write(folder / path / "evaluation.json", record)
    (found,) = boards_of(find_results(folder).evaluations)
    return found


def seeds(count: int, **changes) -> dict[str, dict]:
    """Returns the records of runs that differ in the seed alone."""
    return {f"seed{n}": evaluation(n, TARGETED, "60%") | changes for n in range(count)}


def methods(found: Board, name: str) -> list:
    return [method for method in found.methods if method.name == name]


def test_random_rows_become_one_and_the_best_baseline_is_known(tmp_path):
    record = evaluation(target="60%")
    found = board(tmp_path, {"a": record})
    (random,) = methods(found, "random")
    pair = [row["top1"] for row in record["rows"][-2:]]
    assert random.mean("top1") == pytest.approx(np.mean(pair))
    assert random.spread("top1") == pytest.approx(np.std(pair, ddof=1))
    (learned,) = methods(found, "learned")
    rivals = [method for method in found.methods if method.kind == "baseline"]
    assert {method.name for method in rivals} == {
        *("ToMe constant", "tome:<b>8</b>", "random")
    }
    best = max(rivals, key=lambda method: method.mean("top1"))
    assert found.rival_of(learned) is best
    assert found.dense_of(learned) is methods(found, "dense")[0]


def test_seeds_are_one_method_with_a_spread_and_the_dense_model_counts_once(tmp_path):
    records = seeds(3)
    found = board(tmp_path, records)
    assert found.families == ("",)
    (learned,), (dense,) = methods(found, "learned"), methods(found, "dense")
    top1 = [record["rows"][1]["top1"] for record in records.values()]
    assert [row.top1 for row in learned.rows] == top1
    assert len(dense.rows) == 1
    every = [[int(x) for x in r["rows"][1]["correct"]] for r in records.values()]
    np.testing.assert_allclose(learned.correct, np.mean(every, axis=0))
    # Three runs on the same images are no more images.
    one = learned.mean("top1") / 100
    low, high = learned.interval()
    assert high - low == pytest.approx(
        100 * 2 * 1.96 * (one * (1 - one) / 40) ** 0.5, rel=0.25
    )


def test_rows_named_after_seeds_belong_to_what_was_learned(tmp_path):
    names = ("dense", "learned", "seed 1", "seed 2")
    found = board(tmp_path, {"a": evaluation(names=names)})
    assert [(m.name, len(m.rows)) for m in found.methods] == [
        ("dense", 1),
        ("learned", 3),
    ]


def test_targets_of_one_command_are_one_family(tmp_path):
    records = {}
    for target in ("60", "40"):
        record = evaluation(0, TARGETED, f"{target}%")
        record["command"] = f"evaluate --schedule=runs/schedule_{target}%.json"
        for row in record["rows"][1:]:
            row["fraction"] = int(target) / 100
        records[f"study/test_{target}"] = record
    found = board(tmp_path, records)
    assert found.targets == ("60%", "40%")
    assert found.families == ("study",)
    assert len(methods(found, "learned")) == 2
    assert len(methods(found, "dense")) == 1


@pytest.mark.parametrize(
    "changes",
    [{"command": "evaluate --config.rule=tome"}, {"dtype": "bfloat16"}],
)
def test_runs_that_differ_in_more_than_the_seed_stay_apart(tmp_path, changes):
    one, other = seeds(2).values()
    found = board(tmp_path, {"a": one, "b": other | changes})
    assert found.families == ("a", "b")
    assert [len(method.rows) for method in methods(found, "learned")] == [1, 1]


def run_by(commit: str, seed: int, outcome: int) -> dict:
    """Returns what a version of the code made of the command of a seed."""
    changes = {"environment": {"commit": commit}, "command": f"evaluate --seed={seed}"}
    return evaluation(outcome, TARGETED, "60%") | changes


def test_a_command_that_several_versions_ran_is_no_further_seed(tmp_path):
    runs = {
        f"{c}/{n}": run_by(c, n, 2 * i + n) for i, c in enumerate("ab") for n in (0, 1)
    }
    found = board(tmp_path, runs)
    assert found.families == ("a", "b")
    assert [len(method.rows) for method in methods(found, "learned")] == [2, 2]
    for method in methods(found, "learned"):
        assert found.rival_of(method).family == method.family


def test_seeds_that_each_ran_once_are_pooled_whatever_version_ran_them(tmp_path):
    found = board(tmp_path, {"a": run_by("a", 0, 0), "b": run_by("b", 1, 1)})
    assert [len(method.rows) for method in methods(found, "learned")] == [2]


def test_what_two_versions_make_alike_is_no_second_run(tmp_path):
    found = board(tmp_path, {"a": run_by("a", 0, 0), "b": run_by("b", 0, 0)})
    assert [len(method.rows) for method in methods(found, "learned")] == [1]


def with_weights(record: dict, weights: str, program: str = "evaluate") -> dict:
    command = f"python -m diffrate_jax.{program} --config.weights={weights}"
    return record | {"command": command}


def test_other_weights_have_a_board_of_their_own(tmp_path):
    given = with_weights(evaluation(0, TARGETED, "60%"), "vit.safetensors")
    tuned = with_weights(evaluation(1, ("learned",), "60%"), "runs/tuned")
    for name, record in {"given": given, "tuned": tuned}.items():
        write(tmp_path / name / "evaluation.json", record)
    one, other = boards_of(find_results(tmp_path).evaluations)
    assert (one.weights, other.weights) == ("vit.safetensors", "tuned")
    assert other.rival_of(other.methods[0]) is None
    assert board(tmp_path / "given", {}).weights is None


def test_weights_of_several_seeds_are_on_one_board(tmp_path):
    runs = {
        str(n): with_weights(evaluation(n, TARGETED, "60%"), f"seed{n}/train")
        for n in range(3)
    }
    assert [len(m.rows) for m in methods(board(tmp_path, runs), "learned")] == [3]


@pytest.mark.parametrize("program", ["finetune", "evaluate"])
def test_what_was_tuned_has_no_rival_that_was_not(tmp_path, program):
    names = ("dense", "before", "after", "dense, after")
    given = with_weights(evaluation(0, TARGETED, "60%"), "vit.safetensors")
    tuned = with_weights(evaluation(1, names, "60%"), "vit.safetensors", program)
    found = board(tmp_path, {"given": given, "tuned": tuned | {"dtype": "other"}})
    (before,), (after,) = methods(found, "before"), methods(found, "after")
    assert found.rival_of(before).kind == "baseline"
    assert (found.rival_of(after) is None) == (program == "finetune")


def test_different_runs_of_one_folder_are_numbered(tmp_path):
    one, other = seeds(2).values()
    write(tmp_path / "first.json", one)
    write(tmp_path / "second.json", other | {"command": "another"})
    (found,) = boards_of(find_results(tmp_path).evaluations)
    assert found.families == ("", "run (2)")


def test_a_copy_of_a_run_is_no_second_run(tmp_path):
    record = evaluation(0, TARGETED, "60%")
    found = board(tmp_path, {"a": record, "copy": record})
    assert [len(method.rows) for method in found.methods] == [1] * len(TARGETED)


@pytest.mark.parametrize("field", ["model", "dataset", "split", "dense_macs"])
def test_other_models_and_images_have_boards_of_their_own(tmp_path, field):
    other = 20_000_000 if field == "dense_macs" else "other"
    write(tmp_path / "a" / "evaluation.json", evaluation())
    write(tmp_path / "b" / "evaluation.json", evaluation() | {field: other})
    assert len(boards_of(find_results(tmp_path).evaluations)) == 2


@pytest.mark.parametrize(
    ("labels", "boards"),
    [("aaa", 1), ("aab", 2), ("aa-", 2), ("ab-", 3), ("---", 1)],
)
def test_images_in_another_order_are_not_compared(tmp_path, labels, boards):
    """Nor are those of unknown order with those of a known one; titles tell them."""
    for number, label in enumerate(labels):
        record = evaluation(number)
        for row in record["rows"]:
            row |= {} if label == "-" else {"labels": label}
        write(tmp_path / str(number) / "evaluation.json", record)
    found = boards_of(find_results(tmp_path).evaluations)
    assert len(found) == boards
    assert len({each.title for each in found}) == boards
    for each in found:
        assert len({run.rows[0].labels for run in each.runs}) == 1
        assert each.title.endswith(")") == (boards > 1)


@given(st.permutations(range(4)))
def test_order_of_runs_changes_no_figure(tmp_path_factory, order):
    records = list(seeds(4).values())
    folder = tmp_path_factory.mktemp("order")
    found = board(folder, {f"run{n}": records[i] for n, i in enumerate(order)})
    expected = {"learned": 4, "dense": 1}
    for method in found.methods:
        assert len(method.rows) == expected.get(method.name, 4)
        if method.name == "learned":
            top1 = [record["rows"][1]["top1"] for record in records]
            assert method.mean("top1") == pytest.approx(np.mean(top1))


@pytest.mark.parametrize(
    ("name", "learned"),
    [("learned", True), ("published:2.9", True), ("a/schedule.json", True)]
    + [
        (name, False)
        for name in (
            *("dense", "random 3", "tome:8", "uniform:50%", "published search"),
            *("ToMe constant", "ToMe increasing", "redundancy constant"),
            *("timm", "timm_compiled"),
        )
    ],
)
def test_methods_are_told_apart_by_name(name, learned):
    assert is_learned(name) == learned


def test_small_models_cost_millions():
    assert format_macs(123_400_000) == "123 MMACs"


def placed(record: dict, **macs: int) -> dict:
    """Returns a record whose rows of a name cost so many thousandths of dense."""
    for row in record["rows"]:
        share = macs.get(row["name"].split(" ")[0].partition(":")[0])
        if share is not None:
            row |= {"macs": share * 10_000, "fraction": share / 1000}
    return record


def test_without_a_target_baselines_of_the_same_run_and_cost_are_rivals(tmp_path):
    names = ("dense", "published:2.9", "ToMe constant", "random 1", "uniform:40%")
    run = placed(evaluation(names=names), published=600, ToMe=610, uniform=400)
    other = evaluation(3, ("tome:8",)) | {"command": "another"}
    found = board(tmp_path, {"a": run, "b": other})
    (method,), (cheap,) = methods(found, "published:2.9"), methods(found, "uniform:40%")
    fair = [*methods(found, "ToMe constant"), *methods(found, "random")]
    assert found.rival_of(method) is max(fair, key=lambda m: m.mean("top1"))
    assert found.rival_of(cheap) is cheap
    assert found.rival_of(methods(found, "dense")[0]) is None


def test_seeds_that_are_right_alike_are_two_where_their_schedules_differ(tmp_path):
    one, same, other = (evaluation(0, TARGETED, "60%") for _ in range(3))
    other["rows"][1] |= {"merge": [9, 6, 2]}
    found = board(tmp_path, {"seed0": one, "seed1": other, "copy": same})
    assert len(methods(found, "learned")[0].rows) == 2


def test_a_name_that_ends_in_its_target_is_one_method_for_all_targets(tmp_path):
    names = ("dense", "learned 60%", "ToMe constant")
    other = evaluation(1, names, "60%")
    other["rows"][1] |= {"name": "learned 40%", "target": "40%", "fraction": 0.4}
    first = evaluation(0, names, "60%")
    first["rows"].append(other["rows"][1])
    found = board(tmp_path, {"a": first})
    assert [m.target for m in methods(found, "learned")] == ["60%", "40%"]


def test_a_name_that_ends_in_its_target_stays_apart_from_one_that_does_not(tmp_path):
    names = ("dense", "learned", "learned 60%")
    found = board(tmp_path, {"a": evaluation(0, names, "60%")})
    assert [len(methods(found, name)[0].rows) for name in names] == [1, 1, 1]
