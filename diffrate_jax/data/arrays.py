"""Datasets that fit in memory, from one `.npz` file."""

import zipfile
from collections.abc import Iterator

import numpy as np

from diffrate_jax.data import (
    ARRAYS,
    Batch,
    host_batch_size,
    num_batches,
    pad_batches,
    steps_per_epoch,
)
from diffrate_jax.data.order import (
    evaluation_rows,
    sliced,
    split_name,
    training_rows,
)
from diffrate_jax.errors import UserError


class Arrays:
    """Images and labels of an `.npz` file; see `diffrate_jax.data.Dataset`.

    For each split the file holds ``<split>_image``, uint8 [N, Y, X, 3] in RGB, and
    ``<split>_label``, integers [N]. It may hold the scalar ``num_classes``; without
    it, the largest label of all splits is taken for the last class.
    """

    def __init__(self, path: str, *, image_size: int) -> None:
        """Reads and checks the whole file.

        Raises:
            UserError: no such file, not an `.npz` file, or entries that are not as
                described above.
        """
        entries = _read(path)
        self.name = f"{ARRAYS}{path}"
        self.image_size = image_size
        declared = entries.pop("num_classes", None)
        self._splits = {
            split: _checked(path, split, entries, image_size)
            for split in _split_names(path, entries)
        }
        labels_N = np.concatenate([labels_N for _, labels_N in self._splits.values()])
        self.num_classes = _num_classes(path, labels_N, declared)

    def size(self, split: str) -> int:
        """Returns the number of examples; see `Dataset.size`."""
        return len(self._select(split)[1])

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
        images_NYXC, labels_N = self._select(split)
        rows = training_rows(
            len(labels_N),
            batch_size=batch_size,
            seed=seed,
            start=start,
            first=process_index * share,
            share=share,
        )
        return (
            {"image": images_NYXC[rows_B], "label": labels_N[rows_B]}
            for _, rows_B in rows
        )

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
        images_NYXC, labels_N = self._select(split)
        rows = evaluation_rows(
            len(labels_N),
            share=share,
            start=start,
            process_index=process_index,
            process_count=process_count,
        )
        return pad_batches(
            ({"image": images_NYXC[row_B], "label": labels_N[row_B]} for row_B in rows),
            count=num_batches(len(labels_N), batch_size) - start,
            batch_size=share,
            image_size=self.image_size,
        )

    def _select(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the images and labels of a split, sliced as its name says."""
        images_NYXC, labels_N = self._splits[split_name(split, self._splits, self.name)]
        rows = sliced(split, len(labels_N))
        return images_NYXC[rows], labels_N[rows]


def _read(path: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {entry: archive[entry] for entry in archive.files}
    except OSError as error:
        raise UserError(
            f"expected a readable .npz file at {path}, found none "
            f"({error.strerror or error}); check the path"
        ) from error
    except (ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as e:
        raise UserError(
            f"expected an .npz file of plain arrays at {path}, found something else; "
            "write it with numpy.savez"
        ) from e


def _split_names(path: str, entries: dict[str, np.ndarray]) -> list[str]:
    """Returns the splits of a file whose entries all come in pairs."""
    names = {entry.removesuffix("_image").removesuffix("_label") for entry in entries}
    expected = {f"{name}_{part}" for name in names for part in ("image", "label")}
    wrong = sorted(expected ^ set(entries))
    if wrong or not entries:
        raise UserError(
            "expected pairs of entries <split>_image and <split>_label in "
            f"{path}, found {', '.join(sorted(entries)) or 'none'}; rename or add them"
        )
    return sorted(names)


def _checked(
    path: str, split: str, entries: dict[str, np.ndarray], image_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a split's images, uint8 [N, Y, X, 3], and its labels, int32 [N]."""
    images_NYXC, labels_N = entries[f"{split}_image"], entries[f"{split}_label"]
    shape, size = images_NYXC.shape, image_size
    if images_NYXC.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
        raise UserError(
            f"{split}_image in {path} must be uint8 [N, Y, X, 3], found "
            f"{images_NYXC.dtype} {list(shape)}; convert it to RGB bytes"
        )
    if shape[1:3] != (size, size):
        raise UserError(
            f"{split}_image in {path} must be {size} x {size} pixels, found "
            f"{shape[1]} x {shape[2]}; resize the images or set image_size"
        )
    if not np.issubdtype(labels_N.dtype, np.integer) or labels_N.shape != shape[:1]:
        raise UserError(
            f"{split}_label in {path} must be {shape[0]} integers, one per image, "
            f"found {labels_N.dtype} {list(labels_N.shape)}; give one label per image"
        )
    if not len(labels_N):
        raise UserError(
            f"split {split!r} in {path} must have examples, found none; add some or "
            "leave it out"
        )
    return images_NYXC, labels_N.astype(np.int32)


def _num_classes(path: str, labels_N: np.ndarray, declared: np.ndarray | None) -> int:
    """Returns the number of classes, having checked that every label is one."""
    if declared is None:
        num_classes = int(labels_N.max()) + 1
    elif declared.shape == () and np.issubdtype(declared.dtype, np.integer):
        num_classes = int(declared)
    else:
        raise UserError(
            f"num_classes in {path} must be one integer, found {declared.dtype} "
            f"{list(declared.shape)}; correct it or leave it out"
        )
    if labels_N.min() < 0 or labels_N.max() >= num_classes:
        raise UserError(
            f"labels in {path} must be 0 to {num_classes - 1}, found "
            f"{labels_N.min()} to {labels_N.max()}; renumber the classes"
        )
    return num_classes
