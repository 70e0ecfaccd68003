"""What pages and figures show of an image: its tokens after every block."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from diffrate_jax.depiction.groups import Group, group_patches, patch_colours
from diffrate_jax.depiction.trace import PRUNED, BlockTrace

# How many of a model's guesses are shown.
GUESSES = 3


@dataclasses.dataclass(frozen=True)
class Guess:
    """A class that a model thinks of, and how probable it is, from 0 to 1."""

    label: str
    probability: float


@dataclasses.dataclass(frozen=True)
class View:
    """An image after a block.

    Attributes:
        block: its number.
        groups: the tokens that are left, prefix tokens left out.
        importance_P: share of the attention that went to the token with which a patch
            came into the block; not a number where it was pruned before.
    """

    block: int
    groups: tuple[Group, ...]
    importance_P: np.ndarray


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image with all that is shown of it.

    Attributes:
        name: of its file.
        image_YXC: as the model sees it, in bytes.
        views: one for each block.
        pruned_P: the block that pruned each patch; `PRUNED` where none did.
        dense: guesses of the model as it is, the most probable first.
        compressed: and of the model with compression in place.
    """

    name: str
    image_YXC: np.ndarray
    views: tuple[View, ...]
    pruned_P: np.ndarray
    dense: tuple[Guess, ...] = ()
    compressed: tuple[Guess, ...] = ()

    @property
    def side(self) -> int:
        """Patches in a row."""
        return round(len(self.pruned_P) ** 0.5)


def views_of(
    blocks: Sequence[BlockTrace], image_YXC: np.ndarray, prefix_tokens: int
) -> tuple[tuple[View, ...], np.ndarray]:
    """Returns one image after each block, and the block that pruned each patch.

    Args:
        blocks: of this image alone, without the batch.
        image_YXC: as the model sees it, in bytes.
        prefix_tokens: of the model.
    """
    came_P = np.arange(prefix_tokens, len(blocks[0].owner))
    pruned_P = np.full(len(came_P), PRUNED)
    colour_PC = patch_colours(image_YXC, round(len(came_P) ** 0.5))
    views = []
    for number, block in enumerate(blocks):
        owner_P = np.asarray(block.owner)[prefix_tokens:]
        importance_N = np.asarray(block.importance, float)
        importance_P = np.where(came_P == PRUNED, np.nan, importance_N[came_P])
        groups = group_patches(owner_P, np.asarray(block.size), colour_PC)
        views.append(View(number, groups, importance_P))
        pruned_P[(owner_P == PRUNED) & (came_P != PRUNED)] = number
        came_P = owner_P
    return tuple(views), pruned_P


def best_guesses(logits_V: np.ndarray, labels: Sequence[str]) -> tuple[Guess, ...]:
    """Returns the most probable classes, the first first; of equals the lower number.

    Args:
        logits_V: of one image.
        labels: of the classes; numbers if there are none.
    """
    logits_V = np.asarray(logits_V, float)
    exp_V = np.exp(logits_V - logits_V.max())
    best = np.argsort(-logits_V, kind="stable")[:GUESSES]
    name = lambda number: labels[number] if labels else f"class {number}"  # noqa: E731
    return tuple(Guess(name(n), float(exp_V[n] / exp_V.sum())) for n in best)
