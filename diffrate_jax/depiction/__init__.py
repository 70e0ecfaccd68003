"""From photos to pictures of their tokens: runs a model and collects what is shown."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from diffrate_jax.data.augment import normalise
from diffrate_jax.data.photo import central, read_photo
from diffrate_jax.depiction.trace import trace_blocks
from diffrate_jax.depiction.views import Guess, Picture, best_guesses, views_of
from diffrate_jax.models import Model, Params, forward
from diffrate_jax.models.vit import Compression
from diffrate_jax.preprocess import Preprocess
from diffrate_jax.progress import track

# Images that run through the model at once.
BATCH = 8


def read_image(path: Path, preprocess: Preprocess) -> np.ndarray:
    """Returns a photo as the model sees it, in bytes [Y, X, C].

    Raises:
        UserError: it cannot be read, or is damaged, or no image.
    """
    size = {"resize": preprocess.resize, "image_size": preprocess.image_size}
    return central(read_photo(path), interpolation=preprocess.interpolation, **size)


@dataclass(frozen=True)
class Depicter:
    """A model in place, with what is needed to show what it does.

    Attributes:
        model: architecture.
        params: its weights.
        compression: what is in place; None is the dense model.
        preprocess: what images went through; normalising, its end, is done here.
        labels: of the classes; none for their numbers.
    """

    model: Model
    params: Params
    compression: Compression | None
    preprocess: Preprocess
    labels: Sequence[str] = ()

    def pictures(self, images: Mapping[str, np.ndarray]) -> Iterator[Picture]:
        """Yields images with what became of their tokens, in their order.

        Args:
            images: bytes [Y, X, C] by their names.
        """
        names = list(images)
        with track(len(names), "visualize", unit="image") as bar:
            for start in range(0, len(names), BATCH):
                some = names[start : start + BATCH]
                yield from self._batch(some, [images[name] for name in some])
                bar.update(len(some))

    def _batch(
        self, names: Sequence[str], images: Sequence[np.ndarray]
    ) -> Iterator[Picture]:
        # The last batch is filled up: a shape of its own would be compiled anew.
        more = [images[-1]] * (BATCH - len(images))
        image_BYXC = normalise(
            np.stack([*images, *more]), self.preprocess.mean, self.preprocess.std
        )
        traced = trace_blocks(self.model, self.params, image_BYXC, self.compression)
        logits_BV, blocks = jax.device_get(traced)
        dense_BV = logits_BV
        if self.compression is not None:
            dense_BV = np.asarray(forward(self.model, self.params, image_BYXC).logits)
        for row, (name, image_YXC) in enumerate(zip(names, images, strict=True)):
            own = jax.tree.map(lambda values, row=row: values[row], blocks)
            views, pruned_P = views_of(
                own, image_YXC, self.model.geometry.prefix_tokens
            )
            compressed = (
                () if self.compression is None else self._guesses(logits_BV[row])
            )
            guesses = self._guesses(dense_BV[row]), compressed
            yield Picture(name, image_YXC, views, pruned_P, *guesses)

    def _guesses(self, logits_V: np.ndarray) -> tuple[Guess, ...]:
        """Returns the best guesses; none of a model without classes."""
        if not self.model.num_classes:
            return ()
        return best_guesses(logits_V, self.labels)
