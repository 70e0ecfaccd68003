"""Datasets that are a tree of image files, with a folder to each class."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from diffrate_jax.data import (
    FOLDER,
    Batch,
    host_batch_size,
    num_batches,
    pad_batches,
    photo,
    steps_per_epoch,
)
from diffrate_jax.data.order import (
    evaluation_rows,
    sliced,
    split_name,
    training_rows,
)
from diffrate_jax.errors import UserError

SPLITS = ("train", "val", "validation", "test")
ALIASES = {"val": "validation", "validation": "val"}
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_THREADS, _BATCHES_AHEAD = min(16, os.cpu_count() or 1), 2

Photo = tuple[str, int]


class Folder:
    """Images in class folders, as ImageNet comes; see `diffrate_jax.data.Dataset`.

    The folder either holds splits, which are its folders ``train``, ``val``,
    ``validation`` and ``test``, or it is one split of its own name. ``val`` and
    ``validation`` mean the same. The class folders of all splits, sorted by name, are
    classes 0, 1 and so on; the images of a split are sorted by class, then by name.
    Hidden files, and files beside the class folders, are left out.
    """

    def __init__(
        self,
        path: str,
        *,
        image_size: int,
        crop: str = "none",
        resize: int | None = None,
        interpolation: str = "bicubic",
    ) -> None:
        """Finds splits and classes; `diffrate_jax.data.open_dataset` has the arguments.

        Raises:
            UserError: no such folder, or no class folders in it.
        """
        self.name = f"{FOLDER}{path}"
        self.image_size = image_size
        self._crop = crop
        self._size = {"image_size": image_size, "interpolation": interpolation}
        self._resize = resize or image_size
        self._splits = _splits(Path(path))
        names = {name for folder in self._splits.values() for name in _folders(folder)}
        self._classes = {name: label for label, name in enumerate(sorted(names))}
        self.num_classes = len(names)
        self._listed: dict[str, list[Photo]] = {}

    def size(self, split: str) -> int:
        """Returns the number of examples; see `Dataset.size`."""
        return len(self._select(split))

    def batches(
        self,
        split: str,
        *,
        batch_size: int,
        seed: int,
        start: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[Batch]:
        """Returns the training stream; see `Dataset.batches`."""
        share = host_batch_size(batch_size, process_count)
        steps_per_epoch(self, split, batch_size)
        photos = self._select(split)
        steps = training_rows(
            len(photos),
            batch_size=batch_size,
            seed=seed,
            start=start,
            first=process_index * share,
            share=share,
        )
        if self._crop == "none":
            return _read(photos, ((rows_B, self._central) for _, rows_B in steps))
        cropped = partial(self._cropped, seed)
        return _read(photos, ((rows, partial(cropped, epoch)) for epoch, rows in steps))

    def epoch(
        self,
        split: str,
        *,
        batch_size: int,
        start: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[Batch]:
        """Returns every example once; see `Dataset.epoch`."""
        share = host_batch_size(batch_size, process_count)
        photos = self._select(split)
        steps = evaluation_rows(
            len(photos),
            share=share,
            start=start,
            process_index=process_index,
            process_count=process_count,
        )
        return pad_batches(
            _read(photos, ((rows_B, self._central) for rows_B in steps)),
            count=num_batches(len(photos), batch_size) - start,
            batch_size=share,
            image_size=self.image_size,
        )

    def _select(self, split: str) -> list[Photo]:
        """Returns the photos of a split, sliced as its name says."""
        name = split_name(split, self._splits, self.name)
        if name not in self._listed:
            # Only now: a training split takes a minute on a slow disk.
            self._listed[name] = _photos(self._splits[name], self._classes)
        photos = self._listed[name]
        return photos[sliced(split, len(photos))]

    def _central(self, _: int, path: str) -> np.ndarray:
        """Returns what evaluation sees of a file, uint8 [Y, X, C]."""
        return photo.central(photo.read_photo(path), resize=self._resize, **self._size)

    def _cropped(self, seed: int, epoch: int, row: int, path: str) -> np.ndarray:
        """Returns what training sees of a file in an epoch, uint8 [Y, X, C]."""
        key = {"seed": seed, "epoch": epoch, "index": row}
        return photo.random_crop(photo.read_photo(path), **key, **self._size)


def _splits(root: Path) -> dict[str, Path]:
    """Returns the folders of the splits, by every name that a split has.

    Raises:
        UserError: no such folder, or no class folders in it.
    """
    if not root.is_dir():
        raise UserError(f"expected a folder of images at {root}, found none; check it")
    inside = set(_folders(root))
    found = {name: root / name for name in SPLITS if name in inside}
    found = {name: path for name, path in found.items() if _folders(path)}
    # A class may be called train, but a lone folder of that name is a split, emptied.
    if not found and inside - set(SPLITS):
        found = {root.resolve().name: root}
    if not found:
        raise UserError(
            f"expected folders of images in {root}, one to a class, found none; move "
            "each image into the folder of its class"
        )
    others = {ALIASES[name]: path for name, path in found.items() if name in ALIASES}
    return others | found


def _folders(folder: Path) -> list[str]:
    """Returns the names of the folders in a folder, but for hidden ones."""
    with os.scandir(folder) as entries:
        return [e.name for e in entries if e.is_dir() and not e.name.startswith(".")]


def _photos(folder: Path, classes: dict[str, int]) -> list[Photo]:
    """Returns the paths and labels of a split.

    Raises:
        UserError: something else than images in a class folder, or no image at all.
    """
    found = []
    for name in sorted(_folders(folder)):
        paths = [path for path in os.listdir(folder / name) if path[0] != "."]
        for path in sorted(paths):
            place = os.path.join(folder, name, path)
            if not path.lower().endswith(SUFFIXES):
                raise UserError(
                    f"a class folder must hold images alone, found {place}, whose "
                    f"name does not end in {', '.join(SUFFIXES)}; move it elsewhere"
                )
            found.append((place, classes[name]))
    if not found:
        raise UserError(
            f"expected images in the class folders of {folder}, found none; add some"
        )
    return found


def _read(
    photos: list[Photo],
    steps: Iterable[tuple[np.ndarray, Callable[[int, str], np.ndarray]]],
) -> Iterator[Batch]:
    """Yields batches, whose images threads read a few batches ahead.

    Args:
        photos: Of the split.
        steps: For each batch its rows [b], and what makes an image of row and path.
    """
    # Its threads end with it: whoever leaves the stream early lets go of both.
    pool, ahead = ThreadPoolExecutor(_THREADS), deque()

    def begin(rows_B: np.ndarray, image_of: Callable) -> tuple[Iterator, Sequence]:
        paths, labels = zip(*(photos[row] for row in rows_B), strict=True)
        return pool.map(image_of, rows_B.tolist(), paths), labels

    for rows_B, image_of in steps:
        ahead.append(begin(rows_B, image_of))
        if len(ahead) > _BATCHES_AHEAD:
            yield _batch(*ahead.popleft())
    while ahead:
        yield _batch(*ahead.popleft())


def _batch(images: Iterator[np.ndarray], labels: Sequence[int]) -> Batch:
    """Waits for the images of a batch."""
    return {"image": np.stack(list(images)), "label": np.array(labels, np.int32)}
