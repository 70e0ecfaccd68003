"""Weights under timm's names, into the nested dict of the models and back."""

import os
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from diffrate_jax.errors import UserError
from diffrate_jax.models import Params, init_weights
from diffrate_jax.models.vit import ViT

Source = str | os.PathLike | Mapping[str, np.ndarray]


def load_weights(model: ViT, source: Source) -> Params:
    """Returns a model's weights from a file or a dict under timm's names.

    Args:
        model: from `create_model`.
        source: path of a `.safetensors` file, or a dict of arrays.

    Raises:
        UserError: a tensor that is missing, left over, of another shape, or not
            finite; all of them are listed together. Or a file that cannot be read.
    """
    given = dict(source) if isinstance(source, Mapping) else read_safetensors(source)
    expected = abstract_weights(model)
    names = {timm_name(path): path for path in expected}
    problems = [f"missing {name}" for name in names if name not in given]
    problems += [f"unexpected {name}" for name in given if name not in names]
    params = {}
    for name in names.keys() & given.keys():
        array, path = np.asarray(given[name]), names[name]
        shape = timm_shape(path, expected[path].shape, model.patch_size)
        if array.shape != shape:
            problems.append(f"{name} has shape {array.shape}, expected {shape}")
        elif not np.isfinite(array.astype(np.float32)).all():
            problems.append(f"{name} holds values that are not finite")
        else:
            params[path] = from_timm(path, array.astype(np.float32))
    if problems:
        raise UserError(
            "the weights do not fit the model: "
            + "; ".join(sorted(problems))
            + "; give weights of this architecture"
        )
    return unflatten_dict(params)


def save_weights(model: ViT, params: Params, path: str | os.PathLike) -> None:
    """Writes weights as safetensors under timm's names, whole or not at all."""
    from safetensors.numpy import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    tensors = to_timm(model, params)
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, part)
    os.replace(part, path)


def to_timm(model: ViT, params: Params) -> dict[str, np.ndarray]:
    """Returns the weights as a flat dict of timm's names and layouts."""
    tensors = {}
    for path, array in flatten_dict(jax.device_get(params)).items():
        array = np.asarray(array)
        if path == ("patch_embed", "kernel"):
            size = model.patch_size
            array = array.reshape(size, size, -1, array.shape[-1]).transpose(3, 2, 0, 1)
        elif path[-1] == "kernel":
            array = array.T
        tensors[timm_name(path)] = array
    return tensors


def abstract_weights(model: ViT) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    """Returns shape and type of every weight by its path, computing nothing."""
    return flatten_dict(jax.eval_shape(lambda: init_weights(model)))


def timm_name(path: tuple[str, ...]) -> str:
    """Returns timm's name of a weight.

    >>> timm_name(("blocks_0", "attn", "qkv", "kernel"))
    'blocks.0.attn.qkv.weight'
    """
    leaf = {"kernel": "weight", "scale": "weight"}.get(path[-1], path[-1])
    name = ".".join((*path[:-1], leaf)).replace("blocks_", "blocks.")
    return name.replace("patch_embed.", "patch_embed.proj.")


def timm_shape(
    path: tuple[str, ...], shape: tuple[int, ...], patch_size: int
) -> tuple[int, ...]:
    """Returns the shape that a weight has in timm."""
    if path == ("patch_embed", "kernel"):
        return (shape[1], 3, patch_size, patch_size)
    return shape[::-1] if path[-1] == "kernel" else shape


def from_timm(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    """Returns a weight in our layout: dense kernels are [in, out]."""
    if path == ("patch_embed", "kernel"):
        return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
    return array.T if path[-1] == "kernel" else array


def read_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a safetensors file.

    Raises:
        UserError: no such file, or not a whole safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if Path(path).suffix != ".safetensors":
        raise UserError(
            f"weights must be a .safetensors file or a dict of arrays, got {path}"
        )
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot read the weights {path}: {error}; give a whole safetensors file"
        ) from error
