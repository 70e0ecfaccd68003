"""Datasets that fit in memory, from one `.npz` file."""

import zipfile
from collections.abc import Callable, Iterator

import numpy as np

from diffrate_jax.data import (
    ARRAYS,
    Batch,
    host_batch_size,
    num_batches,
    pad_batches,
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
from diffrate_jax.data.stages import stages_of_arrays
from diffrate_jax.errors import UserError


class Arrays:
    """Images and labels of an `.npz` file; see `diffrate_jax.data.Dataset`.

    For each split the file holds ``<split>_image``, uint8 [N, Y, X, 3] in RGB, and
    ``<split>_label``, integers [N]. It may hold the scalar ``num_classes``; without
    it, the largest label of all splits is taken for the last class.
    """

    def __init__(
        self,
        path: str,
        *,
        image_size: int,
        rand_augment: RandAugment | None = None,
        repeats: int = 1,
    ) -> None:
        """Reads and checks the whole file; `open_dataset` explains the arguments.

        Raises:
            UserError: no such file, not an `.npz` file, or entries that are not as
                described above.
        """
        entries = _read(path)
        self.name = f"{ARRAYS}{path}"
        self.image_size = image_size
        self._rand_augment, self._repeats = rand_augment, repeats
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
        images_NYXC, labels_N = self._select(split)
        shares = self._shares(
            split, batch_size, seed, start, process_index * share, share
        )
        if self._rand_augment is not None:
            arrays = images_NYXC, labels_N
            return _augmented(*arrays, shares, seed, self._rand_augment)
        return (
            {"image": images_NYXC[own.rows_B], "label": labels_N[own.rows_B]}
            for own in shares
        )

    def stages(
        self, split: str, *, batch_size: int, seed: int
    ) -> dict[str, Callable[[], Iterator[int]]]:
        """Returns each stage of `batches` alone; see `Dataset.stages`."""
        images_NYXC, _ = self._select(split)

        def read() -> Iterator[np.ndarray]:
            shares = self._shares(split, batch_size, seed, 0, 0, batch_size)
            return (images_NYXC[own.rows_B] for own in shares)

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

    def _shares(
        self, split: str, batch_size: int, seed: int, start: int, first: int, share: int
    ) -> Iterator[Share]:
        """Returns which examples each training step has."""
        steps_per_epoch(self, split, batch_size)
        return training_rows(
            self.size(split),
            batch_size=batch_size,
            seed=seed,
            start=start,
            first=first,
            share=share,
            repeats=self._repeats,
        )

    def _select(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the images and labels of a split, sliced as its name says."""
        images_NYXC, labels_N = self._splits[split_name(split, self._splits, self.name)]
        rows = sliced(split, len(labels_N))
        return images_NYXC[rows], labels_N[rows]


def _augmented(
    images_NYXC: np.ndarray,
    labels_N: np.ndarray,
    shares: Iterator[Share],
    seed: int,
    how: RandAugment,
) -> Iterator[Batch]:
    """Yields batches after RandAugment."""
    # Only now: Pillow takes a while to load.
    from diffrate_jax.data.rand_augment_pil import rand_augment_array
    from diffrate_jax.data.threads import Work, batches_in_threads

    def work(share: Share) -> Work:
        return [(one,) for one in appearances(seed, share)], labels_N[share.rows_B]

    def image_of(appearance: Appearance) -> np.ndarray:
        return rand_augment_array(images_NYXC[appearance.index], how, appearance)

    return batches_in_threads(image_of, map(work, shares))


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
