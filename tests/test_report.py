"""The report: every kind of result in one page, as charts, tables and commands."""

import copy
import functools
import html.parser
import itertools
import json
import operator
import re
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_up import (
    COUNT,
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

from diffrate_jax import report
from diffrate_jax.models import architecture, create_model
from diffrate_jax.reporting import sections, write_report
from diffrate_jax.reporting.boards import boards_of
from diffrate_jax.reporting.charts import Axis, Chart, Look
from diffrate_jax.reporting.curves import thinned
from diffrate_jax.reporting.looks import KNOWN, looks_of
from diffrate_jax.reporting.reader import find_results
from diffrate_jax.reporting.results import geometry_of
from diffrate_jax.reporting.scatter import apart
from diffrate_jax.reporting.sections import Cell, Figure, Table
from diffrate_jax.reporting.tokens import bar_figure
from diffrate_jax.reporting.tokens import table as token_table
from diffrate_jax.schedule import Schedule

FINITE = st.floats(1e-3, 1e6)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A folder with one result of each kind."""
    folder = tmp_path_factory.mktemp("work") / "run"
    write_everything(folder)
    return folder


@pytest.fixture(scope="module")
def written(workdir, tmp_path_factory):
    """The folder of its report: page, Markdown and charts."""
    folder = tmp_path_factory.mktemp("written")
    write_report(workdir, folder / "r.html", folder / "svg", markdown=folder / "r.md")
    return folder


def run_report(*flags) -> int:
    return report.main(["report", *map(str, flags)])


class Page(html.parser.HTMLParser):
    """Tags, text and addresses of a page; refuses tags that are not closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.text, self.addresses, self._open = [], "", [], []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "href")]
        if tag not in ("meta", "input"):
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += data


def tables_of(folder) -> dict[str, Table]:
    parts = [p for s in sections(find_results(folder)) for p in s.parts]
    return {part.title: part for part in parts if isinstance(part, Table)}


def rows_of(table: Table) -> list[list[str]]:
    return [
        [c.text if isinstance(c, Cell) else c for c in r.cells] for r in table.lines
    ]


def test_page_needs_no_other_file_and_shows_everything(written):
    text = (written / "r.html").read_text()
    page = Page(text)
    assert page.tags.count("h2") == 7
    assert page.addresses == [f"#s{number}" for number in range(1, 8)]
    assert "http" not in text
    assert "url(" not in text
    for words in (
        *(
            *NAMES[:4],
            "random",
            "95% interval",
            "Bonett and Price",
            "RESOURCE_EXHAUSTED",
        ),
        *(
            "Accuracy against cost",
            "Accuracy against time, rough",
            "Speed by batch size",
        ),
        *("Tokens left after each block", "Cost and loss by step", "Loss by step"),
        *("Milliseconds of a block by its tokens", "mean error", "of peak"),
        *("Accuracy", "Lead over baselines", "Cost", "Speed", "Efficiency"),
        *("python -m diffrate_jax.search", "device: cpu", "other JSON files: 2"),
    ):
        assert words in page.text, words


def test_what_files_say_is_text_and_never_markup(written):
    for name in ("r.html", "r.md"):
        text = (written / name).read_text()
        assert "tome:&lt;b&gt;8&lt;/b&gt;" in text
        assert "<b>8<" not in text
        assert "<i>cpu" not in text
    page = (written / "r.html").read_text()
    assert page.count("<script>") == 1
    assert "--note=&#x27;&lt;script&gt;" in page


def test_charts_are_files_of_their_own_too(written):
    files = sorted((written / "svg").glob("*.svg"))
    assert {re.sub(r"_\d+$", "", file.stem) for file in files} == {
        *("accuracy_against_cost", "accuracy_against_time", "speed", "speed_by_batch"),
        *("kept_tokens", "search_curves", "search_counts", "training_curves"),
        *("latency", "accuracy_against_rough_time"),
    }
    for file in files:
        root = xml.etree.ElementTree.parse(file).getroot()
        width, height = float(root.get("width")), float(root.get("height"))
        assert root.get("viewBox") == f"0 0 {width:.0f} {height:.0f}"
        assert "http" not in re.sub(r'xmlns="[^"]*"', "", file.read_text())


def test_the_same_results_give_the_same_bytes(workdir, written, tmp_path):
    write_report(workdir, tmp_path / "r.html", markdown=tmp_path / "r.md")
    for name in ("r.html", "r.md"):
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes()


def test_a_table_says_what_the_record_says(workdir):
    record = json.loads((workdir / "evaluation.json").read_text())
    tables = tables_of(workdir)
    rows = {row[0].split(" (")[0]: row for row in rows_of(tables["All figures"])}
    assert rows.keys() >= {"dense", "learned"}
    page = {}
    for section in sections(find_results(workdir)):
        if section.title.startswith("Accuracy"):
            page = {
                r[0]: r
                for p in section.parts
                if isinstance(p, Table)
                for r in rows_of(p)
            }
    for row in record["rows"][:3]:
        cells = page[row["name"]]
        assert f"{row['top1']:.2f}" in cells
        assert f"{row['fraction']:.1%}" in cells
    assert page["dense"][-2:] == ["–", "–"]
    low, high = map(float, page["learned"][4].split(" to "))
    assert low < 100 * record["rows"][1]["correct"].count("1") / COUNT < high


def test_accuracy_against_time_prefers_benchmarks_and_says_what_is_rough(workdir):
    figures = {
        part.title: part
        for section in sections(find_results(workdir))
        for part in section.parts
        if isinstance(part, Figure)
    }
    timed = [title for title in figures if title.startswith("Accuracy against time")]
    assert timed == [
        "Accuracy against time",
        "Accuracy against time, rough",
    ]
    charts = figures[timed[0]].charts
    assert [chart.title for chart in charts] == [
        "cpu, float32, batches of 16",
        "cpu, float32, batches of 64",
    ]
    chart = charts[0].inside()
    # 150 images a second.
    assert "milliseconds per image: 6.67" in chart
    assert chart.count('class="pt"') == 2


def test_times_are_drawn_from_zero(tmp_path):
    """Two methods of nearly one time stand side by side, not at opposite ends."""
    timed = benchmark()
    timed["rows"][1] |= {"images_per_second": 101.0}
    write(tmp_path / "evaluation.json", evaluation())
    write(tmp_path / "benchmark.json", timed)
    parts = [p for s in sections(find_results(tmp_path)) for p in s.parts]
    (figure,) = [p for p in parts if p.title == "Accuracy against time"]
    for chart in figure.charts:
        left, fast, slow = (chart.across(1000 / rate) for rate in (1e9, 101, 100))
        assert 0 < slow - fast < 0.02 * (slow - left)


def test_times_of_another_schedule_of_the_same_cost_are_not_taken(tmp_path):
    timed = benchmark()
    schedules = {"rule": "tome", "prune": None, "merge": [9, 6, 2]}
    timed["rows"][1] |= schedules
    timed["rows"][0] |= schedules | {"rule": "diffrate", "merge": [9, 5, 3]}
    write(tmp_path / "evaluation.json", evaluation())
    write(tmp_path / "benchmark.json", timed)
    assert "no benchmark of this schedule" in page_of(tmp_path).text
    timed["rows"][1] |= {"rule": "diffrate", "merge": [9, 5, 3]}
    write(tmp_path / "benchmark.json", timed)
    assert "no benchmark of this schedule" not in page_of(tmp_path).text


def test_the_time_of_one_seed_is_not_that_of_all(tmp_path):
    timed = benchmark()
    for row, merge in zip(timed["rows"], ([9, 5, 4], [9, 5, 3]), strict=True):
        row |= {"rule": "diffrate", "prune": None, "merge": merge}
    seeds = [evaluation(seed, ("dense", "learned")) for seed in (0, 1)]
    for number, record in enumerate(seeds):
        record["rows"][0] |= {"merge": [9, 5, 4]}
        write(tmp_path / f"seed{number}" / "evaluation.json", record)
    write(tmp_path / "benchmark.json", timed)
    assert "1.50×" in page_of(tmp_path).text
    seeds[1]["rows"][1] |= {"merge": [9, 6, 2]}
    write(tmp_path / "seed1" / "evaluation.json", seeds[1])
    text = page_of(tmp_path).text
    assert "no benchmark of this schedule" in text
    assert "1.50×" not in text.split("Speed: tiny")[0]


@pytest.mark.parametrize("names", [("tome:8",), ("tome:8", "uniform:60%"), ("dense",)])
def test_rows_without_anything_learned_are_a_report(tmp_path, names):
    write(tmp_path / "evaluation.json", evaluation(names=names))
    assert "Accuracy against cost" in page_of(tmp_path).text
    rows = rows_of(tables_of(tmp_path)["All figures"])
    assert {row[0].removesuffix(" (best baseline)") for row in rows} == {*names}
    assert len([row for row in rows if "best" in row[0]]) == len(names) - 1


def test_only_the_dense_model_is_beside_every_target(tmp_path):
    for target in ("60%", "40%"):
        record = evaluation(0, ("dense", "learned"), target)
        record["command"] = f"evaluate --schedule={target}"
        write(tmp_path / target / "evaluation.json", record)
    write(tmp_path / "evaluation.json", evaluation(0, ("tome:8",)))
    rows = rows_of(tables_of(tmp_path)["Accuracy by target"])
    assert [row[0] for row in rows] == ["dense", "learned"]
    assert rows[0][1] == rows[0][2] != "–"


def test_a_model_tuned_and_not_compressed_is_dense(tmp_path):
    """It is beside every target, at whose cost it was not."""
    for target in ("60%", "40%"):
        record = evaluation(0, ("dense", "learned"), target)
        write(tmp_path / target / "evaluation.json", record)
    tuned = evaluation(0, ("dense", "dense, after", "learned"), "40%")
    tuned["rows"][1] |= {"fraction": 1.0, "macs": tuned["dense_macs"]}
    write(tmp_path / "tuned" / "evaluation.json", tuned)
    rows = rows_of(tables_of(tmp_path)["Accuracy by target"])
    (after,) = (row for row in rows if row[0] == "dense, after")
    assert after[1] == after[2] != "–"


def test_tables_of_other_weights_have_another_name(tmp_path):
    for name in ("given", "tuned"):
        record = evaluation(0, ("dense", "learned"))
        record["command"] += f" --config.weights={name}"
        write(tmp_path / name / "evaluation.json", record)
    titles = [s.title.partition(":")[0] for s in sections(find_results(tmp_path))]
    assert titles == ["Accuracy with weights given", "Accuracy with weights tuned"]


def test_training_images_come_last(tmp_path):
    for split, count in (("train", 9), ("test", 4), ("validation", 6)):
        record = evaluation(0, ("dense",)) | {"split": split}
        for row in record["rows"]:
            row |= {"count": count, "correct": "1" * count}
        write(tmp_path / split / "evaluation.json", record)
    boards = boards_of(find_results(tmp_path).evaluations)
    assert [b.runs[0].split for b in boards] == ["validation", "test", "train"]


def page_of(folder: Path) -> Page:
    out = folder.parent / f"{folder.name}.html"
    write_report(folder, out)
    return Page(out.read_text())


def test_results_of_one_kind_are_enough(tmp_path):
    SCHEDULE.save(tmp_path / "only" / "schedule.json")
    page = page_of(tmp_path)
    assert "Kept tokens: 3 blocks of 9 tokens" in page.text
    assert "target 60%, 60.0% of the dense cost" in page.text
    assert page.addresses == []


def test_a_damaged_file_is_on_the_page_and_the_rest_too(tmp_path):
    write_everything(tmp_path)
    write(tmp_path / "bad" / "evaluation.json", evaluation() | {"rows": []})
    page = page_of(tmp_path)
    assert "Left out, because damaged: 1" in page.text
    assert "bad/evaluation.json: 'rows' must be a list" in page.text
    assert page.tags.count("h2") == 7


RECORDS = {
    "evaluation.json": evaluation(target="60%"),
    "benchmark.json": benchmark(),
    "table.json": latency(),
    "misfit.json": MISFIT,
    "schedule.json": {
        **{"format": "diffrate_jax.schedule", "version": 2, "rule": "diffrate"},
        **{"prune": [9, 7, 4], "merge": [9, 5, 3], "provenance": {"target": "60%"}},
    },
    "comparison.json": {"comparisons": [{"command": "x", "environment": {}}]},
    "metrics.jsonl": STEP,
}
WRONG = [None, True, 0, -1, 2, 0.5, "", "x", [], [1], {}, {"a": [1]}]
WRONG += [10**30, 10**400, 1e308, -1e300, 5e-324, float("inf"), float("nan")]


def places_in(value, path: tuple = ()) -> list[tuple]:
    """Returns the path of everything in a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    inside = [((*path, key), inner) for key, inner in pairs]
    deeper = [
        p for at, x in inside if isinstance(x, dict | list) for p in places_in(x, at)
    ]
    return [at for at, _ in inside] + deeper


PLACES = [(file, path) for file, r in RECORDS.items() for path in places_in(r)]


@settings(deadline=None)
@example(("schedule.json", ("rule",)), None)
@example(("schedule.json", ("rule",)), ["tome"])
@example(("table.json", ("terms", "times", 0, "blocks")), [])
@example(("table.json", ("about", "checks", 0, "ms")), float("inf"))
@example(("table.json", ("terms", "fixed")), 10**400)
@example(("benchmark.json", ("rows", 1, "images_per_second")), 5e-324)
@example(("evaluation.json", ("rows", 1, "top1")), 10**30)
@given(st.sampled_from(PLACES), st.sampled_from(WRONG))
def test_no_value_of_a_file_is_worse_than_a_sentence(tmp_path_factory, place, wrong):
    folder, (file, path) = tmp_path_factory.mktemp("wrong"), place
    SCHEDULE.save(folder / "good.json")
    record = copy.deepcopy(RECORDS[file])
    *above, last = path
    functools.reduce(operator.getitem, above, record)[last] = wrong
    write(folder / file, record)
    assert "Kept tokens" in page_of(folder).text


def test_fifty_runs_are_one_section_of_each_kind(tmp_path):
    for number in range(50):
        folder = tmp_path / f"run{number:02}"
        record = evaluation(number, target=f"{30 + 10 * (number % 4)}%")
        record["command"] += f" --config.learning_rate={number}"
        write(folder / "evaluation.json", record)
        merge = (9, 5, 1 + number % 4)
        SCHEDULE.save(folder / "s.json")
        Schedule(None, merge, SCHEDULE.provenance).save(folder / "schedule.json")
        steps = [json.dumps(STEP | {"step": step}) for step in range(500)]
        write_lines(folder, steps)
    page = page_of(tmp_path)
    assert page.tags.count("h2") == 3
    assert page.tags.count("svg") < 100
    assert (tmp_path.parent / f"{tmp_path.name}.html").stat().st_size < 3e6
    tables = tables_of(tmp_path)
    assert len(tables["Accuracy by target"].lines) == 5
    assert tables["All figures"].is_folded
    assert len(tables["Tokens left after each block"].lines) == 100


def test_counts_of_a_later_stage_start_anew():
    model = create_model("caformer_s36", image_size=64)
    provenance = {"model": json.loads(json.dumps(architecture(model)))}
    # 18 blocks of 4 x 4 tokens, then 3 of 2 x 2.
    merge = (16,) * 9 + (10,) * 9 + (4,) * 3
    schedule = Schedule(None, merge, provenance)
    (row,) = rows_of(token_table({"s": schedule}, geometry_of(schedule)))
    assert row[-4:] == ["10", "4", "4", "4"]


def test_pruning_and_merging_are_told_apart():
    (row,) = rows_of(token_table({"s": SCHEDULE}, geometry_of(SCHEDULE)))
    assert row[:5] == ["s", "diffrate", "60%", "60.0%", "63%"]
    assert row[5:] == ["9", "7/5", "4/3"]


@pytest.mark.parametrize(
    ("prune", "named"),
    [
        ((9, 7, 4), ["kept", "merged away", "pruned away"]),
        ((9, 5, 3), ["kept", "pruned away"]),
        (None, ["kept", "merged away"]),
    ],
)
def test_the_legend_names_what_happens(prune, named):
    schedule = Schedule(prune, (9, 5, 3), SCHEDULE.provenance)
    figure = bar_figure({"s": schedule}, geometry_of(schedule), 1)
    assert [look.name for look in figure.looks] == named


@given(st.lists(FINITE, min_size=1), st.booleans(), st.booleans())
def test_an_axis_holds_its_values_and_ticks_in_order(values, is_log, zero):
    axis = Axis.around("x", values, is_log=is_log, zero=zero)
    assert all(0 <= axis.place(value) <= 1 for value in values)
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 13
    assert ticks == sorted(set(ticks))
    assert len({axis.text(tick) for tick in ticks}) == len(ticks)
    assert all(-1e-6 <= axis.place(tick) <= 1 + 1e-6 for tick in ticks)


@given(st.lists(st.floats(0, 300), max_size=18), st.floats(1, 14))
def test_names_keep_apart_and_above_the_end(rows, gap):

    moved = apart(np.sort(np.array(rows, float)), gap, 0, 300)
    assert np.all(np.diff(moved) >= gap - 1e-6)
    assert np.all((moved >= -1e-6) & (moved <= 300 + 1e-6))


@given(st.integers(2, 400), st.integers(2, 50))
def test_a_thinned_curve_keeps_its_ends_and_order(length, most):
    found = list(thinned(range(length), most))
    assert len(found) == min(length, most)
    assert found[0] == 0
    assert found[-1] == length - 1
    assert found == sorted(set(found))


@given(st.text(), st.text())
def test_no_name_breaks_a_chart(name, tip):
    # What XML cannot hold, JSON of a program never has.
    name, tip = (re.sub(r"[^\t\n\r -퟿-�]", "", text) for text in (name, tip))
    chart = Chart(name, Axis("x", 0, 1), Axis("y", 0, 1))
    chart.point(0.5, 0.5, Look(name, "blue"), tip, run=name)
    root = xml.etree.ElementTree.fromstring(chart.svg(name))
    assert root.find(".//g").get("data-run") is not None


def test_program_writes_page_charts_and_tables(workdir, tmp_path, capsys):
    out, folder, tables = tmp_path / "a" / "r.html", tmp_path / "b", tmp_path / "r.md"
    flags = f"--results={workdir}", f"--out={out}", f"--pictures={folder}"
    assert run_report(*flags, f"--markdown={tables}") == 0
    said = capsys.readouterr()
    assert said.out.startswith("Found evaluations: 1, benchmarks: 2, ")
    assert re.search(rf"\nwrote {out}, \d+ KiB\n$", said.out)
    assert said.err == ""
    assert len(list(folder.glob("*.svg"))) == len(list(folder.iterdir())) > 8
    assert "| **learned** |" in tables.read_text()


def test_out_that_ends_in_md_is_markdown(workdir, written, tmp_path):
    assert run_report(f"--results={workdir}", f"--out={tmp_path}/t.md") == 0
    assert (tmp_path / "t.md").read_bytes() == (written / "r.md").read_bytes()


def test_markdown_tables_are_whole(written):
    lines = (written / "r.md").read_text().splitlines()
    for above, line in itertools.pairwise(lines):
        if line.startswith("|") and above.startswith("|"):
            bars = [len(re.findall(r"(?<!\\)\|", text)) for text in (above, line)]
            assert bars[0] == bars[1]


def test_program_names_damaged_files_and_goes_on(workdir, tmp_path, capsys):
    write_everything(tmp_path / "r")
    (tmp_path / "r" / "bad.json").write_text("{")
    assert run_report(f"--results={tmp_path}/r", f"--out={tmp_path}/r.html") == 0
    assert capsys.readouterr().err.startswith("left out: expected JSON in bad.json")


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


def test_no_two_methods_look_alike():
    names = [*KNOWN, "after", "EViT of ours", "tome:8", "published:2.9"]
    names += [f"seed {number}" for number in range(1, 13)]
    looks = looks_of(names)
    assert list(looks) == names
    assert len({(look.shape, look.colour) for look in looks.values()}) == len(names)


def test_rules_are_not_one_mean(tmp_path):
    """Of many runs of several rules, what was learned stays apart by its rule."""
    for number, rule in enumerate(["redundancy", "tome"] * 4):
        record = evaluation(number, ("dense", "learned"), f"{40 + number // 2}%")
        record["command"] += f" --config.steps={number}"
        for row in record["rows"]:
            row["rule"] = rule
        write(tmp_path / f"run{number}" / "evaluation.json", record)
    lines = tables_of(tmp_path)["Accuracy by target"].lines
    labels = [line.cells[0] for line in lines]
    assert labels == ["dense", "learned · redundancy", "learned · tome"]


@pytest.mark.parametrize(("runs", "is_wide"), [(4, False), (12, True)])
def test_a_crowd_of_points_has_more_room(tmp_path, runs: int, is_wide: bool):
    names = ("dense", "learned", "ToMe constant")
    for number in range(runs):
        record = evaluation(number, names, f"{40 + number}%")
        write(tmp_path / "runs" / str(number) / "evaluation.json", record)
    parts = [p for s in sections(find_results(tmp_path)) for p in s.parts]
    charts = [c for p in parts if p.title == "Accuracy against cost" for c in p.charts]
    assert [chart.width > 480 for chart in charts] == [is_wide] * len(charts)
    assert charts


def test_whiskers_are_drawn_whole(tmp_path):
    record = evaluation(0, ("dense", "learned", "ToMe constant"), "40%")
    write(tmp_path / "evaluation.json", record)
    parts = [p for s in sections(find_results(tmp_path)) for p in s.parts]
    charts = [c for p in parts if p.title == "Accuracy against cost" for c in p.charts]
    drawn = r'class="whisker".*? d="M[\d.]+,([\d.]+)h6m-3,0V([\d.]+)m'
    for chart in charts:
        bottom = float(re.search(r'class="grid" d="M.*?V([\d.]+)"', chart.svg(""))[1])
        # Of what was learned and of the dense model.
        ends = re.findall(drawn, chart.inside())
        assert len(ends) == 2
        for low, high in ends:
            assert chart.top < float(high) < float(low) < bottom
