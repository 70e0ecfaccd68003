"""What a search minimises besides cost, for each image."""

import jax
import jax.numpy as jnp
import optax

from diffrate_jax.models import Model, Params, forward
from diffrate_jax.shapes import Array

MATCH_LOGITS, MATCH_DENSE = "match_logits", "match_dense"
CROSS_ENTROPY = "cross_entropy"
# Far below any difference that matters; a root has no gradient at 0.
EPSILON = 1e-12


def wanted_outputs(
    objective: str, model: Model, params: Params, images: Array, labels_BV: Array
) -> Array:
    """Returns what an objective wants a model to give [B, V].

    Args:
        objective: "cross_entropy" wants the labels; the others what the dense model
            says, which tells more than a label does and needs none: "match_dense" its
            probabilities, "match_logits" its logits.
        model: uncompressed.
        params: its weights.
        images: normalised.
        labels_BV: probabilities; used by "cross_entropy" alone.
    """
    if objective == CROSS_ENTROPY:
        return labels_BV
    logits_BV = jax.lax.stop_gradient(forward(model, params, images).logits)
    return logits_BV if objective == MATCH_LOGITS else jax.nn.softmax(logits_BV)


def distance(objective: str, logits_BV: Array, wanted_BV: Array) -> Array:
    """Returns each image's loss [B].

    That is cross entropy, Kullback-Leibler divergence ("match_dense"), or the root of
    the mean square of what logits differ by, but for a constant ("match_logits"). Of
    the divergence a few images, on which the dense model is uncertain, bring most; a
    difference between two schedules shows in about a third of the images by logits.
    """
    if objective == MATCH_LOGITS:
        apart_BV = logits_BV - wanted_BV
        return jnp.sqrt(jnp.var(apart_BV, axis=-1) + EPSILON)
    if objective == CROSS_ENTROPY:
        return optax.softmax_cross_entropy(logits_BV, wanted_BV)
    log_BV = jax.nn.log_softmax(logits_BV)
    return jnp.sum(jax.scipy.special.xlogy(wanted_BV, wanted_BV), -1) - jnp.sum(
        wanted_BV * log_BV, axis=-1
    )
