"""What a search minimises besides cost, for each image."""

import jax
import jax.numpy as jnp
import optax

from diffrate_jax.models import Model, Params, forward
from diffrate_jax.shapes import Array

MATCH_DENSE, CROSS_ENTROPY = "match_dense", "cross_entropy"


def wanted_outputs(
    objective: str, model: Model, params: Params, images: Array, labels_BV: Array
) -> Array:
    """Returns the probabilities [B, V] that an objective wants a model to give.

    Args:
        objective: "cross_entropy" wants the labels, "match_dense" what the dense model
            says, which tells more than a label does and needs none.
        model: uncompressed.
        params: its weights.
        images: normalised.
        labels_BV: of the images; not used by "match_dense".
    """
    if objective == CROSS_ENTROPY:
        return labels_BV
    return jax.lax.stop_gradient(jax.nn.softmax(forward(model, params, images).logits))


def distance(objective: str, logits_BV: Array, wanted_BV: Array) -> Array:
    """Returns each image's loss [B]: cross entropy, or Kullback-Leibler divergence."""
    if objective == CROSS_ENTROPY:
        return optax.softmax_cross_entropy(logits_BV, wanted_BV)
    log_BV = jax.nn.log_softmax(logits_BV)
    return jnp.sum(jax.scipy.special.xlogy(wanted_BV, wanted_BV), -1) - jnp.sum(
        wanted_BV * log_BV, axis=-1
    )
