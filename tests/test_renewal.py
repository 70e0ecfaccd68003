"""Documents whose tables come from results, and how far seeds agree."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import evaluation, write, write_everything
from test_report import rows_of, run_report, tables_of

from diffrate_jax.reporting.renewal import renewed
from diffrate_jax.reporting.seeds import counts_apart

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "results/README.md")
MARK = "<!-- table runs: All figures | method | top-1, % -->"
END = "<!-- end of table -->"


@pytest.fixture
def document(tmp_path):
    write(tmp_path / "runs" / "evaluation.json", evaluation())
    path = tmp_path / "d.md"
    path.write_text(f"# Mine\n\n{MARK}\nold\n{END}\n\nEnd.\n")
    return path


def test_a_table_is_renewed_and_nothing_else(document, capsys):
    assert run_report(f"--renew={document}") == 0
    assert capsys.readouterr().out == f"renewed 1 tables of {document}\n"
    lines = document.read_text().splitlines()
    assert lines[:6] == [
        *("# Mine", "", MARK, "", "| method | top-1, % |", "| :-- | --: |")
    ]
    assert lines[-4:] == ["", END, "", "End."]
    top1 = evaluation()["rows"][1]["top1"]
    assert f"| **learned** | {top1:.2f} |" in lines
    before = document.read_bytes()
    assert run_report(f"--renew={document}") == 0
    assert document.read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (END, "", "d.md: the table runs: All figures | method | top-1, % does not end"),
        ("<!-- table", "<!-- tables", "expected tables to renew in"),
        ("All figures", "All figure", "0 tables called 'All figure' where one was ex"),
        ("| method", "| methods", "no column 'methods'; did you mean 'method'?"),
        ("table runs", "table run", "found no folder"),
    ],
)
def test_a_wrong_mark_is_a_sentence_and_changes_nothing(
    document, capsys, old, new, said
):
    text = document.read_text().replace(old, new)
    document.write_text(text)
    assert run_report(f"--renew={document}") == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert document.read_text() == text


def test_a_mark_without_an_end_does_not_swallow_the_next(document):
    text = document.read_text().replace(END, "") + f"\n{MARK}\n{END}\n"
    with pytest.raises(ValueError, match="does not end"):
        renewed(text, document)


def test_tables_of_one_title_are_told_apart_by_the_kind_of_their_section(tmp_path):
    write_everything(tmp_path / "runs")
    path = tmp_path / "d.md"
    mark = "<!-- table runs: {}All figures | method -->\n" + END
    path.write_text(mark.format("Accuracy / "))
    assert "| **learned** |" in renewed(path.read_text(), path)
    with pytest.raises(ValueError, match="known: Accuracy / All figures, Speed / All"):
        renewed(mark.format(""), path)


def test_a_document_is_renewed_by_itself(document, capsys):
    assert run_report(f"--renew={document}", "--out=r.html") == 2
    assert "expected --renew alone" in capsys.readouterr().err


def test_neither_results_nor_a_document_is_a_sentence(capsys):
    assert run_report("--out=r.html") == 2
    assert "expected --results and --out, or --renew" in capsys.readouterr().err


@pytest.mark.parametrize("name", DOCUMENTS)
def test_tables_of_our_documents_are_those_of_the_results(name):
    path = ROOT / name
    text = path.read_text()
    assert re.search("<!-- table ", text)
    assert renewed(text, path) == text


def test_agreement_of_seeds_is_that_of_the_records(tmp_path):
    records = [evaluation(n, ("dense", "learned"), "60%") for n in range(3)]
    for number, record in enumerate(records):
        record["rows"][1]["merge"] = [9, 5 + number, 3]
        write(tmp_path / f"seed{number}" / "evaluation.json", record)
    (line,) = rows_of(tables_of(tmp_path)["Agreement of seeds"])
    top1 = [record["rows"][1]["top1"] for record in records]
    each = " ".join(f"{value:.2f}" for value in top1)
    spread = f"{np.std(top1, ddof=1):.2f}", f"{max(top1) - min(top1):.2f}"
    # Pairs are 1, 2 and 1 apart in one of three blocks.
    assert line == ["learned", "60%", each, f"{np.mean(top1):.2f}", *spread, "0.4"]


def test_one_run_says_nothing_of_seeds(tmp_path):
    write_everything(tmp_path)
    assert "Agreement of seeds" not in tables_of(tmp_path)


@given(st.lists(st.lists(st.integers(1, 99), min_size=4, max_size=4), min_size=2))
def test_counts_apart_are_a_mean_over_pairs(counts):
    class Counts:
        def __init__(self, both):
            self.prune, self.merge = tuple(both[:2]), tuple(both[2:])

    apart = counts_apart([Counts(row) for row in counts])
    pairs = list(itertools.combinations(counts, 2))
    assert apart == pytest.approx(
        sum(abs(a - b) for one, two in pairs for a, b in zip(one, two, strict=True))
        / (4 * len(pairs))
    )
    assert (apart == 0) == (len(set(map(tuple, counts))) == 1)
