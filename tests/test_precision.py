"""bfloat16: what is rounded, and what is not until it must be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import diffrate_jax as dr
from diffrate_jax.models.metaformer import AttentionBlock
from diffrate_jax.models.precision import EMBEDDING, narrowed
from diffrate_jax.models.vit import Block
from diffrate_jax.tokens import Tokens

SMALL = {"image_size": 8, "patch_size": 4, "width": 16, "num_heads": 2}


def vit(**fields):
    """Returns a ViT with random weights."""
    model = dr.create_model("vit", **SMALL, depth=1, num_classes=3, **fields)
    return model, dr.init_weights(model)


def test_pixels_are_not_rounded():
    """Near 1, bfloat16 knows multiples of 1/128 only; a level of 255 is half of it."""
    model, params = vit()
    images = jnp.ones((16, 8, 8, 3))
    other = images + jax.random.uniform(jax.random.key(0), images.shape) / 260
    assert (images.astype(jnp.bfloat16) == other.astype(jnp.bfloat16)).all()
    one, two = (
        dr.forward(model, params, x, dtype="bfloat16").logits for x in (images, other)
    )
    assert (one != two).any()


@pytest.mark.parametrize(
    "block",
    [
        Block(2, 4.0, True, None, 1e-6, jnp.bfloat16, "plain"),
        AttentionBlock(jnp.bfloat16),
    ],
)
def test_sums_within_a_block_are_rounded_once(block):
    """Next to 256 there is 258: two addends of 3/4 reach it together only."""
    tokens = Tokens(jnp.full((1, 5, 32), 256, jnp.bfloat16))
    addend = lambda x, branch: jnp.full_like(x, 0.75)  # noqa: E731
    first = lambda t, seen: t.replace(x=t.x[:, :3])  # noqa: E731
    shared = {"prefix_tokens": 1, "proportional": True, "epsilon": 0.0}
    found, _ = block.init_with_output(jax.random.key(0), tokens, first, addend, shared)
    assert found.x.shape == (1, 3, 32)
    assert found.x.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.float32(found.x), 258)


def test_the_embedding_stays_wide():
    _, params = vit(prefix_tokens=3, distilled=True)
    found = narrowed(params, jnp.bfloat16)
    assert set(EMBEDDING) <= found.keys()
    for name, weight in flatten_dict(found).items():
        wanted = "float32" if name[0] in EMBEDDING else "bfloat16"
        assert weight.dtype == wanted, name
    jax.tree.map(np.testing.assert_array_equal, narrowed(params, "float32"), params)


def test_a_caformer_begins_with_narrow_convolutions():
    fields = {"depths": (1, 1, 1, 1), "widths": (32, 32, 64, 64), "image_size": 64}
    params = dr.init_weights(dr.create_model("caformer", **fields, num_classes=3))
    weights = jax.tree.leaves(narrowed(params, jnp.bfloat16))
    assert {weight.dtype.name for weight in weights} == {"bfloat16"}
