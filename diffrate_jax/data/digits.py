"""Handwritten digits as a TensorFlow dataset that needs no download.

The 1,797 images of 8 x 8 pixels that come with scikit-learn (UCI ML hand-written
digits), enlarged to 32 x 32: small enough to train on a laptop in minutes.
"""

import contextlib
import io
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

_IMAGE_SIZE = 32
_NUM_TEST = 600
_SPLIT_SEED = 0


class Digits(tfds.core.GeneratorBasedBuilder):
    """Ten digits, 1,197 images for training and 600 for testing."""

    VERSION = tfds.core.Version("1.0.0")
    # No downloads, hence no checksums; looking for them takes TFDS to a module that it
    # forgets to require.
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        shape = (_IMAGE_SIZE, _IMAGE_SIZE, 3)
        features = {
            "image": tfds.features.Image(shape=shape, encoding_format="png"),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator]:
        del dl_manager  # nothing to download
        # Only whoever makes the dataset needs scikit-learn, not whoever reads it.
        from sklearn.datasets import load_digits

        digits = load_digits()
        images_NYX, labels_N = digits.images, digits.target
        test_N = _stratified(labels_N, _NUM_TEST)
        return {
            "train": self._generate_examples(images_NYX, labels_N, ~test_N),
            "test": self._generate_examples(images_NYX, labels_N, test_N),
        }

    def _generate_examples(
        self, images_NYX: np.ndarray, labels_N: np.ndarray, chosen_N: np.ndarray
    ) -> Iterator[tuple[int, dict]]:
        for row in np.flatnonzero(chosen_N).tolist():
            image_YXC = _enlarge(images_NYX[row])
            yield row, {"image": image_YXC, "label": int(labels_N[row])}


def prepare(data_dir: str | None) -> Digits:
    """Returns the builder of the dataset, writing it under `data_dir` if needed.

    Interrupted or simultaneous calls do no harm: the files are written elsewhere and
    moved into place when complete, and whoever comes second uses what it finds.
    """
    builder = Digits(data_dir=data_dir)
    noise = io.StringIO()
    try:
        with contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
            builder.download_and_prepare()
    except OSError:
        builder = Digits(data_dir=data_dir)
        if not builder.is_prepared():
            raise
    return builder


def _stratified(labels_N: np.ndarray, count: int) -> np.ndarray:
    """Returns a mask of `count` examples, each class within one of its share.

    Examples are put in a random order within each class, the classes one after the
    other, and picked at even distances.
    """
    size = len(labels_N)
    order_N = np.argsort(np.random.Philox(_SPLIT_SEED).random_raw(size), kind="stable")
    order_N = order_N[np.argsort(labels_N[order_N], kind="stable")]
    chosen_N = np.diff(np.arange(size + 1) * count // size) == 1
    mask_N = np.zeros(size, bool)
    mask_N[order_N[chosen_N]] = True
    return mask_N


def _enlarge(image_YX: np.ndarray) -> np.ndarray:
    """Turns 8 x 8 values in 0..16 into 32 x 32 RGB bytes."""
    # Pillow computes in integers: the same bytes on every machine.
    from PIL import Image

    grey = Image.fromarray(np.round(image_YX * (255 / 16)).astype(np.uint8))
    size = (_IMAGE_SIZE, _IMAGE_SIZE)
    return np.asarray(grey.resize(size, Image.Resampling.BICUBIC).convert("RGB"))
