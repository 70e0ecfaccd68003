"""Weights of the first ViT and AugReg releases: an `.npz` in Google's own layout."""

import re
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from diffrate_jax.errors import UserError
from diffrate_jax.sources import Tensors

Reader = Callable[[], np.ndarray]
ATTENTION = "MultiHeadDotProductAttention_1"
BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/(.+)")


def of_patches(kernel_YXCD: np.ndarray) -> np.ndarray:
    """Returns the convolution of the patches in PyTorch's layout [D, C, Y, X]."""
    return kernel_YXCD.transpose(3, 2, 0, 1)


def of_projection(kernel_HED: np.ndarray) -> np.ndarray:
    """Returns the projection after attention as a matrix [D, H * E]."""
    return kernel_HED.reshape(-1, kernel_HED.shape[-1]).T


# From names there (after any "opt/target/") to timm's, and to PyTorch's layout.
OUTSIDE = {
    "cls": ("cls_token", np.asarray),
    "Transformer/posembed_input/pos_embedding": ("pos_embed", np.asarray),
    "Transformer/encoder_norm/scale": ("norm.weight", np.asarray),
    "Transformer/encoder_norm/bias": ("norm.bias", np.asarray),
    "embedding/kernel": ("patch_embed.proj.weight", of_patches),
    "embedding/bias": ("patch_embed.proj.bias", np.asarray),
    "head/kernel": ("head.weight", np.transpose),
    "head/bias": ("head.bias", np.asarray),
}
IN_BLOCK = {
    "LayerNorm_0/scale": ("norm1.weight", np.asarray),
    "LayerNorm_0/bias": ("norm1.bias", np.asarray),
    "LayerNorm_2/scale": ("norm2.weight", np.asarray),
    "LayerNorm_2/bias": ("norm2.bias", np.asarray),
    "MlpBlock_3/Dense_0/kernel": ("mlp.fc1.weight", np.transpose),
    "MlpBlock_3/Dense_0/bias": ("mlp.fc1.bias", np.asarray),
    "MlpBlock_3/Dense_1/kernel": ("mlp.fc2.weight", np.transpose),
    "MlpBlock_3/Dense_1/bias": ("mlp.fc2.bias", np.asarray),
    f"{ATTENTION}/out/kernel": ("attn.proj.weight", of_projection),
    f"{ATTENTION}/out/bias": ("attn.proj.bias", np.asarray),
}


def from_npz(path: Path) -> Tensors:
    """Opens an `.npz` of Google's layout, or of timm's names.

    Raises:
        UserError: it is not a whole file of arrays, or holds pickled objects.
    """
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"cannot read the weights {path}: it is no archive, or was cut off; give a "
            "whole .npz of arrays"
        )
    file = np.load(path, allow_pickle=False)
    names = list(file)

    def read(name: str) -> np.ndarray:
        try:
            return file[name]
        except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
            raise UserError(
                f"cannot read {name} in {path}: {error}; give a whole .npz of arrays"
            ) from error

    if not any("/" in name for name in names):
        return Tensors({name: partial(read, name) for name in names})
    prefix = "opt/target/" if any(n.startswith("opt/target/") for n in names) else ""
    own = {name.removeprefix(prefix): partial(read, name) for name in names}
    return Tensors(timm_readers(own))


def timm_readers(own: Mapping[str, Reader]) -> dict[str, Reader]:
    """Returns readers under timm's names; what has none keeps its own name."""
    found = {}
    for name, read in own.items():
        block = BLOCK.fullmatch(name)
        start, inner = (f"blocks.{block[1]}.", block[2]) if block else ("", name)
        table = IN_BLOCK if block else OUTSIDE
        if inner in table:
            new, change = table[inner]
            found[start + new] = lambda read=read, change=change: change(read())
        elif inner == f"{ATTENTION}/query/kernel":
            layer = name.removesuffix("/query/kernel")
            for kind, leaf in (("kernel", "weight"), ("bias", "bias")):
                new = f"{start}attn.qkv.{leaf}"
                found[new] = partial(joined, own, layer, kind)
        elif not inner.startswith(f"{ATTENTION}/"):
            found[name] = read
    return found


def joined(own: Mapping[str, Reader], layer: str, kind: str) -> np.ndarray:
    """Returns the query, key and value projections of a block as one.

    Args:
        own: readers by Google's names.
        layer: name of the attention layer.
        kind: "kernel", each [D, H, E], or "bias", each [H, E].

    Raises:
        UserError: one of the three is missing.
    """
    parts = [f"{layer}/{part}/{kind}" for part in ("query", "key", "value")]
    missing = [name for name in parts if name not in own]
    if missing:
        raise UserError(f"the weights lack {', '.join(missing)}; give a whole file")
    arrays = [own[name]() for name in parts]
    if kind == "bias":
        return np.concatenate([array.reshape(-1) for array in arrays])
    return np.concatenate([array.reshape(len(array), -1).T for array in arrays])
