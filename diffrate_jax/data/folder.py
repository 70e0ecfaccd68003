"""Datasets that are a tree of image files, with a folder to each class."""

import os
from collections.abc import Callable, Iterator
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
from diffrate_jax.data.chance import Appearance
from diffrate_jax.data.order import (
    Share,
    appearances,
    evaluation_rows,
    sliced,
    split_name,
    training_rows,
)
from diffrate_jax.data.rand_augment import RandAugment
from diffrate_jax.data.rand_augment_pil import rand_augment_array
from diffrate_jax.data.stages import stages_of_arrays
from diffrate_jax.data.threads import Work, batches_in_threads, made_in_threads
from diffrate_jax.errors import UserError

SPLITS = ("train", "val", "validation", "test")
ALIASES = {"val": "validation", "validation": "val"}
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

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
        rand_augment: RandAugment | None = None,
        repeats: int = 1,
    ) -> None:
        """Finds splits and classes; `diffrate_jax.data.open_dataset` has the arguments.

        Raises:
            UserError: no such folder, or no class folders in it.
        """
        self.name = f"{FOLDER}{path}"
        self.image_size = image_size
        self._crop, self._rand_augment, self._repeats = crop, rand_augment, repeats
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
        steps = self._steps(
            split, batch_size, seed, start, process_index * share, share
        )
        return batches_in_threads(self._trained, steps)

    def stages(
        self, split: str, *, batch_size: int, seed: int
    ) -> dict[str, Callable[[], Iterator[int]]]:
        """Returns each stage of `batches` alone; see `Dataset.stages`."""

        def read() -> Iterator[list[np.ndarray]]:
            steps = self._steps(split, batch_size, seed, 0, 0, batch_size)
            return (images for images, _ in made_in_threads(self._cropped, steps))

        return stages_of_arrays(read, self._rand_augment)

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
            batches_in_threads(
                self._central, (_files(photos, rows_B) for rows_B in steps)
            ),
            count=num_batches(len(photos), batch_size) - start,
            batch_size=share,
            image_size=self.image_size,
        )

    def _steps(
        self, split: str, batch_size: int, seed: int, start: int, first: int, share: int
    ) -> Iterator[Work]:
        """Returns what makes the images of each training step, and their labels."""
        steps_per_epoch(self, split, batch_size)
        photos = self._select(split)
        shares = training_rows(
            len(photos),
            batch_size=batch_size,
            seed=seed,
            start=start,
            first=first,
            share=share,
            repeats=self._repeats,
        )
        return (_work(photos, seed, own) for own in shares)

    def _select(self, split: str) -> list[Photo]:
        """Returns the photos of a split, sliced as its name says."""
        name = split_name(split, self._splits, self.name)
        if name not in self._listed:
            # Only now: a training split takes a minute on a slow disk.
            self._listed[name] = _photos(self._splits[name], self._classes)
        photos = self._listed[name]
        return photos[sliced(split, len(photos))]

    def _central(self, path: str) -> np.ndarray:
        """Returns what evaluation sees of a file, uint8 [Y, X, C]."""
        return photo.central(photo.read_photo(path), resize=self._resize, **self._size)

    def _cropped(self, appearance: Appearance, path: str) -> np.ndarray:
        """Returns what training makes of a file before RandAugment, uint8 [Y, X, C]."""
        if self._crop == "none":
            return self._central(path)
        return photo.random_crop(photo.read_photo(path), appearance, **self._size)

    def _trained(self, appearance: Appearance, path: str) -> np.ndarray:
        """Returns what training sees of a file, uint8 [Y, X, C]."""
        image_YXC = self._cropped(appearance, path)
        if self._rand_augment is None:
            return image_YXC
        return rand_augment_array(image_YXC, self._rand_augment, appearance)


def _work(photos: list[Photo], seed: int, share: Share) -> Work:
    """Returns how each image of a training step appears, its file, and its label."""
    files, labels = _files(photos, share.rows_B)
    work = zip(appearances(seed, share), files, strict=True)
    return [(appearance, path) for appearance, (path,) in work], labels


def _files(photos: list[Photo], rows_B: np.ndarray) -> Work:
    """Returns the files of some examples, and their labels."""
    paths, labels = zip(*(photos[row] for row in rows_B), strict=True)
    return [(path,) for path in paths], labels


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
