"""Kept counts in multiples."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diffrate_jax as dr
from diffrate_jax.chosen import short
from diffrate_jax.compressions import parse_compression
from diffrate_jax.cost import macs_of
from diffrate_jax.rounding import rounded, rounded_down
from diffrate_jax.rules import RULES

DEIT = "deit_small_patch16_224"


@settings(max_examples=60, deadline=None)
@given(
    rule=st.sampled_from(sorted(RULES)),
    counts=st.lists(st.integers(5, 65), min_size=12, max_size=12),
    multiple=st.sampled_from([1, 2, 4, 8]),
    pool=st.sampled_from(["cls", "avg"]),
)
def test_counts_are_multiples_and_cost_no_more(
    rule: str, counts: list[int], multiple: int, pool: str
):
    fields = {"image_size": 32, "patch_size": 4, "width": 16, "depth": 6}
    model = dr.create_model("vit", **fields, num_heads=2, num_classes=3, pool=pool)
    prune = counts[:6] if RULES[rule].prunes and pool == "cls" else None
    wanted = dr.Schedule(prune, counts[6:], rule=rule).feasible(model.geometry)
    measure = macs_of(model)
    least = measure(rounded_down(wanted, model.geometry, multiple))
    limit = max(1.1 * measure(wanted), least)
    found = rounded(wanted, measure, multiple, limit)
    assert least <= measure(found)
    found.check(model.geometry)
    assert measure(found) <= limit
    rows = zip(found.steps(model.geometry), wanted.steps(model.geometry), strict=True)
    for (coming, middle, last), (entering, pruned, kept) in rows:
        assert last % multiple == 0 or last == coming
        assert middle == coming or pruned < entering
        assert last == coming or kept < entering


def test_a_schedule_in_ones_is_itself():
    model = dr.create_model(DEIT)
    wanted = dr.published_schedule(DEIT, "2.9").feasible(model.geometry)
    assert rounded(wanted, macs_of(model), 1) == wanted


def test_published_schedules_in_eights_fill_the_budget():
    model = dr.create_model(DEIT)
    whole = parse_compression("published:2.9", model, DEIT)
    eights = parse_compression("published:2.9@8", model, DEIT)
    assert eights.reference
    assert all(k % 8 == 0 or k == 197 for k in eights.schedule.merge)
    cost, most = (dr.cost_macs(model, c.schedule) for c in (eights, whole))
    assert 0.99 * most <= cost <= most


def test_rounded_schedules_run_like_any(deit):
    tome = parse_compression("tome:3@4", deit.model, "vit")
    logits = dr.forward(deit.model, deit.params, deit.images, tome).logits
    counts = tome.schedule.merge
    assert np.isfinite(logits).all()
    assert all(k % 4 == 0 for k in counts[2:])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("none@8", "none keeps every token; leave @N out"),
        ("tome:8@0", "a multiple from 1 to the 197 tokens of the model, got 0"),
        ("tome:8@198", "a multiple from 1 to the 197 tokens"),
        ("tome:16@128", "in multiples of 128 this schedule costs at least"),
        ("published:9@8", "no schedule for 9 GMACs was published"),
        ("tome:8@x", "whole number of tokens removed per block, got '8@x'"),
    ],
)
def test_what_cannot_be_rounded(text: str, sentence: str):
    with pytest.raises(dr.UserError, match=sentence):
        parse_compression(text, dr.create_model(DEIT), DEIT)


def test_a_path_may_hold_an_at_sign(tmp_path: Path):
    model = dr.create_model(DEIT)
    schedule = dr.published_schedule(DEIT, "2.9")
    for name in ("a@8.json", "a@8"):
        schedule.save(tmp_path / name)
        text = str(tmp_path / name)
        assert parse_compression(text, model, DEIT) == dr.Gathered(schedule)


def test_a_rounded_schedule_is_no_published_one():
    model = dr.create_model(DEIT)
    found = parse_compression("published:2.9@8", model, DEIT).schedule
    assert found.provenance == {"rounded_to": 8}


def test_a_rounded_schedule_is_told_without_its_place(tmp_path: Path):
    dr.published_schedule(DEIT, "2.9").save(tmp_path / "s.json")
    assert short(f"{tmp_path}/s.json@8") == "s.json@8"
    assert short("published:2.9@8") == "published:2.9@8"
