"""Layers that own parameters, named as in timm; the mathematics is in functions."""

import functools
import inspect

import jax
import jax.numpy as jnp
from flax import linen as nn

from diffrate_jax.models.attention import attend
from diffrate_jax.models.fused import attend_fused
from diffrate_jax.shapes import Array
from diffrate_jax.tokens import Attended, Tokens, at_least_float32


class Attention(nn.Module):
    """Multi-head self-attention with timm's fused qkv projection.

    `form` is "plain", or the implementation of a fused kernel (`fused`). Masked tokens
    and models without a class token always take the plain form.
    """

    num_heads: int
    qkv_bias: bool
    dtype: jnp.dtype
    proj_bias: bool = True
    form: str = "plain"

    @nn.compact
    def __call__(
        self,
        x_BND: Array,
        tokens: Tokens,
        *,
        prefix_tokens: int,
        proportional: bool,
        epsilon: float,
    ) -> tuple[Array, Attended]:
        """Returns the layer's output [B, N, D] and what compression may see."""
        batch, num_tokens, width = x_BND.shape
        qkv = nn.Dense(3 * width, use_bias=self.qkv_bias, dtype=self.dtype, name="qkv")
        shape = (batch, num_tokens, 3, self.num_heads, width // self.num_heads)
        qkv_BNTHE = qkv(x_BND).reshape(shape)
        size_BN = tokens.size if proportional else None
        if self.form != "plain" and tokens.alive is None and prefix_tokens:
            mixed_BNHE, seen = attend_fused(
                *(qkv_BNTHE[:, :, part] for part in range(3)),
                size_BN=size_BN,
                implementation=self.form,
            )
        else:
            mixed_BHNE, seen = attend(
                *jnp.transpose(qkv_BNTHE, (2, 0, 3, 1, 4)),
                size_BN=size_BN,
                alive_BN=tokens.alive,
                prefix_tokens=prefix_tokens,
                epsilon=epsilon,
            )
            mixed_BNHE = jnp.transpose(mixed_BHNE, (0, 2, 1, 3))
        project = nn.Dense(
            width, use_bias=self.proj_bias, dtype=self.dtype, name="proj"
        )
        return project(mixed_BNHE.reshape(x_BND.shape)), seen


@jax.checkpoint
def gelu(x: Array) -> Array:
    """GELU by its definition, with erf; the gradient keeps nothing but x.

    What it would keep of erf is several times the size of x, and dearer to write and
    read than to compute again.
    """
    wide = x.astype(at_least_float32(x))
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


class Mlp(nn.Module):
    """Two dense layers with the exact (erf) GELU of timm and MAE between them."""

    hidden: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BND: Array) -> Array:
        """Returns the layer's output [B, N, D]."""
        hidden_BNF = nn.Dense(self.hidden, dtype=self.dtype, name="fc1")(x_BND)
        hidden_BNF = gelu(hidden_BNF)
        return nn.Dense(x_BND.shape[-1], dtype=self.dtype, name="fc2")(hidden_BNF)


class LayerScale(nn.Module):
    """A learned factor per channel, as in DINOv2."""

    initial: float

    @nn.compact
    def __call__(self, x_BND: Array) -> Array:
        """Returns x scaled."""
        gamma_D = self.param(
            "gamma", nn.initializers.constant(self.initial), x_BND.shape[-1:]
        )
        return x_BND * gamma_D.astype(x_BND.dtype)


class LayerNorm(nn.Module):
    """LayerNorm with the two-pass variance that PyTorch's weights expect."""

    epsilon: float
    dtype: jnp.dtype
    use_bias: bool = True

    @nn.compact
    def __call__(self, x_BND: Array) -> Array:
        """Returns x normalised over its last dimension, whatever its rank."""
        width = x_BND.shape[-1:]
        scale_D = self.param("scale", nn.initializers.ones, width)
        bias_D = 0.0
        if self.use_bias:
            bias_D = self.param("bias", nn.initializers.zeros, width)
        return normalise(x_BND, scale_D, bias_D, self.epsilon).astype(self.dtype)


@functools.partial(jax.checkpoint, static_argnums=3)
def normalise(
    x_BND: Array, scale_D: Array, bias_D: Array | float, epsilon: float
) -> Array:
    """Brings features to mean 0 and variance 1, then scales and shifts them.

    The gradient keeps nothing but x, and computes the rest again.
    """
    x_BND = x_BND.astype(at_least_float32(x_BND))
    centred_BND = x_BND - jnp.mean(x_BND, axis=-1, keepdims=True)
    variance_BN1 = jnp.mean(jnp.square(centred_BND), axis=-1, keepdims=True)
    return centred_BND * jax.lax.rsqrt(variance_BN1 + epsilon) * scale_D + bias_D


def layer_norm(epsilon: float, dtype: jnp.dtype, name: str) -> LayerNorm:
    """Returns a LayerNorm of the given name."""
    return LayerNorm(epsilon, dtype, name=name)


def drop_branch(x_BND: Array, keys_B: Array | None, rate: float, branch: int) -> Array:
    """Drops a residual branch for whole examples (stochastic depth).

    Args:
        x_BND: the branch's output.
        keys_B: one random key per example, so that no split of the batch over
            devices changes a result; None keeps every branch.
        rate: probability of dropping.
        branch: number of this branch in the model.
    """
    if keys_B is None or rate == 0.0:
        return x_BND
    draw = lambda key: jax.random.bernoulli(jax.random.fold_in(key, branch), 1 - rate)  # noqa: E731
    keep_B11 = jax.vmap(draw)(keys_B)[:, None, None]
    return jnp.where(keep_B11, x_BND / (1.0 - rate), 0.0).astype(x_BND.dtype)


def forgetful(block: type[nn.Module]) -> type[nn.Module]:
    """Returns a block of which the gradient keeps only what comes in.

    The rest is computed again: a third more arithmetic for a fraction of the memory
    (Chen et al., arXiv 1604.06174).
    """
    # All but the module and the tokens is known when the step is traced.
    arguments = len(inspect.signature(block.__call__).parameters)
    return nn.remat(block, static_argnums=tuple(range(2, arguments)))
