"""The names that timm gives to weights, and the layouts it keeps them in."""

import re
from collections.abc import Mapping

import numpy as np

from diffrate_jax.models.vit import ViT
from diffrate_jax.sources import Tensors

Path = tuple[str, ...]

# Names that authors use where timm has its own.
RENAMED = ((r"\.gamma_([12])$", r".ls\1.gamma"), (r"^register_tokens$", "reg_token"))


def timm_name(path: Path) -> str:
    """Returns timm's name of a weight.

    >>> timm_name(("blocks_0", "attn", "qkv", "kernel"))
    'blocks.0.attn.qkv.weight'
    """
    leaf = {"kernel": "weight", "scale": "weight"}.get(path[-1], path[-1])
    name = ".".join((*path[:-1], leaf)).replace("blocks_", "blocks.")
    return name.replace("patch_embed.", "patch_embed.proj.")


def timm_shape(path: Path, shape: tuple[int, ...], patch_size: int) -> tuple[int, ...]:
    """Returns the shape that a weight has in timm."""
    if path == ("patch_embed", "kernel"):
        return (shape[1], 3, patch_size, patch_size)
    return shape[::-1] if path[-1] == "kernel" else shape


def from_timm(path: Path, array: np.ndarray) -> np.ndarray:
    """Returns a weight in our layout: dense kernels are [in, out]."""
    if path == ("patch_embed", "kernel"):
        return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
    return array.T if path[-1] == "kernel" else array


def to_timm(path: Path, array: np.ndarray, patch_size: int) -> np.ndarray:
    """Returns a weight in timm's layout."""
    if path == ("patch_embed", "kernel"):
        shape = (patch_size, patch_size, -1, array.shape[-1])
        return array.reshape(shape).transpose(3, 2, 0, 1)
    return array.T if path[-1] == "kernel" else array


def renamed(tensors: Mapping[str, np.ndarray], model: ViT) -> Tensors:
    """Returns tensors under timm's names, where authors released them under others.

    DeiT III names its layer scales otherwise. DINOv2 gives its class token a position
    although registers have none; timm adds that to the token itself, and so do we.
    """
    readers = {}
    for name in tensors:
        new = name
        for pattern, replacement in RENAMED:
            new = re.sub(pattern, replacement, new)
        readers[new] = lambda name=name: tensors[name]
    if "register_tokens" in tensors and not model.position_prefix:
        token, table = readers["cls_token"], readers["pos_embed"]
        readers["cls_token"] = lambda: token() + table()[:, :1]
        readers["pos_embed"] = lambda: table()[:, 1:]
    return Tensors(readers)
