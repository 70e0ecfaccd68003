"""Weights under timm's names, into the nested dict of the models and back."""

import dataclasses
import os
import re
from collections.abc import Collection, Mapping

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from diffrate_jax.distributed import is_first
from diffrate_jax.errors import UserError
from diffrate_jax.files import write_bytes
from diffrate_jax.models import Model, Params, init_weights
from diffrate_jax.sources import names, open_source
from diffrate_jax.sources.positions import resized

Given = str | os.PathLike | Mapping[str, np.ndarray]
HEADS = r"head(_dist)?\."
# The layers that tell classes apart: a ViT's, a distilled one's too, CAFormer's.
CLASSIFIERS = (("head",), ("head_dist",), ("head", "fc2"))
# Tensors that a model has no use for, and why.
IGNORED = {"mask_token": "it fills in hidden patches, in pretraining only"}


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Weights, and what was done to make them fit.

    Attributes:
        params: nested dict that `forward` takes; float32.
        notes: one sentence for each tensor or rule that was not taken as it was.
    """

    params: Params
    notes: tuple[str, ...]


def load_weights(model: Model, source: Given, *, new_head: bool = False) -> Params:
    """Returns a model's weights; see `read_weights`."""
    return read_weights(model, source, new_head=new_head).params


def read_weights(model: Model, source: Given, *, new_head: bool = False) -> Loaded:
    """Reads a model's weights: every tensor is used, or ignored for a reason.

    Half precision is read as float32. A position table of another image size is
    resized as timm does.

    Args:
        model: from `create_model`.
        source: a file (.safetensors, .pth, .npz), a folder of `convert`, an id such as
            "hf-hub:timm/deit_small_patch16_224.fb_in1k", or a dict of timm's names.
        new_head: start with a random head, for other classes than the source's.

    Raises:
        UserError: a tensor that is missing, left over, of another shape, or not
            finite; all of them are listed together. Or a source that cannot be read.
    """
    opened = open_source(source)
    given, notes = names.renamed(opened.tensors, model), list(opened.notes)
    layout, expected = names.layout_of(model, given), abstract_weights(model)
    params = random_head(expected) if new_head else {}
    wanted = {layout.name(path): path for path in expected if path not in params}
    unused = ignored(model, given, {layout.name(path) for path in params})
    notes += [f"{name} is ignored: {reason}" for name, reason in unused.items()]
    problems = [f"missing {name}" for name in wanted if name not in given]
    left_over = given.keys() - wanted.keys() - unused.keys()
    problems += [f"unexpected {name}" for name in left_over]
    for name in wanted.keys() & given.keys():
        path, array = wanted[name], np.asarray(given[name])
        shape = layout.shape(path, expected[path].shape)
        if name == "pos_embed" and array.shape != shape:
            array, note = resized(array, shape, prefix_positions(model))
            notes += note
        problem = wrong(array, shape)
        if problem:
            problems.append(f"{name} {problem}")
        else:
            params[path] = layout.read(path, np.asarray(array, np.float32))
    if problems:
        raise UserError(
            "the weights do not fit the model: "
            + "; ".join(sorted(problems))
            + "; give weights of this architecture"
        )
    return Loaded(unflatten_dict(params), tuple(notes))


def ignored(
    model: Model, given: Mapping[str, np.ndarray], replaced: Collection[str]
) -> dict[str, str]:
    """Returns the tensors of a source that are left out, and why.

    Args:
        model: to be filled.
        given: tensors of the source.
        replaced: names of those that a new head takes the place of.
    """
    found = {name: reason for name, reason in IGNORED.items() if name in given}
    found |= {n: "a new head was asked for" for n in given if n in replaced}
    if not model.num_classes:
        heads = (name for name in given if re.match(HEADS, name))
        found |= dict.fromkeys(heads, "this model has no head")
    return found


def wrong(array: np.ndarray, shape: tuple[int, ...]) -> str | None:
    """Returns what is wrong with a tensor, None if nothing is."""
    if array.shape != shape:
        return f"has shape {array.shape}, expected {shape}"
    if not np.isfinite(array if array.itemsize >= 4 else np.float32(array)).all():
        return "holds values that are not finite"
    return None


def random_head(
    expected: Mapping[names.Path, jax.ShapeDtypeStruct],
) -> dict[names.Path, np.ndarray]:
    """Returns new classifiers, always the same: small kernels, no bias."""
    rng = np.random.default_rng(0)
    return {
        path: np.float32(rng.normal(0.0, 0.02, weight.shape) * (path[-1] == "kernel"))
        for path, weight in expected.items()
        if path[:-1] in CLASSIFIERS
    }


def prefix_positions(model: Model) -> int:
    """Returns how many rows of a ViT's position table belong to no patch."""
    return model.prefix_tokens if model.position_prefix else 0


def save_weights(model: Model, params: Params, path: str | os.PathLike) -> None:
    """Writes weights as safetensors under timm's names, whole or not at all."""
    from safetensors.numpy import save

    if not is_first():
        return
    tensors = to_timm(model, params)
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    write_bytes(path, save(tensors))


def to_timm(model: Model, params: Params) -> dict[str, np.ndarray]:
    """Returns the weights as a flat dict of timm's names and layouts."""
    layout, flat = names.layout_of(model), flatten_dict(jax.device_get(params))
    return {
        layout.name(path): layout.write(path, np.asarray(array))
        for path, array in flat.items()
    }


def abstract_weights(model: Model) -> dict[names.Path, jax.ShapeDtypeStruct]:
    """Returns shape and type of every weight by its path, computing nothing."""
    return flatten_dict(jax.eval_shape(lambda: init_weights(model)))
