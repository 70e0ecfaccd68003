"""CAFormer: agreement with the published one, both forms, gradients, and search."""

import functools
import itertools
import json
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN, Golden
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st

import diffrate_jax as dr
from diffrate_jax.baselines import hand_made, random_schedule
from diffrate_jax.budget import fit_to_budget, smallest_schedule, uniform
from diffrate_jax.compressions import parse_compression
from diffrate_jax.cost import macs_of
from diffrate_jax.data.augment import Augment
from diffrate_jax.folding import restore
from diffrate_jax.learning import learn_schedule
from diffrate_jax.learning.refine import refine
from diffrate_jax.models.caformer import CAFormer
from diffrate_jax.models.presets import presets
from diffrate_jax.published import PUBLISHED
from diffrate_jax.rates import Located
from diffrate_jax.recipe import Recipe
from diffrate_jax.shapes import Geometry
from diffrate_jax.sources.caformer import (
    authors_name,
    from_torch,
    timm_name,
    to_authors,
    to_timm,
)
from diffrate_jax.tokens import Attended, Tokens

# 16 tokens in five blocks of stage 3, of which three are free, and 4 in two of stage 4.
SMALL = {"depths": (1, 1, 5, 2), "widths": (4, 8, 32, 32), "num_classes": 5}
TOKENS, LATER, FREE = 16, 4, slice(1, 4)
FALLING = (16, 12, 8, 5, 5, 4, 4)
COUNTS = {
    "caformer_s18": 26_341_656,
    "caformer_s36": 39_297_102,
    "caformer_m36": 56_204_878,
    "caformer_b36": 98_753_614,
}
FAST = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
HALVES = (0.5, 0.5, 0.5)
# The others are for models that have a class token, or that drop tokens.
every_rule = pytest.mark.parametrize(
    "rule",
    ["redundancy"]
    + [pytest.param(rule, marks=pytest.mark.slow) for rule in ("diffrate", "tome")],
)


def small(**fields) -> CAFormer:
    return dr.create_model("caformer", **(SMALL | {"image_size": 64} | fields))


@functools.cache
def weights() -> dict:
    """Returns weights that spread the tokens."""
    rng = np.random.default_rng(0)
    flat = flatten_dict(jax.eval_shape(lambda: dr.init_weights(small())))
    around = {path: 1.0 if path[-1] == "scale" else 0.0 for path in flat}
    return unflatten_dict(
        {
            path: np.float32(around[path] + 0.2 * rng.standard_normal(weight.shape))
            for path, weight in flat.items()
        }
    )


@functools.cache
def images() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((4, 64, 64, 3)).astype(np.float32)


def falling(rule: str) -> dr.Schedule:
    """Returns a schedule by which every free block merges, as a rule can."""
    return dr.Schedule(None, FALLING, rule=rule).feasible(small().geometry)


@pytest.fixture(scope="module")
def golden() -> Golden:
    """The golden CAFormer, under its authors' names."""
    about = json.loads((GOLDEN / "caformer.json").read_text())
    with np.load(GOLDEN / "caformer.npz") as file:
        arrays = dict(file)
    config = about["config"]
    model = dr.create_model(
        "caformer", depths=config["depths"], widths=config["dims"],
        num_classes=about["num_classes"],
    )  # fmt: skip
    params = {
        path: from_torch(path, arrays[f"weights/{authors_name(path)}"].astype("f4"))
        for path in flatten_dict(jax.eval_shape(lambda: dr.init_weights(model)))
    }
    return Golden(about, arrays, model, unflatten_dict(params))


# The published implementation.


@pytest.mark.parametrize("name", ["none", "merge"])
def test_published_inference(golden: Golden, name: str):
    """Sizes add up; at the end, after stage 4, the published ones are all 1."""
    about = golden.about["schedules"][name]
    schedule = dr.Schedule(about["prune"], about["merge"])
    run = dr.Gathered(schedule, reference=True)
    out = dr.forward(golden.model, golden.params, golden.images, run)
    wanted = golden.arrays[f"inference/{name}/logits"]
    np.testing.assert_allclose(out.logits, wanted, atol=1e-5)
    assert out.tokens.size.shape == (2, about["merge"][4] if name == "none" else 96)
    np.testing.assert_array_equal(np.asarray(out.tokens.size).sum(axis=1), 196)
    at_end = golden.arrays[f"inference/{name}/size"]
    assert at_end.shape == (2, golden.model.geometry.dense[-1])
    assert (at_end == 1).all()
    assert dr.cost_macs(golden.model, schedule) == about["flops"]
    assert float(dr.cost_macs(golden.model, out.kept)) == about["flops"]
    if name == "none":
        dense = dr.forward(golden.model, golden.params, golden.images)
        np.testing.assert_array_equal(dense.logits, out.logits)
        assert dr.cost_macs(golden.model, None) == about["flops"]


def test_published_costs():
    model = dr.create_model("caformer_s36")
    record = json.loads((PUBLISHED / "caformer_s36.json").read_text())
    assert round(dr.cost_macs(model, None) / 1e9, 4) == record["dense_gmacs"]
    for target, row in record["schedules"].items():
        schedule = dr.published_schedule("caformer_s36", target)
        schedule.check(model.geometry)
        assert round(dr.cost_macs(model, schedule) / 1e9, 4) == row["gmacs"]
        kept = dr.Gathered(schedule).kept(model.geometry)
        traced = jax.jit(functools.partial(dr.cost_macs, model))(kept)
        np.testing.assert_allclose(traced / 1e9, row["gmacs"], atol=6e-5)


@pytest.mark.slow
def test_every_preset_has_its_number_of_weights():
    """26, 39, 56 and 99 millions in the authors' table."""
    known = presets()
    names = [name for name, f in known.items() if f.get("family") == "caformer"]
    assert names == [*COUNTS]
    for name, wanted in COUNTS.items():
        model = dr.create_model(name)
        shapes = jax.eval_shape(functools.partial(dr.init_weights, model))
        assert sum(weight.size for weight in jax.tree.leaves(shapes)) == wanted
        inner = model.depths[2] - 2
        assert model.geometry == Geometry(
            196, 0, (False, *[True] * inner, *[False] * 4), ((inner + 2, 49),)
        )


# One block, by eye.


def one_block(
    schedule: dr.Schedule, *, reference: bool, form=dr.Gathered, later_stages=((1, 1),)
) -> Tokens:
    """Returns what is left of four tokens, of which 0 is nearest to 2 and to 3."""
    angle = np.radians([0.0, 60.0, 20.0, 10.0])
    x = jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], axis=-1)[None])
    tokens = Tokens(x, jnp.asarray([[1.0, 2.0, 3.0, 4.0]]), origin=jnp.eye(4)[None])
    seen = Attended(jnp.asarray([[0.4, 0.3, 0.2, 0.1]]), x)
    geometry = Geometry(4, 0, (True, False), later_stages)
    run = form(schedule, reference=True) if reference else form(schedule)
    kept = run.kept(geometry)
    return run.step(0, run.begin(tokens), seen, kept, geometry)


def test_published_inference_folds_nothing_into_the_most_important_token():
    schedule = dr.Schedule(None, (2, 1))
    clean = one_block(schedule, reference=False)
    assert clean.size.tolist() == [[8, 2]]
    assert clean.origin.tolist() == [[[1, 0, 1, 1], [0, 1, 0, 0]]]
    published = one_block(schedule, reference=True)
    assert published.size.tolist() == [[1, 9]]
    assert published.origin.tolist() == [[[1, 0, 0, 0], [0, 1, 1, 1]]]
    masked = one_block(schedule, reference=False, form=dr.Masked)
    assert masked.alive.tolist() == [[1, 1, 0, 0]]
    assert masked.size[:, :2].tolist() == clean.size.tolist()
    np.testing.assert_allclose(masked.x[:, :2], clean.x, rtol=1e-6)


def test_reference_changes_nothing_where_there_is_a_single_stage():
    schedule = dr.Schedule(None, (2, 2))
    clean, published = (
        one_block(schedule, reference=reference, later_stages=())
        for reference in (False, True)
    )
    jax.tree.map(np.testing.assert_array_equal, clean, published)


@settings(max_examples=30, deadline=None)
@given(ended=st.lists(st.integers(0, 5), min_size=6, max_size=6))
def test_a_place_takes_the_features_of_the_token_it_ended_in(ended: list[int]):
    """And its own gradient says what it would gain by its own token."""
    ended = [ended[token] if ended[ended[token]] == ended[token] else token
             for token in range(6)]  # fmt: skip
    ended = [t if ended[e] != e else e for t, e in enumerate(ended)]
    x = np.random.default_rng(0).standard_normal((1, 6, 3)).astype(np.float32)
    origin = np.eye(6)[ended].T[None]
    wanted = x[0, ended]
    lives = sorted(set(ended))
    gathered = Tokens(x[:, lives], origin=jnp.asarray(origin[:, lives]))
    found = restore(gathered, gathered.x)
    np.testing.assert_allclose(found[0], wanted, atol=1e-6)
    alive = jnp.asarray([[float(token in lives) for token in range(6)]])

    def restored(alive: jax.Array) -> jax.Array:
        # The dead keep the origin that they had when they were folded.
        masked = Tokens(
            jnp.asarray(x), alive=alive, origin=np.maximum(origin, np.eye(6))
        )
        return restore(masked, masked.x)

    np.testing.assert_allclose(restored(alive)[0], wanted, atol=1e-6)
    gain = jax.jacobian(restored)(alive)[0, :, :, 0]
    for place in range(6):
        np.testing.assert_allclose(gain[place, :, place], x[0, place] - wanted[place])


# Both forms of the whole model.


def fast(model: CAFormer, params: dict, images: np.ndarray, **options):
    """Returns a function of a compression; compiling fast matters more than running."""

    def run(compression):
        return model.apply({"params": params}, images, compression, **options)

    return jax.jit(run, compiler_options=FAST)


@functools.cache
def runner(dtype: type):
    """Returns the small model as a function of a compression, with origins."""
    model = small(dtype=jnp.dtype(dtype))
    params = jax.tree.map(lambda w: np.asarray(w, dtype), weights())
    return fast(model, params, images().astype(dtype), trace=True)


@pytest.mark.parametrize(
    "rule",
    ["redundancy"]
    + [pytest.param(rule, marks=pytest.mark.slow) for rule in ("tome", "diffrate")],
)
def test_masked_equals_gathered(rule: str):
    count = st.integers(1, TOKENS)

    @settings(max_examples=3, deadline=None)
    @given(
        merge=st.lists(count, min_size=5, max_size=5),
        later=st.lists(st.integers(1, LATER), min_size=2, max_size=2),
    )
    def check(merge: list[int], later: list[int]) -> None:
        schedule = dr.Schedule(None, merge + later, rule=rule)
        schedule = schedule.feasible(small().geometry)
        with jax.enable_x64(True):
            masked, gathered = (
                runner(np.float64)(form(schedule)) for form in (dr.Masked, dr.Gathered)
            )
        np.testing.assert_allclose(masked.logits, gathered.logits, atol=1e-9)
        alive = np.asarray(masked.tokens.alive) == 1
        assert (alive.sum(axis=1) == schedule.merge[4]).all()
        for field in ("size", "origin"):
            ours, theirs = (getattr(o.tokens, field) for o in (masked, gathered))
            ours = np.asarray(ours)[alive].reshape(theirs.shape)
            np.testing.assert_allclose(ours, theirs, atol=1e-9)
        # Every place ends in exactly one token, and sizes are numbers of places.
        origin = np.asarray(masked.tokens.origin)
        np.testing.assert_array_equal(origin.sum(axis=1), 1)
        np.testing.assert_allclose(gathered.tokens.size, origin[alive].sum(
            axis=-1).reshape(gathered.tokens.size.shape), atol=1e-9)  # fmt: skip

    check()


@every_rule
def test_masked_equals_gathered_on_golden_weights(golden: Golden, rule: str):
    schedule = dr.Schedule(None, golden.about["schedules"]["merge"]["merge"], rule=rule)
    run = fast(golden.model, golden.params, golden.images)
    masked, gathered = (run(form(schedule)) for form in (dr.Masked, dr.Gathered))
    np.testing.assert_allclose(masked.logits, gathered.logits, atol=1e-5)
    assert (masked.tokens.origin, gathered.tokens.origin) == (None, None)


def test_tome_runs_too():
    run = dr.ToMe(3)
    out = runner(np.float32)(run)
    assert run.schedule(small().geometry).merge == (13, 10, 7, 4, 2, 2, 1)
    assert out.tokens.size.shape == (4, 2)
    np.testing.assert_array_equal(np.asarray(out.tokens.origin).sum(axis=1), 1)
    np.testing.assert_array_equal(np.asarray(out.tokens.size).sum(axis=1), TOKENS)
    assert np.isfinite(out.logits).all()
    assert dr.cost_macs(small(), run) < dr.cost_macs(small(), None)


@pytest.mark.slow
def test_half_precision_and_stochastic_depth():
    run = dr.Gathered(dr.Schedule(None, FALLING))
    exact = runner(np.float32)(run)
    half = fast(small(dtype=jnp.bfloat16), weights(), images())(run)
    assert half.logits.dtype == jnp.float32
    assert half.tokens.x.dtype == jnp.bfloat16
    assert np.isfinite(half.logits).all()
    keys = jax.random.split(jax.random.key(0), 4)
    dropped = fast(small(), weights(), images(), drop_path=0.5, keys_B=keys)(run)
    assert np.abs(dropped.logits - exact.logits).max() > 1e-3


# Gradients, and search.


def gradient(counts, rule: str):
    """Returns the gradient of a loss by what is learned."""
    model = small()

    def loss(counts) -> jax.Array:
        run = dr.Masked(counts, rule=rule)
        out = model.apply({"params": weights()}, images(), run)
        return jnp.sum(jax.nn.log_softmax(out.logits)[:, 0])

    return jax.jit(jax.grad(loss), compiler_options=FAST)(counts)


def check_reaches_free_blocks(gradient_L: np.ndarray) -> None:
    """Every number of a free block is finite and not zero; others have none."""
    gradient_L = np.asarray(gradient_L)
    assert np.isfinite(gradient_L).all()
    assert gradient_L[FREE].all()
    assert not gradient_L[0].any()
    assert not gradient_L[FREE.stop :].any()


@every_rule
def test_a_loss_reaches_every_rate(rule: str):
    """At rates that make every free block merge."""
    rates = dr.init_rates(small())
    assert rates.prune is None
    slope_L = np.linspace(0.3, -0.3, 7, dtype=np.float32)
    rates = rates.replace(merge=slope_L[:, None] * np.arange(TOKENS, 0, -1) / 2)
    kept = dr.Masked(rates, rule=rule).kept(small().geometry).merge
    assert kept[np.array([0, 4, 5, 6])].tolist() == [TOKENS, TOKENS, LATER, LATER]
    assert TOKENS > kept[1] > kept[2] > kept[3]
    check_reaches_free_blocks(gradient(rates, rule).merge)


@pytest.mark.slow
@every_rule
def test_a_loss_reaches_every_expected_count(rule: str):
    expected = np.array(falling(rule).merge, np.float32) - 0.5
    located = Located(None, jnp.asarray(expected), jnp.float32(1.0))
    check_reaches_free_blocks(gradient(located, rule).merge)


def batches() -> Iterator[dict[str, np.ndarray]]:
    for step in itertools.count():
        rng = np.random.default_rng(step)
        image = rng.integers(0, 256, (4, 64, 64, 3)).astype(np.uint8)
        yield {"image": image, "label": rng.integers(0, 5, 4)}


@pytest.mark.slow
@pytest.mark.usefixtures("compiles_fast")
@pytest.mark.parametrize(
    "method", ["projected", pytest.param("penalised", marks=pytest.mark.slow)]
)
def test_a_search_ends_within_its_budget(method: str):
    options = {"steps": 6, "augment": Augment(HALVES, HALVES), "learning_rate": 0.1}
    recipe = Recipe(refine_images=0, **options)
    if method == "penalised":
        recipe = Recipe.published(**options)
    # Attention of stage 3 is a quarter of this small model.
    model = small(widths=(4, 8, 64, 32))
    result = learn_schedule(
        model, dr.init_weights(model), batches(), "85%", recipe=recipe
    )
    schedule, budget = result.schedule, 0.85 * dr.cost_macs(model, None)
    schedule.check(model.geometry)
    assert schedule.prune is None
    assert 0.97 * budget < result.macs == dr.cost_macs(model, schedule) <= budget
    assert schedule.merge[0] == TOKENS
    assert schedule.merge[3:] == (schedule.merge[3],) * 2 + (LATER,) * 2


def test_refining_moves_tokens_between_free_blocks():
    """Where block 2 alone matters, tokens go there, and stage 4 keeps all."""
    model = small()
    start = dr.Schedule(None, (16, 14, 9, 7, 7, 4, 4), rule="redundancy")
    macs = dr.cost_macs(model, start)
    found = refine(
        start, macs_of(model), macs, lambda s: np.full(4, -float(s.merge[2]))
    )
    assert [gain["block"] for gain in found.gains] == [1, 2, 3]
    assert found.schedule.merge[2] > 9
    assert found.schedule.merge[5:] == (LATER, LATER)
    assert found.schedule.merge[4] == found.schedule.merge[3]
    assert dr.cost_macs(model, found.schedule) <= macs


# Schedules, budgets and baselines of a model with a later stage.


@settings(max_examples=60, deadline=None)
@given(
    merge=st.lists(st.integers(1, TOKENS), min_size=5, max_size=5),
    share=st.floats(0, 1),
)
def test_schedules_start_anew_in_the_last_stage(merge: list[int], share: float):
    model = small()
    geometry = model.geometry
    schedule = dr.Schedule(None, (*merge, LATER, LATER))
    steps = schedule.steps(geometry)
    assert steps[0][0] == TOKENS
    assert steps[5] == steps[6] == (LATER,) * 3
    running = schedule.canonical(geometry)
    assert running == schedule.feasible(geometry)
    assert dr.cost_macs(model, running) == dr.cost_macs(model, schedule)
    least = dr.cost_macs(model, smallest_schedule(model))
    macs = least + share * (dr.cost_macs(model, None) - least)
    free = dr.Schedule(None, [m if c else d for m, c, d in zip(
        schedule.merge, geometry.compress, geometry.dense, strict=True)])  # fmt: skip
    fitted = fit_to_budget(free, macs_of(model), macs)
    fitted.check(geometry)
    assert dr.cost_macs(model, fitted) <= macs
    assert fitted.merge[5:] == (LATER, LATER)
    assert fitted.merge[0] == TOKENS


def test_cost_by_hand():
    """Two blocks of attention, 16 and 4 tokens; 9 stay of the 16."""
    model = small(depths=(1, 2, 1, 1), widths=(4, 8, 32, 64), num_classes=5)
    down = 256 * 4 * 49 * 3 + 64 * 8 * 9 * 4 + 16 * 32 * 9 * 8 + 4 * 64 * 9 * 32
    convolution = 12 * 256 * 16 + 98 * 256 * 4 + 2 * (12 * 64 * 64 + 98 * 64 * 8)
    third = 4 * 16 * 32**2 + 2 * 16**2 * 32 + 8 * 9 * 32**2
    fourth = 12 * 4 * 64**2 + 2 * 4**2 * 64
    by_hand = down + convolution + third + fourth + 8 * 64 * 5
    assert dr.cost_macs(model, dr.Schedule(None, (9, 4))) == by_hand


def test_baselines_only_merge():
    model = small()
    geometry = model.geometry
    even = uniform(model)
    assert even.merge == (16, 12, 8, 4, 4, 4, 4)
    macs = dr.cost_macs(model, even)
    found = hand_made(macs_of(model), macs, "redundancy")
    assert {"ToMe constant", "merge only", "redundancy constant"} <= set(found)
    assert "prune only" not in found
    assert all(run.kept(geometry).prune is None for run in found.values())
    rng, model = np.random.default_rng(0), dr.create_model("caformer_s18")
    drawn = random_schedule(macs_of(model), 3_000_000_000, rng).schedule
    assert drawn.prune is None
    assert drawn.merge[-3:] == (49, 49, 49)
    assert 1 <= dr.cost_macs(model, drawn) / 3_000_000_000 <= 1.01


# Names.


def test_weights_are_named_by_rules(golden: Golden):
    """Every golden tensor is one weight's, in shape too, there and back."""
    theirs = {
        name.removeprefix("weights/"): array
        for name, array in golden.arrays.items()
        if name.startswith("weights/")
    }
    ours = flatten_dict(golden.params)
    assert {authors_name(path) for path in ours} == set(theirs)
    for path, array in ours.items():
        np.testing.assert_array_equal(
            to_authors(path, array), theirs[authors_name(path)]
        )
        timm = to_timm(path, array)
        assert timm.size == array.size
        np.testing.assert_array_equal(from_torch(path, timm), array)
    assert len({timm_name(path) for path in ours}) == len(ours)


@pytest.mark.parametrize(
    ("authors", "timm", "shape"),
    [
        ("downsample_layers.0.conv.bias", "stem.conv.bias", (4,)),
        ("downsample_layers.0.conv.weight", "stem.conv.weight", (4, 3, 7, 7)),
        ("downsample_layers.0.post_norm.weight", "stem.norm.weight", (4,)),
        (
            "downsample_layers.3.pre_norm.weight",
            "stages.3.downsample.norm.weight",
            (32,),
        ),
        (
            "downsample_layers.1.conv.weight",
            "stages.1.downsample.conv.weight",
            (8, 4, 3, 3),
        ),
        ("stages.0.0.norm1.weight", "stages.0.blocks.0.norm1.weight", (4,)),
        (
            "stages.1.0.token_mixer.pwconv1.weight",
            "stages.1.blocks.0.token_mixer.pwconv1.weight",
            (16, 8, 1, 1),
        ),
        (
            "stages.1.0.token_mixer.dwconv.weight",
            "stages.1.blocks.0.token_mixer.dwconv.weight",
            (16, 1, 7, 7),
        ),
        (
            "stages.0.0.token_mixer.act1.scale",
            "stages.0.blocks.0.token_mixer.act1.scale",
            (1,),
        ),
        (
            "stages.0.0.mlp.fc1.weight",
            "stages.0.blocks.0.mlp.fc1.weight",
            (16, 4, 1, 1),
        ),
        ("stages.2.4.mlp.fc1.weight", "stages.2.blocks.4.mlp.fc1.weight", (128, 32)),
        (
            "stages.2.4.token_mixer.qkv.weight",
            "stages.2.blocks.4.token_mixer.qkv.weight",
            (96, 32),
        ),
        ("stages.2.4.res_scale1.scale", "stages.2.blocks.4.res_scale1.scale", (32,)),
        ("stages.3.1.mlp.act.bias", "stages.3.blocks.1.mlp.act.bias", (1,)),
        ("norm.bias", "head.norm.bias", (32,)),
        ("head.norm.weight", "head.fc.norm.weight", (128,)),
        ("head.fc1.weight", "head.fc.fc1.weight", (128, 32)),
        ("head.fc2.bias", "head.fc.fc2.bias", (5,)),
    ],
)
def test_names_and_shapes_by_eye(authors: str, timm: str, shape: tuple[int, ...]):
    found = {authors_name(path): path for path in flatten_dict(weights())}[authors]
    assert timm_name(found) == timm
    assert to_timm(found, flatten_dict(weights())[found]).shape == shape


# Errors.


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"depths": (1, 1, 5)}, "depths must hold one number for each of 4 stages"),
        ({"depths": (1, 0, 5, 2)}, "depths must be a positive whole number, got 0"),
        ({"widths": (4, 8, 32, 33)}, "last two widths must be multiples of 32"),
        ({"image_size": 100}, "image_size must be a multiple of 32, .*got 100"),
        ({"num_classes": 0}, "num_classes must be a positive whole number, got 0"),
        ({"patch_size": 4}, "a CAFormer has no field 'patch_size'; "),
    ],
)
def test_models_that_cannot_be(fields: dict, sentence: str):
    with pytest.raises(dr.UserError, match=sentence):
        small(**fields)


def test_a_model_needs_its_fields():
    with pytest.raises(dr.UserError, match="also needs widths, num_classes"):
        dr.create_model("caformer", depths=(1, 1, 5, 2))
    assert dr.create_model("caformer_s18", image_size=384).geometry.dense[-1] == 144


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        (dr.Gathered(dr.Schedule(FALLING, FALLING)), "this model only merges, .*None"),
        (dr.Masked(dr.Schedule(FALLING, FALLING)), "this model only merges"),
        (dr.Gathered(dr.Schedule(None, (16,) * 7)), "between 1 and 4 tokens .* for 16"),
        (dr.Gathered(dr.Schedule(None, (17, *FALLING[1:]))), "between 1 and 16 tokens"),
        (dr.Masked(dr.Schedule(None, FALLING), reference=True), "cannot run on"),
        (
            dr.Gathered(dr.Schedule(None, (16, 9, 1, 1, 1, 4, 4)), reference=True),
            "and block 2 is to keep no other; keep at least 2 there",
        ),
        (
            dr.Gathered(dr.Schedule(None, FALLING, rule="redundancy"), reference=True),
            "rule 'diffrate', got a schedule of 'redundancy'; leave reference out",
        ),
    ],
)
def test_compressions_that_cannot_be(run, sentence: str):
    with pytest.raises(dr.UserError, match=sentence):
        dr.forward(small(), weights(), images(), run)


def test_rates_of_pruning_are_refused():
    rates = dr.init_rates(small())
    both = rates.replace(prune=rates.merge)
    with pytest.raises(dr.UserError, match="this model only merges"):
        dr.forward(small(), weights(), images(), dr.Masked(both))


def test_published_schedules_run_as_they_were_published():
    model = dr.create_model("caformer_s36")
    found = parse_compression("published:5.6", model, "caformer_s36")
    schedule = dr.published_schedule("caformer_s36", 5.6)
    assert found == dr.Gathered(schedule, reference=True)
