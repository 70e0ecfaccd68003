"""Distillation: compressed weights learn what the dense model says of an image."""

import jax

from diffrate_jax.learning.objective import MATCH_DENSE, distance
from diffrate_jax.models import Model, Params, forward
from diffrate_jax.shapes import Array


def taught(model: Model, teacher: Params, images: Array) -> Array:
    """Returns the logits [B, V] of the dense model, without gradient and dropped paths.

    Args:
        model: that teacher and student share; only the student is compressed.
        teacher: its weights.
        images: those that the student sees, augmented alike.
    """
    return jax.lax.stop_gradient(forward(model, teacher, images).logits)


def distillation(logits_BV: Array, taught_BV: Array, temperature: float) -> Array:
    """Returns each image's divergence from the teacher [B].

    Both outputs are softened by the temperature, whose square keeps the gradient's
    size (Hinton et al., arXiv 1503.02531, section 2).

    Args:
        logits_BV: of the student.
        taught_BV: of the teacher.
        temperature: 1 compares the probabilities as they are.
    """
    wanted_BV = jax.nn.softmax(taught_BV / temperature)
    return temperature**2 * distance(MATCH_DENSE, logits_BV / temperature, wanted_BV)
