"""Models by name, their random weights, and the forward pass."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from diffrate_jax.compress import Gathered
from diffrate_jax.errors import UserError, did_you_mean
from diffrate_jax.models.caformer import CAFormer
from diffrate_jax.models.check import check_caformer, check_types, check_vit
from diffrate_jax.models.presets import architecture_of
from diffrate_jax.models.vit import Compression, Output, ViT
from diffrate_jax.rates import Rates, zero_rates
from diffrate_jax.schedule import Schedule
from diffrate_jax.shapes import Array

Params = dict[str, Any]
Model = ViT | CAFormer
# What builds the models of a family, and what refuses impossible ones.
FAMILIES = {"vit": (ViT, check_vit), "caformer": (CAFormer, check_caformer)}


def create_model(name: str, **fields: Any) -> Model:
    """Returns a model: a preset by its timm name, or a family with any of its fields.

    Args:
        name: preset, "vit" (fields of `ViT`) or "caformer" (of `CAFormer`).
        fields: override the preset's fields; all but those with defaults for a family.

    Raises:
        UserError: unknown name or field, or an impossible architecture.
    """
    preset = {"family": name} if name in FAMILIES else architecture_of(name)
    family, check = FAMILIES[preset.pop("family", "vit")]
    given = {f.name: f for f in dataclasses.fields(family)}
    # What a device can run is for whoever compiles the model (`compile_inference`).
    hidden = ("parent", "name", "attention")
    known = {name: field for name, field in given.items() if name not in hidden}
    for field in fields:
        if field not in known:
            raise UserError(
                f"a {family.__name__} has no field {field!r}; "
                f"{did_you_mean(field, known)}"
            )
    fields = preset | fields
    required = [
        name
        for name, field in known.items()
        if name not in fields and field.default is dataclasses.MISSING
    ]
    if required:
        raise UserError(f"create_model({name!r}) also needs {', '.join(required)}")
    fields = {name: fixed(value) for name, value in fields.items()}
    model = family(**fields)
    check_types(model)
    check(model)
    return model


def fixed(value: Any) -> Any:
    """Returns a field's value as models hold it: lists are tuples."""
    return tuple(value) if isinstance(value, list) else value


def family_of(model: Model) -> str:
    """Returns the name of a model's family, which `create_model` takes."""
    return next(name for name, (kind, _) in FAMILIES.items() if type(model) is kind)


def architecture(model: Model) -> dict[str, Any]:
    """Returns a model's fields as JSON knows them, for provenance."""
    fields = dataclasses.asdict(model)
    hidden = ("parent", "name", "dtype", "attention")
    return {name: value for name, value in fields.items() if name not in hidden}


def init_weights(model: Model, seed: int = 0) -> Params:
    """Returns random weights: the nested dict that `forward` takes."""
    size = model.image_size
    images = jnp.zeros((1, size, size, 3), model.dtype)
    dense = Gathered(Schedule.dense(model.geometry))
    return jax.jit(model.init)(jax.random.key(seed), images, dense)["params"]


def init_rates(model: Model, granularity: int = 1) -> Rates:
    """Returns the rates that search starts from: all candidates equally likely.

    Args:
        model: that will be compressed.
        granularity: step between neighbouring candidates, in tokens.
    """
    geometry = model.geometry
    return zero_rates(geometry, granularity, prune=not geometry.only_merges)


def forward(
    model: Model,
    params: Params,
    images: Array,
    compression: Compression | None = None,
    *,
    trace: bool = False,
    features: bool = False,
    dtype: Any = None,
    drop_path: float = 0.0,
    rng: Array | None = None,
    remat: bool = False,
) -> Output:
    """Runs a model: a pure function of weights, images and compression.

    Args:
        model: from `create_model`.
        params: nested dict of weights.
        images: [B, Y, X, 3] float, normalised.
        compression: `Gathered`, `Masked`, `ToMe`, or None for the dense model.
        trace: also return where every original token ended (`tokens.origin`).
        features: also return what the head reads of every token (`features`), and
            trace; `unmerge` puts them back on the grid.
        dtype: type of the activations; the model's own (float32) by default.
        drop_path: largest rate of stochastic depth; needs `rng`.
        rng: one random key per example [B], or one for the batch.
        remat: compute each block again for its gradient, instead of keeping it.

    Raises:
        UserError: images of another shape or type than the model's.
    """
    check_images(model, images)
    if drop_path and rng is None:
        raise UserError("drop_path needs rng: give one key, or one per example")
    if rng is not None and rng.ndim == 0:
        rng = jax.vmap(lambda i: jax.random.fold_in(rng, i))(jnp.arange(len(images)))
    if compression is None:
        compression = Gathered(Schedule.dense(model.geometry))
    if dtype is not None:
        model = model.clone(dtype=jnp.dtype(dtype))
    compression.kept(model.geometry)  # Refuses a bad schedule before tracing.
    how = {"trace": trace or features, "features": features}
    how |= {"drop_path": drop_path, "remat": remat}
    return _forward(model, params, images, compression, rng, **how)


@functools.partial(
    jax.jit,
    static_argnames=("model", "trace", "features", "drop_path", "remat"),
    inline=True,
)
def _forward(
    model: Model,
    params: Params,
    images: Array,
    compression: Compression,
    rng: Array | None,
    *,
    trace: bool,
    features: bool,
    drop_path: float,
    remat: bool,
) -> Output:
    return model.apply(
        {"params": params},
        images,
        compression,
        trace=trace,
        features=features,
        drop_path=drop_path,
        keys_B=rng,
        remat=remat,
    )


def unmerge(features_BKD: Array, origin_BKO: Array) -> Array:
    """Puts the features of tokens back where their patches were, for dense tasks.

    Each original token takes the features of the token it ended in; what was pruned
    takes zeros.

    Args:
        features_BKD: of the tokens that are left.
        origin_BKO: `Output.tokens.origin` of the same pass.

    Returns:
        Features in the original order [B, O, D], prefix tokens first.
    """
    return jnp.einsum(
        "BKD,BKO->BOD",
        features_BKD,
        origin_BKO.astype(features_BKD.dtype),
        precision=jax.lax.Precision.HIGHEST,
    )


def check_images(model: Model, images: Array) -> None:
    """Refuses images that do not fit the model.

    Raises:
        UserError: rank, size, channels or type are not the model's.
    """
    size = model.image_size
    if images.ndim != 4 or images.shape[1:] != (size, size, 3):
        raise UserError(
            f"images must be [B, {size}, {size}, 3], got {list(images.shape)}; resize "
            "them, or create the model with another image_size"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(
            f"images must be floats, normalised as in training, got {images.dtype}; "
            "use diffrate_jax.normalise(images, mean, std)"
        )
