"""What becomes of every token, block by block, in one forward pass.

Modules already return what is wanted here, attention its importance and a block its
tokens; Linen hands out both, so models neither know nor pay.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
from flax import linen as nn

from diffrate_jax.compress import Gathered
from diffrate_jax.models import Model, Params, check_images
from diffrate_jax.models.layers import Attention
from diffrate_jax.models.metaformer import AttentionBlock
from diffrate_jax.models.vit import Block
from diffrate_jax.schedule import Schedule
from diffrate_jax.shapes import Array
from diffrate_jax.tokens import Tokens
from diffrate_jax.tome import ToMe

# In the place of a token's number: there is none any more.
PRUNED = -1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockTrace:
    """One block, seen from the O tokens that the model or its stage began with.

    Attributes:
        owner: number of the token after the block that token o ended in [B, O];
            `PRUNED` where it was dropped.
        size: of the tokens after the block [B, K].
        importance: attention that each token coming in receives [B, N]: from the class
            token, or without one the mean over all tokens; it sums to 1.
    """

    owner: Array
    size: Array
    importance: Array


def trace_blocks(
    model: Model,
    params: Params,
    images: Array,
    compression: Gathered | ToMe | None = None,
) -> tuple[Array, tuple[BlockTrace, ...]]:
    """Runs a model and tells what each of its blocks did to the tokens.

    Args:
        model: from `create_model`.
        params: nested dict of weights.
        images: [B, Y, X, 3] float, normalised.
        compression: what is in place; None is the dense model.

    Returns:
        Logits [B, V], and the blocks that can compress in their order, those of a ViT
        or of CAFormer's third stage; in its fourth all tokens are back.

    Raises:
        UserError: images that are not the model's, or a schedule that is not.
    """
    check_images(model, images)
    if compression is None:
        compression = Gathered(Schedule.dense(model.geometry))
    compression.kept(model.geometry)
    return _traced(model, params, images, compression)


@functools.partial(jax.jit, static_argnames=("model",))
def _traced(
    model: Model, params: Params, images: Array, compression: Gathered | ToMe
) -> tuple[Array, tuple[BlockTrace, ...]]:
    output, captured = model.apply(
        {"params": params},
        images,
        compression,
        trace=True,
        capture_intermediates=_is_wanted,
        mutable=["intermediates"],
    )
    return output.logits, tuple(_blocks(captured["intermediates"]))


def _is_wanted(module: nn.Module, method: str) -> bool:
    """Returns whether what a method returns is to be kept."""
    kinds = (Block, AttentionBlock, Attention)
    return isinstance(module, kinds) and method == "__call__"


def _blocks(captured: dict) -> list[BlockTrace]:
    """Returns what was captured, in the order of the blocks."""
    found = []
    for name in sorted(captured, key=_numbers):
        (tokens,) = captured[name].pop("__call__")
        (attention,) = captured[name].values()
        if tokens.origin is not None:
            _, seen = attention["__call__"][0]
            found.append(BlockTrace(_owner(tokens), tokens.sizes(), seen.importance))
    return found


def _numbers(name: str) -> list[int]:
    """Returns the numbers in a name, by which blocks are in order."""
    return [int(number) for number in re.findall(r"\d+", name)]


def _owner(tokens: Tokens) -> Array:
    """Returns the number of the token that each original one ended in [B, O]."""
    owner_BO = jnp.argmax(tokens.origin, axis=1)
    return jnp.where(jnp.any(tokens.origin > 0, axis=1), owner_BO, PRUNED)
