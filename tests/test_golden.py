"""Agreement with the published implementations, at the tolerances of the design."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import GOLDEN, Golden

import diffrate_jax as dr
from diffrate_jax.rates import candidate_counts

SCHEDULES = ["none", "prune_only", "merge_only", "both", "not_monotone"]
CASES, CLEAN_CASES = (
    [
        f"granularity1_{form}",
        pytest.param(f"granularity4_{form}", marks=pytest.mark.slow),
    ]
    for form in ("floor1", "nofloor")
)
TOME = ["constant4"] + [
    pytest.param(case, marks=pytest.mark.slow)
    for case in ("decreasing4", "constant4_no_proportional_attention", "list")
]


def sorted_rows(origin_BKN: np.ndarray) -> list[list[tuple]]:
    """Returns provenance as sorted rows: the order of tokens is free."""
    return [sorted(map(tuple, np.asarray(rows, int))) for rows in origin_BKN]


def test_dense_logits(golden: Golden) -> None:
    out = dr.forward(golden.model, golden.params, golden.images)
    np.testing.assert_allclose(out.logits, golden.arrays["dense/logits"], atol=2e-5)


@pytest.mark.parametrize("form", ["gathered", "masked"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_inference(golden: Golden, name: str, form: str) -> None:
    about = golden.about["schedules"][name]
    schedule = dr.Schedule(about["prune"], about["merge"])
    run = {"gathered": dr.Gathered, "masked": dr.Masked}[form](schedule)
    out = dr.forward(golden.model, golden.params, golden.images, run, trace=True)
    wanted = {
        key.rpartition("/")[2]: value
        for key, value in golden.arrays.items()
        if key.startswith(f"inference/{name}/")
    }
    np.testing.assert_allclose(out.logits, wanted["logits"], atol=2e-5)
    alive = np.asarray(out.tokens.alive) == 1
    assert (alive.sum(axis=1) == about["tokens_at_end"]).all()
    size = np.sort(np.asarray(out.tokens.size)[alive].reshape(len(alive), -1))
    np.testing.assert_allclose(size, np.sort(wanted["size"], axis=1), atol=1e-4)
    if "source" in wanted:
        origin = [
            np.asarray(o)[a] for o, a in zip(out.tokens.origin, alive, strict=True)
        ]
        assert sorted_rows(origin) == sorted_rows(wanted["source"])
    assert dr.cost_macs(golden.model, schedule) == about["flops"]
    assert float(dr.cost_macs(golden.model, out.kept)) == about["flops"]


def case_rates(golden: Golden, case: str) -> dr.Rates:
    """Returns the rate logits of a golden search case, blocks without rates zero."""
    granularity = int(case.removeprefix("granularity")[0])
    num = len(candidate_counts(golden.model.geometry.num_patches, granularity))

    def rows(op: str) -> jnp.ndarray:
        found = [golden.arrays[f"search/{case}/{op}/{b}/rate_logits"] for b in range(6)]
        return jnp.stack([row if len(row) == num else np.zeros(num) for row in found])

    return dr.Rates(rows("prune"), rows("merge"), granularity)


def case_loss(golden: Golden, case: str, *, reference: bool):
    """Returns the published loss of a golden search case, with its parts."""
    about = golden.about["search"][case]

    def loss(rates: dr.Rates) -> tuple[jax.Array, dict[str, jax.Array]]:
        run = dr.Masked(rates, reference=reference)
        out = dr.forward(golden.model, golden.params, golden.images, run)
        labels = golden.arrays["soft_labels"]
        cross_entropy = optax.softmax_cross_entropy(out.logits, labels).mean()
        cost = dr.cost_macs(golden.model, out.kept)
        penalty = (cost / about["flops_unit"] - about["target"]) ** 2
        parts = {"logits": out.logits, "kept": out.kept, "cost": cost}
        parts |= {"loss_cls": cross_entropy, "loss_flops": penalty}
        return cross_entropy + about["lambda_flops"] * penalty, parts

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def check_counts(about: dict, parts: dict) -> None:
    """Compares counts, exactly."""
    assert np.asarray(parts["kept"].prune).tolist() == about["prune"]
    assert np.asarray(parts["kept"].merge).tolist() == about["merge"]
    assert float(parts["cost"]) == about["flops"]


def check_gradients(golden: Golden, case: str, grads: dr.Rates, atol: float) -> None:
    """Compares the gradient of every rate logit."""
    for op in ("prune", "merge"):
        for block in range(6):
            wanted = golden.arrays[f"search/{case}/{op}/{block}/grad"]
            found = getattr(grads, op)[block]
            if len(wanted) == 1:
                assert not np.asarray(found).any()
            else:
                np.testing.assert_allclose(found, wanted, atol=atol, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_search_reference(golden: Golden, case: str) -> None:
    about = golden.about["search"][case]
    step = case_loss(golden, case, reference=True)
    (_, parts), grads = step(case_rates(golden, case))
    wanted = golden.arrays[f"search/{case}/logits"]
    np.testing.assert_allclose(parts["logits"], wanted, atol=2e-5)
    check_counts(about, parts)
    for name in ("loss_cls", "loss_flops"):
        np.testing.assert_allclose(parts[name], about[name], atol=1e-5)
    check_gradients(golden, case, grads, 1e-6)


@pytest.mark.parametrize("case", CLEAN_CASES)
def test_search_clean(golden: Golden, case: str) -> None:
    step = case_loss(golden, case, reference=False)
    (_, parts), grads = step(case_rates(golden, case))
    wanted = golden.arrays[f"search/{case}/logits"]
    np.testing.assert_allclose(parts["logits"], wanted, atol=5e-4)
    check_counts(golden.about["search"][case], parts)
    check_gradients(golden, case, grads, 2e-5)


@pytest.mark.parametrize("case", CASES)
def test_six_steps(golden: Golden, case: str) -> None:
    step = case_loss(golden, case, reference=True)
    optimiser = optax.adamw(0.01, weight_decay=0.0)
    rates = case_rates(golden, case)
    state = optimiser.init(rates)
    for about in golden.about["search"][case]["trajectory"]:
        (_, parts), grads = step(rates)
        check_counts(about, parts)
        for name in ("loss_cls", "loss_flops"):
            np.testing.assert_allclose(parts[name], about[name], atol=1e-5)
        updates, state = optimiser.update(grads, state, rates)
        rates = optax.apply_updates(rates, updates)
    for op in ("prune", "merge"):
        for block in range(6):
            key = f"search/{case}/trajectory_end/{op}/{block}/rate_logits"
            wanted = golden.arrays[key]
            if len(wanted) > 1:
                found = getattr(rates, op)[block]
                np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("case", TOME)
def test_tome(deit: Golden, case: str) -> None:
    about = json.loads((GOLDEN / "tome.json").read_text())["cases"][case]
    r, proportional = about["r"], about["proportional_attention"]
    if case == "decreasing4":
        run = dr.ToMe(r[0], inflection=r[1])
    else:
        r = tuple(r) if isinstance(r, list) else r
        run = dr.ToMe(r, proportional_attention=proportional)
    assert run.removed(6) == tuple(about["r_per_block"])
    out = dr.forward(deit.model, deit.params, deit.images, run, trace=True)
    with np.load(GOLDEN / "tome.npz") as wanted:
        np.testing.assert_allclose(out.logits, wanted[f"{case}/logits"], atol=2e-5)
        np.testing.assert_allclose(out.tokens.size, wanted[f"{case}/size"], atol=1e-4)
        assert (np.asarray(out.tokens.origin) == wanted[f"{case}/source"]).all()
    schedule = run.schedule(deit.model.geometry)
    assert schedule.merge[-1] == about["tokens_at_end"]
    assert dr.cost_macs(deit.model, run) == dr.cost_macs(deit.model, schedule)
