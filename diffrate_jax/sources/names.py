"""The names that files give to weights, and the layouts they keep them in."""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from functools import partial

import numpy as np

from diffrate_jax.models import Model
from diffrate_jax.models.vit import ViT
from diffrate_jax.sources import Tensors, caformer

Path = tuple[str, ...]

# Names that authors use where timm has its own.
RENAMED = ((r"\.gamma_([12])$", r".ls\1.gamma"), (r"^register_tokens$", "reg_token"))


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a file names and arranges the weights of a model.

    Attributes:
        name: from a path in our nested dict to the name in the file.
        read: from (path, array of the file) to our array.
        write: from (path, our array) to the array of a file.
    """

    name: Callable[[Path], str]
    read: Callable[[Path, np.ndarray], np.ndarray]
    write: Callable[[Path, np.ndarray], np.ndarray]

    def shape(self, path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape in the file of one of our arrays."""
        return self.write(path, np.broadcast_to(np.float32(0), shape)).shape


def layout_of(model: Model, given: Collection[str] = ()) -> Layout:
    """Returns timm's layout, or that of CAFormer's authors if the names are theirs."""
    if isinstance(model, ViT):
        return Layout(
            timm_name, from_timm, partial(to_timm, patch_size=model.patch_size)
        )
    if any(name.startswith("downsample_layers.") for name in given):
        return Layout(
            caformer.authors_name,
            caformer.from_torch,
            caformer.to_authors,
        )
    return Layout(caformer.timm_name, caformer.from_torch, caformer.to_timm)


def timm_name(path: Path) -> str:
    """Returns timm's name of a weight.

    >>> timm_name(("blocks_0", "attn", "qkv", "kernel"))
    'blocks.0.attn.qkv.weight'
    """
    leaf = {"kernel": "weight", "scale": "weight"}.get(path[-1], path[-1])
    name = ".".join((*path[:-1], leaf)).replace("blocks_", "blocks.")
    return name.replace("patch_embed.", "patch_embed.proj.")


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


def renamed(tensors: Mapping[str, np.ndarray], model: Model) -> Tensors:
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
    if "register_tokens" in tensors and not getattr(model, "position_prefix", True):
        token, table = readers["cls_token"], readers["pos_embed"]
        readers["cls_token"] = lambda: token() + table()[:, :1]
        readers["pos_embed"] = lambda: table()[:, 1:]
    return Tensors(readers)
