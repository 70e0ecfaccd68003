"""Results: read strictly from a folder, where a damaged file costs a sentence."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import (
    MISFIT,
    NAMES,
    SCHEDULE,
    STEP,
    benchmark,
    evaluation,
    latency,
    write,
    write_everything,
    write_lines,
)

from diffrate_jax.errors import UserError
from diffrate_jax.models import architecture, create_model
from diffrate_jax.reporting.intervals import paired_difference, wilson
from diffrate_jax.reporting.reader import find_results
from diffrate_jax.reporting.results import geometry_of
from diffrate_jax.schedule import Schedule


def test_everything_is_found_by_its_relative_path(tmp_path):
    write_everything(tmp_path)
    results = find_results(tmp_path)
    assert list(results.schedules) == ["search/schedule.json"]
    assert list(results.trainings) == ["train/metrics.jsonl"]
    steps = results.searches["search/metrics.jsonl"]
    assert [step.step for step in steps] == [0, 10, 20]
    assert steps[0].merge == (9, 5, 3)
    assert [each.path for each in results.evaluations] == ["evaluation.json"]
    assert [row.name for row in results.evaluations[0].rows] == list(NAMES)
    assert [each.batch_size for each in results.benchmarks] == [16, 64]
    assert results.benchmarks[0].rows[1].seconds == (0.15, 0.16, 0.2)
    assert results.misfits[0].reason == MISFIT["reason"]
    assert list(results.latencies) == ["table.json"]
    assert [each.path for each in results.origins] == ["search/comparison.json"]
    assert (results.problems, results.ignored) == ((), 2)


def test_the_last_word_of_a_resumed_run_counts(tmp_path):
    losses = {"a": (1, 3.0), "b": (2, 2.0), "c": (2, 1.0)}
    lines = [json.dumps({"step": step, "loss": loss}) for step, loss in losses.values()]
    write_lines(tmp_path / "train", lines)
    curve = find_results(tmp_path).trainings["train/metrics.jsonl"]
    assert [(step.step, step.loss) for step in curve] == [(1, 3.0), (2, 1.0)]


def change(record: dict, **changes) -> dict:
    """Returns the record with keys of its second row changed; None removes a key."""
    row = record["rows"][1] | changes
    row = {key: value for key, value in row.items() if value is not None}
    return record | {"rows": [record["rows"][0], row]}


def only_problem(folder) -> str:
    """Returns what is said of a damaged file in a folder that is otherwise in order."""
    SCHEDULE.save(folder / "good" / "schedule.json")
    results = find_results(folder)
    assert list(results.schedules) == ["good/schedule.json"]
    (problem,) = results.problems
    return problem


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        (change(evaluation(), top1="97"), "row 2: 'top1' must be a number from 0"),
        (
            change(evaluation(), top5=101),
            "'top5' must be a number from 0 to 100, found",
        ),
        (change(evaluation(), macs=10**400), "cannot read it .* beyond what anybody"),
        (change(evaluation(), loss=float("nan")), "'loss' must be .* found nan"),
        (
            change(evaluation(), macs=None),
            "row 2: expected 'macs', a whole .*, found none",
        ),
        (change(evaluation(), macs=True), "'macs' must be a whole number above 0"),
        (change(evaluation(), correct="11"), "'correct' must be 40 digits 0 or 1"),
        (change(evaluation(), correct="2" * 40), "'correct' must be 40 digits 0 or 1"),
        (change(evaluation(), labels="0f"), "'labels' must be the first row's"),
        (change(evaluation(), target=60), "'target' must be text or null, found 60"),
        (change(evaluation(), merge=[1.5]), "'merge' must be a list of whole numbers"),
        (change(benchmark(), seconds=[]), "'seconds' must be a list of numbers above"),
        (change(benchmark(), efficiency=0), "'efficiency' must be a number above 0"),
        (change(benchmark(), memory_bytes="1"), "'memory_bytes' must be a whole"),
        (evaluation() | {"environment": "cpu"}, "'environment' must be a JSON object"),
        (evaluation() | {"rows": []}, "'rows' must be a list with at least one row"),
        (benchmark() | {"rows": [3]}, "row 1: expected a JSON object, found 3"),
        (MISFIT | {"batch_size": 0}, "'batch_size' must be a whole number above 0"),
        ({"comparisons": []}, "'comparisons' must be a list with at least one"),
        (latency() | {"rule": 3}, "'rule' must be a str"),
        ({"format": "diffrate_jax.schedule", "version": 2, "merge": [0]}, "merge"),
    ],
)
def test_a_damaged_file_is_named_and_costs_nothing_else(tmp_path, record, sentence):
    write(tmp_path / "deep" / "evaluation.json", record)
    problem = only_problem(tmp_path)
    assert "deep/evaluation.json" in problem
    with pytest.raises(UserError, match=sentence):
        raise UserError(problem)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (['{"st', "{}"], "one JSON object in each line of search/metrics.jsonl"),
        ([json.dumps(STEP | {"macs": "many"})], "line 1: 'macs' must be a finite"),
        ([json.dumps(STEP), '{"step": 20}'], "line 2: expected 'loss', .*, found none"),
        (["5"], "line 1: expected a JSON object, found 5"),
    ],
)
def test_a_damaged_log_is_named_with_its_line(tmp_path, lines, sentence):
    write_lines(tmp_path / "search", lines)
    with pytest.raises(UserError, match=sentence):
        raise UserError(only_problem(tmp_path))


def test_nothing_to_report_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"expected results in .*, found none; first"):
        find_results(tmp_path)
    with pytest.raises(UserError, match="found no folder .*missing; give"):
        find_results(tmp_path / "missing")
    (tmp_path / "schedule.json").write_text("{")
    with pytest.raises(UserError, match=r"damaged: expected JSON in schedule\.json"):
        find_results(tmp_path)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    ),
    st.sampled_from(["kind", "format", "rows", "comparisons", "merge", "terms"]),
)
def test_no_json_is_worse_than_a_sentence(tmp_path_factory, value, key):
    folder = tmp_path_factory.mktemp("any")
    SCHEDULE.save(folder / "good" / "schedule.json")
    for number, record in enumerate((evaluation(), benchmark(), latency(), MISFIT)):
        write(folder / f"{number}.json", record | {key: value})
    write(folder / "alone.json", {key: value})
    assert list(find_results(folder).schedules) == ["good/schedule.json"]


def texts(size: int = 300) -> tuple[str, str]:
    rng = np.random.default_rng(1)
    right = rng.random((2, size)) < [[0.9], [0.7]]
    return tuple("".join("01"[int(x)] for x in row) for row in right)


def test_a_difference_s_interval_is_open_where_no_image_differs():
    a, b = texts()
    mean, low, high = paired_difference(a, a)
    assert mean == 0
    assert low < 0 < high
    # By hand: 1.96 √2 / (300 + 2).
    assert high == -low == pytest.approx(0.918, abs=1e-3)
    assert high < paired_difference(a, b)[2]


def test_the_order_of_a_difference_only_changes_its_sign():
    a, b = texts()
    mean, low, high = paired_difference(a, b)
    assert low < mean < high
    assert mean == pytest.approx(100 * (a.count("1") - b.count("1")) / 300)
    assert paired_difference(b, a) == (-mean, -high, -low)


def test_a_difference_s_interval_ends_where_differences_do():
    assert paired_difference("1", "0")[2] == 100
    assert paired_difference("0000", "1111")[1] == -100


@pytest.mark.parametrize("runs", [1, 3])
def test_a_difference_s_interval_is_a_bootstrap_s_where_many_images_differ(runs):
    rng = np.random.default_rng(2)
    a, b = (rng.random((2, runs, 900)) < [[[0.9]], [[0.7]]]).mean(1)
    chosen = rng.integers(0, 900, (4000, 900))
    expected = np.percentile(100 * (a - b)[chosen].mean(1), [2.5, 97.5])
    assert paired_difference(a, b)[1:] == pytest.approx(expected, abs=0.3)


@pytest.mark.parametrize(
    ("images", "only_a", "only_b"),
    [
        (4000, 1.5 / 4000, 1.5 / 4000),
        (4000, 3 / 4000, 0),
        (4000, 2 / 4000, 1 / 4000),
        (600, 0.005, 0.002),
        (400, 0.1, 0.05),
    ],
)
def test_a_difference_s_interval_covers_the_truth_as_often_as_it_says(
    images, only_a, only_b
):
    """Where few images differ as well; a bootstrap covers 81 % there."""
    rng, truth, covered = np.random.default_rng(3), 100 * (only_a - only_b), 0
    draws = rng.multinomial(images, [only_a, only_b, 1 - only_a - only_b], size=4000)
    for counts in draws:
        difference = np.repeat([1.0, -1.0, 0.0], counts)
        _, low, high = paired_difference(difference, np.zeros(images))
        covered += low <= truth <= high
    assert covered / 4000 >= 0.93


def test_a_difference_needs_the_same_images():
    with pytest.raises(UserError, match="the same images twice, got 2 and 3"):
        paired_difference("11", "111")


@pytest.mark.parametrize(
    ("flags", "weights"),
    [
        ("", None),
        ("--config.weights=", None),
        ("--config.weights=a/vit.safetensors", "vit.safetensors"),
        ("--config.weights=a --config.weights runs/tuned", "tuned"),
        ("--config.weights=runs/tuned/weights.safetensors", "tuned"),
        ("--config.weights=weights.safetensors", "weights.safetensors"),
        ("--config.weights=runs/seed3/weights.safetensors", "seed*"),
        ("'--config.weights=my runs/the best'", "the best"),
        ("--note=it's --config.weights=runs/tuned", "tuned"),
    ],
)
def test_weights_are_known_by_the_last_name_of_the_command(tmp_path, flags, weights):
    write(tmp_path / "e.json", evaluation() | {"command": f"evaluate {flags}"})
    assert find_results(tmp_path).evaluations[0].weights == weights


@pytest.mark.parametrize(
    ("right", "count", "interval"),
    # By hand from Wilson's formula.
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611))],
)
def test_wilson_s_interval_is_as_published(right, count, interval):
    # Examples of Newcombe (1998), table I, method 3.
    assert wilson(right / count, count) == pytest.approx(interval, abs=1e-4)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_wilson_s_interval_covers_the_truth_as_often_as_it_says(share):
    found = np.random.default_rng(4).binomial(300, share, 4000)
    inside = [
        low <= share <= high for low, high in (wilson(n / 300, 300) for n in found)
    ]
    assert 0.93 <= np.mean(inside) <= 0.975


def test_token_counts_come_from_the_model_where_it_is_known():
    fields = {"width": 24, "depth": 3, "num_heads": 2, "num_classes": 3}
    model = create_model("vit", image_size=32, patch_size=8, **fields)
    known = Schedule(SCHEDULE.prune, SCHEDULE.merge, {"model": architecture(model)})
    assert geometry_of(SCHEDULE).num_tokens == 9
    assert geometry_of(known) == model.geometry
