"""The report: results read strictly, compared in pairs, drawn and written."""

import html.parser
import io
import json

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from diffrate_jax import pictures, report
from diffrate_jax.comparison import (
    evaluation_table,
    format_macs,
    is_learned,
    methods,
    schedule_table,
)
from diffrate_jax.errors import UserError
from diffrate_jax.models import architecture, create_model
from diffrate_jax.panels import _apart, draw_schedule
from diffrate_jax.reporting import write_report
from diffrate_jax.results import bootstrap_difference, find_results, geometry_of
from diffrate_jax.schedule import Schedule

NAMES = ("dense", "learned", "ToMe constant", "tome:<b>8</b>", "random 1", "random 2")
SCHEDULE = Schedule(
    (9, 7, 4), (9, 5, 3), {"target": "60%", "macs": 6, "dense_macs": 10}
)
STEP = {"step": 10, "loss": 2.0, "objective": 1.5, "macs": 9e6, "target_macs": 6e6}


def evaluation() -> dict:
    rng = np.random.default_rng(0)
    rows = []
    for number, name in enumerate(NAMES):
        correct = "".join(rng.choice(["0", "1"], 40, p=[0.1, 0.9]))
        macs = 10_000_000 if name == "dense" else 6_000_000 - number
        rows.append(
            {
                "name": name,
                "rule": "diffrate",
                "prune": None,
                "merge": [9, 5, 3],
                "macs": macs,
                "fraction": macs / 10_000_000,
                "count": 40,
                "top1": 2.5 * correct.count("1"),
                "top5": 99.0,
                "loss": 0.5,
                "images_per_second": 1000.0 + number,
                "correct": correct,
            }
        )
    return {
        "kind": "evaluation",
        "command": "python -m diffrate_jax.evaluate --note='<script>'",
        "environment": {"device": "<i>cpu</i>", "jax": "0.10.2"},
        "model": "tiny",
        "dataset": "digits",
        "split": "test",
        "dense_macs": 10_000_000,
        "rows": rows,
    }


def benchmark() -> dict:
    row = {
        "name": "dense",
        "macs": 10_000_000,
        "images_per_second": 100.0,
        "seconds": [0.15, 0.16, 0.2],
        "compile_seconds": 1.2,
        "speedup": 1.0,
        "efficiency": 1.0,
    }
    fast = {"name": "learned", "macs": 5_999_999, "speedup": 1.5, "efficiency": 0.9}
    return {
        "kind": "benchmark",
        "command": "python -m diffrate_jax.benchmark",
        "environment": {"device": "cpu"},
        "model": "tiny",
        "batch_size": 16,
        "dtype": "float32",
        "rows": [row, row | fast],
    }


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A work directory after search, training, evaluation and benchmark."""
    folder = tmp_path_factory.mktemp("work") / "run"
    SCHEDULE.save(folder / "schedule.json")
    steps = [STEP | {"step": step, "macs": 9e6 - step} for step in (0, 10, 20)]
    write_lines(
        folder / "search", [json.dumps(s) for s in steps] + ['{"step": 30, "lo']
    )
    write_lines(
        folder / "train", ['{"step": 1, "loss": 2.3}', '{"step": 2, "loss": 1}']
    )
    write(folder / "evaluation.json", evaluation())
    write(folder / "benchmark.json", benchmark())
    write(folder / "unknown.json", {"kind": "something else"})
    write(folder / "list.json", [1, 2])
    return folder


@pytest.fixture(scope="module")
def written(workdir, tmp_path_factory):
    """The folder of its report, as page and as Markdown."""
    folder = tmp_path_factory.mktemp("written")
    write_report(workdir, folder / "r.html", markdown=folder / "r.md")
    return folder


def write(path, record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def write_lines(folder, lines) -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("\n".join(lines))


def run_report(*flags) -> int:
    return report.main(["report", *map(str, flags)])


class Page(html.parser.HTMLParser):
    """Tags, text and addresses of a page; refuses tags that are not closed in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.tags, self.text, self.addresses, self._open = [], "", [], []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "href")]
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += data


def test_everything_is_found_by_its_relative_path(workdir):
    results = find_results(workdir)
    assert list(results.schedules) == ["schedule.json"]
    assert list(results.trainings) == ["train/metrics.jsonl"]
    assert [step.step for step in results.searches["search/metrics.jsonl"]] == [
        0,
        10,
        20,
    ]
    assert [each.path for each in results.evaluations] == ["evaluation.json"]
    assert [row.name for row in results.evaluations[0].rows] == list(NAMES)
    assert results.benchmarks[0].rows[1].seconds == (0.15, 0.16, 0.2)


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


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        (change(evaluation(), top1="97"), "row 2: 'top1' must be a finite number"),
        (change(evaluation(), loss=float("nan")), "'loss' must be .* found nan"),
        (
            change(evaluation(), macs=None),
            "row 2: expected 'macs', a whole .*, found none",
        ),
        (change(evaluation(), macs=True), "'macs' must be a whole number above 0"),
        (change(evaluation(), correct="11"), "'correct' must be 40 digits 0 or 1"),
        (change(evaluation(), correct="2" * 40), "'correct' must be 40 digits 0 or 1"),
        (change(evaluation(), target=60), "'target' must be text or null, found 60"),
        (change(benchmark(), seconds=[]), "'seconds' must be a list of numbers above"),
        (change(benchmark(), efficiency=0), "'efficiency' must be a number above 0"),
        (evaluation() | {"environment": "cpu"}, "'environment' must be a JSON object"),
        (evaluation() | {"rows": []}, "'rows' must be a list with at least one row"),
        (benchmark() | {"rows": [3]}, "row 1: expected a JSON object, found 3"),
    ],
)
def test_a_damaged_file_is_refused_with_file_and_key(tmp_path, record, sentence):
    write(tmp_path / "deep" / "evaluation.json", record)
    with pytest.raises(
        UserError, match=rf"^deep/evaluation\.json.*{sentence}.*; write"
    ):
        find_results(tmp_path)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (['{"st', "{}"], "one JSON object in each line of search/metrics.jsonl"),
        ([json.dumps(STEP | {"macs": "many"})], "line 1: 'macs' must be a finite"),
        ([json.dumps(STEP), '{"step": 20}'], "line 2: expected 'loss', .*, found none"),
        (["5"], "line 1: expected a JSON object, found 5"),
    ],
)
def test_a_damaged_log_is_refused_with_its_line(tmp_path, lines, sentence):
    write_lines(tmp_path / "search", lines)
    with pytest.raises(UserError, match=sentence):
        find_results(tmp_path)


def test_nothing_to_report_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"expected results in .*, found none; first"):
        find_results(tmp_path)
    with pytest.raises(UserError, match="found no folder .*missing; give"):
        find_results(tmp_path / "missing")
    (tmp_path / "schedule.json").write_text("{")
    with pytest.raises(UserError, match=r"expected JSON in .*schedule\.json"):
        find_results(tmp_path)


def texts(size: int = 300) -> tuple[str, str]:
    rng = np.random.default_rng(1)
    right = rng.random((2, size)) < [[0.9], [0.7]]
    return tuple("".join("01"[int(x)] for x in row) for row in right)


def test_bootstrap_of_the_same_is_zero_and_order_only_changes_the_sign():
    a, b = texts()
    assert bootstrap_difference(a, a) == (0.0, 0.0, 0.0)
    mean, low, high = bootstrap_difference(a, b)
    assert low < mean < high
    assert mean == pytest.approx(100 * (a.count("1") - b.count("1")) / 300)
    assert bootstrap_difference(b, a) == pytest.approx((-mean, -high, -low))
    assert bootstrap_difference(a, b) == (mean, low, high)


def test_bootstrap_agrees_with_drawing_the_images_one_by_one():
    a, b = (np.array([int(x) for x in text]) for text in texts())
    chosen = np.random.default_rng(2).integers(0, 300, (4000, 300))
    expected = np.percentile(100 * (a - b)[chosen].mean(1), [2.5, 97.5])
    assert bootstrap_difference(a, b)[1:] == pytest.approx(expected, abs=0.7)


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says():
    rng, covered = np.random.default_rng(3), 0
    for _ in range(200):
        a, b = rng.random(400) < 0.85, rng.random(400) < 0.8
        _, low, high = bootstrap_difference(a, b, samples=400)
        covered += low <= 5 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_bootstrap_needs_the_same_images():
    with pytest.raises(UserError, match="the same images twice, got 2 and 3"):
        bootstrap_difference("11", "111")


def test_random_rows_become_one_and_the_best_baseline_is_marked(workdir):
    found = find_results(workdir).evaluations[0]
    random = methods(found)[-1]
    pair = [row.top1 for row in found.rows[-2:]]
    assert len(random.rows) == 2
    assert random.mean("top1") == pytest.approx(np.mean(pair))
    assert random.spread("top1") == pytest.approx(np.std(pair, ddof=1))
    table = evaluation_table(found)
    assert table.rows[-1][0].startswith("random (mean ± sd of 2)")
    best = max(methods(found)[2:], key=lambda method: method.mean("top1"))
    marked = [row[0] for row in table.rows if row[0].endswith("best baseline")]
    assert len(marked) == len(table.best) == 1
    assert marked[0].startswith(best.name)
    assert [row[-1] == "–" for row in table.rows] == [n == 1 for n in range(5)]


@pytest.mark.parametrize(
    ("name", "learned"),
    [("learned", True), ("published:2.9", True), ("a/schedule.json", True)]
    + [
        (name, False)
        for name in (
            *("dense", "random 3", "tome:8", "uniform:50%", "published search"),
            *("ToMe constant", "ToMe increasing", "redundancy constant"),
        )
    ],
)
def test_methods_are_told_apart_by_name(name, learned):
    assert is_learned(name) == learned


def test_a_later_stage_starts_anew_in_table_and_picture():
    model = create_model("caformer_s36", image_size=64)
    provenance = {"model": json.loads(json.dumps(architecture(model)))}
    # 18 blocks of 4 x 4 tokens, then 3 of 2 x 2.
    merge = (16,) * 9 + (10,) * 9 + (4,) * 3
    schedule = Schedule(None, merge, provenance)
    rows = schedule_table("s", schedule).rows
    assert rows[17] == ("18", "10", "10", "10", "62%")
    assert rows[18] == ("19", "4", "4", "4", "100%")
    axes = Figure().subplots()
    draw_schedule(axes, schedule)
    dense = next(line for line in axes.lines if line.get_label() == "all tokens")
    assert [*dense.get_ydata()] == [16] * 18 + [4] * 4


def test_schedule_table_counts_from_the_model_where_it_is_known():
    depth = SCHEDULE.depth
    fields = {"width": 24, "depth": depth, "num_heads": 2, "num_classes": 3}
    model = create_model("vit", image_size=32, patch_size=8, **fields)
    known = Schedule(SCHEDULE.prune, SCHEDULE.merge, {"model": architecture(model)})
    assert geometry_of(SCHEDULE).num_tokens == 9
    assert geometry_of(known) == model.geometry
    assert schedule_table("s", known).rows[0] == ("1", "17", "9", "9", "53%")
    assert (
        schedule_table("s", SCHEDULE).title == "s, target 60%, 60.0% of the dense cost"
    )
    assert format_macs(123_400_000) == "123 MMACs"


def drawings(folder) -> dict:
    results = find_results(folder)
    return {
        "accuracy": pictures.accuracy_against_cost(results.evaluations),
        "speed": pictures.speed(results.benchmarks),
        "kept": pictures.kept_tokens(results.schedules),
        "search": pictures.search_curves(results.searches),
        "training": pictures.training_curves(results.trainings),
    }


def test_pictures_show_something_and_are_the_same_every_time(workdir):
    first, second = drawings(workdir), drawings(workdir)
    for name, figure in first.items():
        png = pictures.to_png(figure)
        pixels = matplotlib.image.imread(io.BytesIO(png))[..., :3]
        assert (pixels < 0.98).any(-1).mean() > 0.01, name
        assert png == pictures.to_png(second[name]), name
        assert b"Software" not in png


def test_no_text_of_a_picture_is_cut_off(workdir):
    for name, figure in drawings(workdir).items():
        figure.draw_without_rendering()
        box, page = figure.get_tightbbox(), figure.get_size_inches()
        assert min(box.x0, box.y0) >= -0.01, name
        assert (box.x1, box.y1) <= tuple(page + 0.01), name


@pytest.mark.parametrize("count", [1, 8])
def test_names_beside_points_keep_apart(count):
    heights = _apart(np.full(count, 0.99), gap=0.075)
    assert np.all(np.diff(heights) >= 0.075 - 1e-9)
    assert np.all((heights > 0) & (heights < 1))


def test_page_needs_no_other_file_and_shows_every_row(written):
    text = (written / "r.html").read_text()
    page = Page()
    page.feed(text)
    assert page.tags.count("img") == 5
    assert all(each.startswith("data:image/png;base64,") for each in page.addresses)
    assert "http" not in text
    for words in (
        *NAMES[:4],
        "random (mean ± sd of 2)",
        "learned − this",
        "2,000 draws",
    ):
        assert words in page.text
    for headline in ("Accuracy", "Lead over baselines", "Cost", "Speed", "Efficiency"):
        assert headline in page.text


def test_what_files_say_is_text_and_never_markup(written):
    for name in ("r.html", "r.md"):
        text = (written / name).read_text()
        assert "tome:&lt;b&gt;8&lt;/b&gt;" in text
        assert "<b>8<" not in text
        assert "<i>cpu" not in text
    assert "<script>" not in (written / "r.html").read_text()


def test_results_of_one_kind_are_enough(tmp_path):
    SCHEDULE.save(tmp_path / "only" / "schedule.json")
    write_report(tmp_path, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "Kept tokens" in text
    assert "How to reproduce" not in text


def test_program_writes_page_pictures_and_tables(workdir, tmp_path, capsys):
    out, folder, tables = tmp_path / "a" / "r.html", tmp_path / "b", tmp_path / "r.md"
    flags = f"--results={workdir}", f"--out={out}", f"--pictures={folder}"
    assert run_report(*flags, f"--markdown={tables}") == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    assert len(list(folder.glob("*.png"))) == len(list(folder.iterdir())) == 5
    assert "| **learned** |" in tables.read_text()


def test_program_says_in_one_sentence_what_is_wrong(tmp_path, capsys):
    assert run_report(f"--results={tmp_path}", f"--out={tmp_path}/r.html") == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: expected results in ")
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_program_refuses_a_place_it_cannot_write(workdir, tmp_path, capsys):
    assert run_report(f"--results={workdir}", f"--out={workdir}/list.json/r.html") == 2
    assert "error: cannot write" in capsys.readouterr().err


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        run_report("--help")
    assert stop.value.code == 0
    assert "diffrate_jax.report --results=runs" in capsys.readouterr().out
