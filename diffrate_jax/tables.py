"""Results as short tables for the terminal."""

import re
from collections.abc import Sequence

import numpy as np

from diffrate_jax.files import Json
from diffrate_jax.latency import MILLISECONDS, LatencyTable
from diffrate_jax.schedule import Schedule

LATENCY = MILLISECONDS.name


def evaluation_tables(record: dict[str, Json]) -> str:
    """Returns an evaluation as a table for each budget that its rows were made for."""
    groups = {}
    for row in record["rows"]:
        groups.setdefault(row["target"], []).append(row)
    if len(groups) == 1:
        return evaluation_table(record)
    return "\n\n".join(
        (f"at {target}:\n" if target else "")
        + evaluation_table(record | {"rows": rows})
        for target, rows in groups.items()
    )


def evaluation_table(record: dict[str, Json]) -> str:
    """Returns accuracy and cost of each row; random schedules as one line."""
    right = "as dense %" if record.get("labels") == "dense model" else "top-1 %"
    rows = [["", right, "loss", "GMACs", "of dense", "images/s"]]
    timed = LATENCY in record["rows"][0]
    rows[0] += ["ms by table"] * timed
    for row in (row for row in record["rows"] if not is_drawn(row)):
        rows.append(
            [
                row["name"],
                f"{row['top1']:.2f}",
                f"{row['loss']:.3f}",
                f"{row['macs'] / 1e9:.4g}",
                f"{row['fraction']:.1%}",
                shown_rate(row["images_per_second"]),
                *([f"{row[LATENCY]:.4g}"] if timed else []),
            ]
        )
    drawn = [row for row in record["rows"] if is_drawn(row)]
    if drawn:
        means = [f"{mean(drawn, LATENCY):.4g}"] if timed else []
        rows.append([*random_line(drawn), *means])
    return aligned(rows)


def is_drawn(row: dict[str, Json]) -> bool:
    """Returns whether a row is of a random schedule, by the name `baselines` gives."""
    return re.fullmatch(r"random \d+", row["name"]) is not None


def published_table(record: dict[str, Json]) -> str:
    """Returns published schedules as measured and as published; may be empty."""
    rows = [["", "top-1 %", "top-5 %", "loss", "GMACs"]]
    for row in (row for row in record["rows"] if "published" in row):
        own = row | {"gmacs": row["macs"] / 1e9}
        rows.append([f"{row['name']}, measured here", *published_cells(own)])
        if "top1" in row["published"]:
            cells = published_cells(row["published"])
            rows.append([f"{row['name']}, as published", *cells])
    return aligned(rows) if len(rows) > 1 else ""


def published_cells(figures: dict[str, Json]) -> list[str]:
    """Returns what the published evaluation prints, to as many places."""
    return [
        f"{figures['top1']:.3f}",
        f"{figures['top5']:.3f}",
        f"{figures['loss']:.3f}",
        f"{figures['gmacs']:.3f}",
    ]


def random_line(drawn: Sequence[dict[str, Json]]) -> list[str]:
    """Returns mean and spread over random schedules as one row."""
    top1 = [row["top1"] for row in drawn]
    spread = f" ± {np.std(top1, ddof=1):.2f}" if len(drawn) > 1 else ""
    return [
        f"random, {len(drawn)} draws",
        f"{mean(drawn, 'top1'):.2f}{spread}",
        f"{mean(drawn, 'loss'):.3f}",
        f"{mean(drawn, 'macs') / 1e9:.4g}",
        f"{mean(drawn, 'fraction'):.1%}",
        shown_rate(mean(drawn, "images_per_second")),
    ]


def mean(rows: Sequence[dict[str, Json]], key: str) -> float:
    """Returns the mean of a figure over rows."""
    return float(np.mean([row[key] for row in rows]))


def shown_rate(rate: float) -> str:
    """Returns images per second; too few batches to time give 0, which is none."""
    return f"{rate:.0f}" if rate else "–"


def benchmark_table(record: dict[str, Json]) -> str:
    """Returns speed of each row against the first, and efficiency."""
    head = ["", "images/s", "10-90 %", "speed-up", "operations", "efficiency"]
    rows = [[*head, "of peak", "memory", "compiled in"]]
    dense = record["rows"][0]
    for row in record["rows"]:
        memory = row["memory_bytes"]
        rows.append(
            [
                row["name"],
                f"{row['images_per_second']:.0f}",
                f"{row['low']:.0f}-{row['high']:.0f}",
                f"{row['speedup']:.2f} x",
                f"{dense['macs'] / row['macs']:.2f} x fewer",
                f"{row['efficiency']:.2f}",
                f"{row['of_peak']:.0%}",
                f"{memory / 2**20:.0f} MiB" if memory else "–",
                f"{row['compile_seconds']:.1f} s",
            ]
        )
    return aligned(rows)


def latency_table(table: LatencyTable) -> str:
    """Returns milliseconds of a block by its tokens, and how they predict schedules."""
    rows = [["tokens", "attention", "MLP", "merging 10 %", "merging 50 %"]]
    times = table.terms.times[0]
    for tokens, *curves in zip(times.tokens, times.attention, times.mlp, strict=True):
        merging = [times.merging(tokens, share * tokens) for share in (0.9, 0.5)]
        rows.append([f"{tokens:.0f}", *(f"{ms:.3g}" for ms in (*curves, *merging))])
    lines = [aligned(rows), f"milliseconds of a block; besides {table.terms.fixed:.3g}"]
    checks = table.about.get("checks")
    if checks:
        wrong = [abs(row["predicted_ms"] / row["ms"] - 1) for row in checks]
        lines.append(
            f"{len(checks)} random schedules: predicted to {np.mean(wrong):.1%} in the "
            f"mean, {max(wrong):.1%} at worst"
        )
    return "\n".join(lines)


def search_table(schedule: Schedule) -> str:
    """Returns block by block what was learned, and what one token is worth."""
    found = schedule.provenance
    gains = {gain["block"]: gain for gain in found.get("gains", ())}
    rows = [["block", "learned", "kept", "loss, one more", "one fewer"]]
    for block, kept in enumerate(schedule.merge):
        gain = gains.get(block, {})
        rows.append(
            [
                str(block),
                str(found["learned"]["merge"][block]),
                str(kept),
                *(signed(gain.get(way)) for way in ("more", "fewer")),
            ]
        )
    return aligned(rows)


def signed(change: float | None) -> str:
    """Returns a change of the loss, "-" where there is none."""
    return "-" if change is None else f"{change:+.1e}"


def summary(schedule: Schedule) -> str:
    """Returns cost, target and whether the search had settled, as one sentence."""
    found = schedule.provenance
    state = "settled" if found["settled"] else "still moving: more steps may help"
    moves = found.get("moves", ())
    steps = sum("step" in move for move in moves)
    lines = [move["line"] for move in moves if "line" in move]
    lined = f"counts on a line, {lines[0]}, were better; " if lines else ""
    timed = (
        f"{MILLISECONDS.show(found[LATENCY])} by table, " if LATENCY in found else ""
    )
    return timed + (
        f"{found['macs'] / 1e9:.4g} GMACs, {found['macs'] / found['dense_macs']:.1%} "
        f"of dense, target {found['target']}; {state}; {lined}"
        f"refined in {steps} step{'s' * (steps != 1)}"
    )


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows as columns: the first to the left, figures to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
