"""Speed on CPU, as ratios of alternating runs in one process, in its calmest minute.

`launch/test.sh --slow` runs this by itself on one device: four virtual ones would share
the cores. The comparison with PyTorch needs torch in the same environment.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffrate_jax as dr
from diffrate_jax.rates import Rates

NAME, TARGET = "deit_small_patch16_224", 2.9
ROUNDS, TRIES, THREADS = 15, 4, 2

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        jax.default_backend() != "cpu" or jax.device_count() > 1,
        reason="the bars are for one CPU device",
    ),
]


@pytest.fixture(autouse=True)
def as_users_run_it():
    """Undoes the highest matmul precision of the other tests: it takes other code."""
    with jax.default_matmul_precision("default"):
        yield


def times_of(*runs: Callable[[], Any]) -> np.ndarray:
    """Returns seconds [rounds, runs], the runs alternating after two rounds unseen."""
    seconds = np.zeros((2 + ROUNDS, len(runs)))
    for row in seconds:
        for column, run in enumerate(runs):
            start = time.perf_counter()
            jax.block_until_ready(run())
            row[column] = time.perf_counter() - start
    return seconds[2:]


def slowdown(run: Callable[[], Any], reference: Callable[[], Any]) -> float:
    """Returns how many times longer `run` takes: the median over alternating runs.

    Of several tries, the one that took the least time: others' work on the machine does
    not cancel. From one process to the next the ratio moves too, by some hundredths.
    """
    found = []
    for _ in range(TRIES):
        seconds = times_of(run, reference)
        ratio = float(np.median(seconds[:, 0] / seconds[:, 1]))
        taken = np.median(seconds, axis=0)
        print(f"\n{(1e3 * taken).round(1)} ms, ratio {ratio:.3f}")
        found.append((taken.sum(), ratio))
    return min(found)[1]


def deit(batch: int) -> tuple[Any, Any, jax.Array, jax.Array]:
    """Returns DeiT-S, random weights, images and labels."""
    model = dr.create_model(NAME)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, 224, 224, 3)).astype(np.float32)
    labels = rng.integers(0, 1000, batch)
    return model, dr.init_weights(model), jnp.asarray(images), jnp.asarray(labels)


def classifier(model: Any, compression: Any = None) -> Callable[..., jax.Array]:
    """Returns the jitted logits."""
    return jax.jit(lambda p, x: dr.forward(model, p, x, compression).logits)


@pytest.mark.parametrize(
    ("batch", "rule", "bar"),
    [
        (16, "diffrate", 1.5),
        (16, "redundancy", 1.43),
        (8, "diffrate", 1.41),
        (8, "redundancy", 1.39),
    ],
)
def test_time_follows_the_operation_count(batch: int, rule: str, bar: float) -> None:
    """The published schedule costs 1/1.583 of the dense model; it saves most of it.

    The default rule, at the same counts after merging, compares all pairs of tokens.
    Tries came to 1.53 to 1.54 and 1.47 to 1.49 at batch 16, at batch 8 to 1.44 to 1.48
    and 1.43 to 1.44; by the hour and the process they move by 0.03.
    """
    model, params, images, _ = deit(batch)
    schedule = dr.published_schedule(NAME, TARGET)
    if rule != schedule.rule:
        schedule = dr.Schedule(None, schedule.merge, rule=rule)
    saving = dr.cost_macs(model, None) / dr.cost_macs(model, schedule)
    assert saving == pytest.approx(1.583, abs=1e-3)
    dense, gathered = classifier(model), classifier(model, dr.Gathered(schedule))
    assert gathered(params, images).shape == (batch, 1000)
    speedup = slowdown(lambda: dense(params, images), lambda: gathered(params, images))
    assert speedup >= bar


def test_a_search_step_costs_less_than_three_forward_passes() -> None:
    """Both operations are at work, every block learns, and nothing recompiles."""
    model, params, images, labels = deit(8)

    # Everything is an argument: XLA would compute what only depends on constants.
    def loss(
        rates: Rates, params: Any, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        out = dr.forward(model, params, images, dr.Masked(rates))
        log_prob_BV = jax.nn.log_softmax(out.logits)
        cross_entropy = -jnp.mean(log_prob_BV[jnp.arange(len(labels)), labels])
        gmacs = dr.cost_macs(model, out.kept) / 1e9
        return cross_entropy + 5 * (gmacs - TARGET) ** 2, gmacs

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    dense = classifier(model)
    rates, costs = dr.init_rates(model), []
    for _ in range(3):
        (_, gmacs), grads = step(rates, params, images, labels)
        costs.append(float(gmacs))
        blocks = np.array(model.geometry.compress)
        for grad_LR in (grads.prune, grads.merge):
            assert np.isfinite(grad_LR).all()
            assert (np.abs(grad_LR).max(axis=1) > 0).tolist() == blocks.tolist()
        rates = jax.tree.map(lambda a, g: a - 0.3 * jnp.sign(g), rates, grads)
    assert len(set(costs)) == 3
    assert step._cache_size() == 1
    ratio = slowdown(
        lambda: step(rates, params, images, labels), lambda: dense(params, images)
    )
    # 2.67 to 2.71; what it was, 2.5, when the forward pass took 6 % longer.
    assert ratio <= 2.8


@pytest.mark.parametrize("batch", [8, 16])
def test_dense_keeps_up_with_pytorch(batch: int) -> None:
    """Against PyTorch's own encoder layers on their fast path, as many threads."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(THREADS)
    theirs = torch_vit(torch)
    model, params, images, _ = deit(batch)
    dense = classifier(model)
    planes = torch.tensor(np.asarray(images)).permute(0, 3, 1, 2).contiguous()
    with torch.inference_mode():
        assert theirs(planes).shape == dense(params, images).shape
        assert slowdown(lambda: theirs(planes), lambda: dense(params, images)) >= 0.9


def torch_vit(torch: Any) -> Callable[[Any], Any]:
    """Returns DeiT-S made of PyTorch's layers, as a function of images [B, C, Y, X]."""
    nn = torch.nn
    embed = nn.Conv2d(3, 384, 16, stride=16)
    blocks = [
        nn.TransformerEncoderLayer(
            384, 6, 1536, activation="gelu", batch_first=True, norm_first=True
        ).eval()
        for _ in range(12)
    ]
    head = nn.Sequential(nn.LayerNorm(384), nn.Linear(384, 1000))

    def run(images: Any) -> Any:
        x = embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([torch.zeros(len(x), 1, 384), x], dim=1)
        for block in blocks:
            x = block(x)
        return head(x[:, 0])

    return run
