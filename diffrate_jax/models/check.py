"""What architectures are possible."""

import dataclasses
import math
import types
import typing

from diffrate_jax.errors import UserError
from diffrate_jax.models.caformer import MERGING, STRIDES, CAFormer
from diffrate_jax.models.metaformer import HEAD_WIDTH
from diffrate_jax.models.vit import ViT


def check_types(model: ViT | CAFormer) -> None:
    """Refuses a field of another type than its own: fields come from files too.

    Raises:
        UserError: naming the field.
    """
    hints = typing.get_type_hints(type(model))
    for field in dataclasses.fields(model):
        hint, value = hints[field.name], getattr(model, field.name)
        if field.name not in ("parent", "name", "dtype") and not is_like(value, hint):
            kind = hint.__name__ if type(hint) is type else hint
            raise UserError(f"{field.name} must be of type {kind}, got {value!r}")


def is_like(value: object, hint: type) -> bool:
    """Returns whether a value is of a type; a whole number will do for a float."""
    if isinstance(hint, types.UnionType):
        return any(is_like(value, choice) for choice in typing.get_args(hint))
    kind = typing.get_origin(hint) or hint
    if kind is tuple:
        inner = typing.get_args(hint)[0]
        return isinstance(value, tuple) and all(is_like(x, inner) for x in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (float, int) if kind is float else kind)


def check_vit(model: ViT) -> None:
    """Refuses an impossible architecture.

    Raises:
        UserError: a size that is not a positive integer or does not divide another,
            or an unknown pooling.
    """
    for field in ("image_size", "patch_size", "width", "depth", "num_heads"):
        check_positive(field, getattr(model, field))
    if model.num_classes != 0:
        check_positive("num_classes", model.num_classes)
    if model.image_size % model.patch_size:
        raise UserError(
            f"image_size must be a multiple of patch_size {model.patch_size}, "
            f"got {model.image_size}"
        )
    if model.width % model.num_heads:
        raise UserError(
            f"width must be a multiple of num_heads {model.num_heads}, "
            f"got {model.width}"
        )
    check_above_0("mlp_ratio", model.mlp_ratio)
    check_above_0("layer_norm_eps", model.layer_norm_eps)
    if model.pool not in ("cls", "avg"):
        raise UserError(f"pool must be 'cls' or 'avg', got {model.pool!r}")
    check_prefix(model)
    if model.compress is not None and len(model.compress) != model.depth:
        raise UserError(
            f"compress must hold one true or false for each of {model.depth} blocks, "
            f"got {len(model.compress)}"
        )


def check_positive(field: str, value: object) -> None:
    """Refuses what is not a positive integer.

    Raises:
        UserError: naming the field.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{field} must be a positive whole number, got {value!r}")


def check_above_0(field: str, value: float) -> None:
    """Refuses a number that is not above 0, or not finite.

    Raises:
        UserError: naming the field.
    """
    if not 0 < value < math.inf:
        raise UserError(f"{field} must be a number above 0, got {value!r}")


def check_prefix(model: ViT) -> None:
    """Refuses prefix tokens that the rest of the architecture does not go with.

    Raises:
        UserError: too few for the pooling or the distillation token, or none countable.
    """
    count, pool = model.prefix_tokens, model.pool
    least = 1 + model.distilled if pool == "cls" or model.distilled else 0
    if isinstance(count, bool) or not isinstance(count, int) or count < least:
        raise UserError(
            f"prefix_tokens must be a whole number of at least {least} with "
            f"pool={pool!r} and distilled={model.distilled}, got {count!r}"
        )
    if model.distilled and pool != "cls":
        raise UserError(
            "a distilled model reads its first two tokens: it needs pool='cls', "
            f"got {pool!r}"
        )


def check_caformer(model: CAFormer) -> None:
    """Refuses an impossible architecture.

    Raises:
        UserError: not four stages, a number that is not a positive integer or no
            multiple of what it has to be.
    """
    for field in ("depths", "widths"):
        values = getattr(model, field)
        if len(values) != len(STRIDES):
            raise UserError(
                f"{field} must hold one number for each of {len(STRIDES)} stages, "
                f"got {values!r}"
            )
        for value in values:
            check_positive(field, value)
    check_positive("num_classes", model.num_classes)
    check_positive("image_size", model.image_size)
    if any(width % HEAD_WIDTH for width in model.widths[MERGING:]):
        raise UserError(
            f"the last two widths must be multiples of {HEAD_WIDTH}, the width of a "
            f"head, got {model.widths}"
        )
    if model.image_size % math.prod(STRIDES):
        raise UserError(
            f"image_size must be a multiple of {math.prod(STRIDES)}, the steps of four "
            f"stages, got {model.image_size}"
        )
