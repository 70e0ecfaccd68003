"""An exponential moving average of the weights, smoother than the last of them."""

import jax
import jax.numpy as jnp

from diffrate_jax.models import Params
from diffrate_jax.shapes import Array


def averaged(average: Params, params: Params, decay: float, step: Array) -> Params:
    """Returns the average after a step.

    Its decay is (1 + step) / (10 + step) as long as that is less, so that a short run
    does not end near the weights that it started from.

    Args:
        average: before.
        params: the weights after the step.
        decay: share of the average that is kept in the long run; with 0 it is the
            weights themselves.
        step: steps done before this one.
    """
    kept = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, w: kept * a + (1.0 - kept) * w, average, params)
