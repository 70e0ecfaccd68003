"""Files of weights, wherever they come from, as tensors under timm's names.

Nothing in a file is executed: pickles go through PyTorch's weights-only loading.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from diffrate_jax.errors import UserError

HUB = "hf-hub:"
WEIGHTS, ABOUT = "weights.safetensors", "model.json"
KINDS = (
    ".safetensors, .pth, .pt, .bin, .npz, a folder that convert wrote, or "
    "hf-hub:OWNER/NAME"
)


class Tensors(Mapping[str, np.ndarray]):
    """Tensors by name, each read from its file when it is asked for.

    Args:
        readers: from a name to the function that reads its tensor.
    """

    def __init__(self, readers: Mapping[str, Callable[[], np.ndarray]]) -> None:
        self.readers = dict(readers)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.readers)

    def __len__(self) -> int:
        return len(self.readers)


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened source of weights.

    Attributes:
        tensors: by the names of the file.
        path: of the file; None where the tensors came from memory.
        notes: what a user should know about how it was read.
    """

    tensors: Mapping[str, np.ndarray]
    path: Path | None = None
    notes: tuple[str, ...] = ()


def local_path(source: str | os.PathLike) -> Path:
    """Returns the file that a path or an id of the Hugging Face hub stands for.

    Raises:
        UserError: there is none.
    """
    if str(source).startswith(HUB):
        from diffrate_jax.sources.hub import fetched

        return fetched(str(source).removeprefix(HUB))
    path = Path(source)
    path = path / WEIGHTS if path.is_dir() else path
    if not path.is_file():
        raise UserError(
            f"cannot read the weights {source}: there is no such file; give {KINDS}"
        )
    return path


def open_source(source: str | os.PathLike | Mapping[str, np.ndarray]) -> Source:
    """Opens a file, a folder, an id of the Hugging Face hub, or a dict of tensors.

    Raises:
        UserError: it does not exist, is not whole, or is of no kind that is known.
    """
    if isinstance(source, Mapping):
        return Source(source)
    path = local_path(source)
    if path.suffix == ".safetensors":
        return Source(from_safetensors(path), path)
    if path.suffix in (".pth", ".pt", ".bin"):
        from diffrate_jax.sources.pytorch import from_pytorch

        tensors, notes = from_pytorch(path)
        return Source(tensors, path, notes)
    if path.suffix == ".npz":
        from diffrate_jax.sources.google import from_npz

        return Source(from_npz(path), path)
    raise UserError(
        f"cannot tell what kind of weights {source} holds; expected {KINDS}"
    )


def from_safetensors(path: Path) -> Tensors:
    """Opens a safetensors file; tensors are read one by one.

    Raises:
        UserError: it is not a whole safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, "numpy")
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot read the weights {path}: {error}; give a whole safetensors file"
        ) from error
    return Tensors({name: partial(file.get_tensor, name) for name in file.keys()})  # noqa: SIM118
