"""Weights in PyTorch's files; PyTorch itself is needed to read them."""

import argparse
import pickle
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diffrate_jax.errors import UserError
from diffrate_jax.sources import Tensors

# Where training scripts put the weights, averaged ones before others (as timm does).
ENTRIES = ("state_dict_ema", "model_ema", "state_dict", "model")
# What PyTorch's data-parallel wrappers put before every name.
WRAPPER = "module."


def from_pytorch(path: Path) -> tuple[Tensors, tuple[str, ...]]:
    """Opens a checkpoint; returns its tensors and what to know about them.

    Raises:
        UserError: PyTorch is missing, the file is not whole, it holds objects that
            only running its code would make, or it holds no weights.
    """
    found = loaded(path)
    entry = next((key for key in ENTRIES if is_weights(entry_of(found, key))), None)
    weights = found if entry is None else found[entry]
    if not is_weights(weights):
        keys = ", ".join(map(str, found)) if isinstance(found, Mapping) else found
        raise UserError(
            f"{path} holds no weights where they are looked for ({', '.join(ENTRIES)} "
            f"or at the top), found {str(keys)[:200]}; save its state_dict instead"
        )
    wrapped = all(name.startswith(WRAPPER) for name in weights)
    prefix = WRAPPER if wrapped else ""
    readers = {
        name.removeprefix(prefix): partial(as_numpy, tensor)
        for name, tensor in weights.items()
    }
    notes = () if entry is None else (f"weights are those of its entry {entry!r}",)
    return Tensors(readers), notes


def loaded(path: Path) -> Any:
    """Returns what a checkpoint holds, without running anything in it.

    Raises:
        UserError: see `from_pytorch`.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"reading {path} needs PyTorch, which is not installed; pip install torch, "
            "or give the weights as .safetensors"
        ) from error
    try:
        # Training scripts save their flags beside the weights; a namespace is data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(
                path,
                map_location="cpu",
                weights_only=True,
                mmap=zipfile.is_zipfile(path),
            )
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is damaged or holds more than tensors, and nothing of it was run; "
            "save its state_dict alone"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"cannot read the weights {path}: {reason}; give a whole PyTorch file"
        ) from error


def entry_of(found: Any, key: str) -> Any:
    """Returns an entry of a checkpoint, None if it has none."""
    return found.get(key) if isinstance(found, Mapping) else None


def is_weights(found: Any) -> bool:
    """Returns whether something is a non-empty dict of tensors."""
    import torch

    return (
        isinstance(found, Mapping)
        and len(found) > 0
        and all(isinstance(value, torch.Tensor) for value in found.values())
    )


def as_numpy(tensor: Any) -> np.ndarray:
    """Returns a PyTorch tensor as an array; NumPy knows no bfloat16."""
    import torch

    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
