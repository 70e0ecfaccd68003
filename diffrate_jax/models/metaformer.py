"""Layers of CAFormer (MetaFormer Baselines, arXiv 2210.13452), named by its authors.

Between layers a map is always a sequence of tokens in rows, [B, N, D]; convolutions
alone see rows and columns.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from diffrate_jax.folding import restore
from diffrate_jax.models.layers import Attention, LayerNorm
from diffrate_jax.shapes import Array
from diffrate_jax.tokens import Attended, Tokens, at_least_float32

EPSILON = 1e-6
# Of the head's own LayerNorm; all others have the one above.
HEAD_EPSILON = 1e-5
HEAD_WIDTH = 32
CONVOLUTION = 7


def plain_norm(dtype: jnp.dtype, name: str) -> LayerNorm:
    """Returns a LayerNorm without bias."""
    return LayerNorm(EPSILON, dtype, use_bias=False, name=name)


def plain_dense(features: int, dtype: jnp.dtype, name: str) -> nn.Dense:
    """Returns a dense layer without bias."""
    return nn.Dense(features, use_bias=False, dtype=dtype, name=name)


def as_map(x_BND: Array) -> Array:
    """Returns tokens in rows and columns [B, Y, X, D]; their number is a square."""
    batch, num_tokens, width = x_BND.shape
    side = math.isqrt(num_tokens)
    return x_BND.reshape(batch, side, side, width)


def as_tokens(x_BYXD: Array) -> Array:
    """Returns a map as a sequence [B, N, D]."""
    return x_BYXD.reshape(x_BYXD.shape[0], -1, x_BYXD.shape[-1])


class Scale(nn.Module):
    """A learned factor per channel of the residual stream."""

    @nn.compact
    def __call__(self, x_BND: Array) -> Array:
        """Returns x scaled."""
        scale_D = self.param("scale", nn.initializers.ones, x_BND.shape[-1:])
        return x_BND * scale_D.astype(x_BND.dtype)


class StarReLU(nn.Module):
    """The squared ReLU with one learned factor and one learned shift."""

    @nn.compact
    def __call__(self, x_BND: Array) -> Array:
        """Returns scale · relu(x)² + bias."""
        scale_1 = self.param("scale", nn.initializers.ones, (1,))
        bias_1 = self.param("bias", nn.initializers.zeros, (1,))
        square_BND = jnp.square(nn.relu(x_BND))
        return square_BND * scale_1.astype(x_BND.dtype) + bias_1.astype(x_BND.dtype)


class StarMlp(nn.Module):
    """Two dense layers, four times as wide between them, with StarReLU."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BND: Array) -> Array:
        """Returns the layer's output [B, N, D]."""
        width = x_BND.shape[-1]
        hidden_BNF = plain_dense(4 * width, self.dtype, "fc1")(x_BND)
        return plain_dense(width, self.dtype, "fc2")(StarReLU(name="act")(hidden_BNF))


class SeparableConvolution(nn.Module):
    """Mixes channels, then neighbours in each of twice as many channels, and back."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BND: Array) -> Array:
        """Returns the layer's output [B, N, D]."""
        width = x_BND.shape[-1]
        hidden_BNF = plain_dense(2 * width, self.dtype, "pwconv1")(x_BND)
        hidden_BNF = StarReLU(name="act1")(hidden_BNF)
        mix = nn.Conv(
            2 * width,
            (CONVOLUTION, CONVOLUTION),
            padding=CONVOLUTION // 2,
            feature_group_count=2 * width,
            use_bias=False,
            dtype=self.dtype,
            name="dwconv",
        )
        hidden_BNF = as_tokens(mix(as_map(hidden_BNF)))
        return plain_dense(width, self.dtype, "pwconv2")(hidden_BNF)


class Downsampling(nn.Module):
    """A convolution with stride, on the map restored from its tokens."""

    features: int
    kernel: int
    stride: int
    padding: int
    is_first: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, tokens: Tokens) -> Array:
        """Returns the smaller map's tokens [B, N, D]: of pixels, or of a stage."""
        x_BND = tokens.x
        if not self.is_first:
            x_BND = plain_norm(self.dtype, "pre_norm")(x_BND)
        if tokens.origin is not None:
            x_BND = restore(tokens, x_BND)
        convolve = nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            strides=self.stride,
            padding=self.padding,
            dtype=self.dtype,
            name="conv",
        )
        x_BND = as_tokens(convolve(as_map(x_BND)))
        return plain_norm(self.dtype, "post_norm")(x_BND) if self.is_first else x_BND


class ConvolutionBlock(nn.Module):
    """Convolution, then MLP."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BND: Array, drop: Callable[[Array, int], Array]) -> Array:
        """Returns the tokens after the block [B, N, D].

        Args:
            x_BND: coming in.
            drop: drops the output of branch 0 or 1.
        """
        mix = SeparableConvolution(self.dtype, name="token_mixer")
        x_BND = x_BND + drop(mix(plain_norm(self.dtype, "norm1")(x_BND)), 0)
        mlp = StarMlp(self.dtype, name="mlp")
        return x_BND + drop(mlp(plain_norm(self.dtype, "norm2")(x_BND)), 1)


class AttentionBlock(nn.Module):
    """Attention, then compression, then MLP, on a scaled residual stream."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        tokens: Tokens,
        compress: Callable[[Tokens, Attended], Tokens],
        drop: Callable[[Array, int], Array],
        attention: dict[str, Any],
    ) -> Tokens:
        """Returns the tokens after the block.

        Args:
            tokens: coming in.
            compress: what to do between attention and MLP.
            drop: drops the output of branch 0 or 1.
            attention: the keyword arguments that attention shares over blocks.
        """
        num_heads = tokens.x.shape[-1] // HEAD_WIDTH
        attend = Attention(
            num_heads, qkv_bias=False, dtype=self.dtype, proj_bias=False,
            name="token_mixer",
        )  # fmt: skip
        x_BND = plain_norm(self.dtype, "norm1")(tokens.x)
        x_BND, seen = attend(x_BND, tokens, **attention)
        # Not rounded before the end of the block, as in `vit.Block`.
        before_BND = tokens.x.astype(at_least_float32(tokens.x))
        x_BND = Scale(name="res_scale1")(before_BND) + drop(x_BND, 0)
        tokens = compress(tokens.replace(x=x_BND), seen)
        mlp = StarMlp(self.dtype, name="mlp")
        x_BND = drop(mlp(plain_norm(self.dtype, "norm2")(tokens.x)), 1)
        x_BND = Scale(name="res_scale2")(tokens.x) + x_BND
        return tokens.replace(x=x_BND.astype(self.dtype))


class Head(nn.Module):
    """Two dense layers with a squared ReLU and a LayerNorm between them."""

    num_classes: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BD: Array) -> Array:
        """Returns the logits [B, V]."""
        hidden = nn.Dense(4 * x_BD.shape[-1], dtype=self.dtype, name="fc1")
        hidden_BF = jnp.square(nn.relu(hidden(x_BD)))
        hidden_BF = LayerNorm(HEAD_EPSILON, self.dtype, name="norm")(hidden_BF)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="fc2")(hidden_BF)
