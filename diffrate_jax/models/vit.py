"""Plain vision transformers (ViT, DeiT, MAE) with compression between their halves."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from diffrate_jax.compress import Gathered, Masked
from diffrate_jax.cost import MacsTerms
from diffrate_jax.models.layers import (
    Attention,
    LayerScale,
    Mlp,
    drop_branch,
    forgetful,
    layer_norm,
)
from diffrate_jax.rates import Kept
from diffrate_jax.shapes import Array, Geometry
from diffrate_jax.tokens import (
    Attended,
    Tokens,
    at_least_float32,
    finished,
    one_each,
)
from diffrate_jax.tome import ToMe

Compression = Gathered | Masked | ToMe
# Standard deviation of random prefix tokens and positions.
SPREAD = 0.02
Compress = Callable[[Tokens, Attended], Tokens]


@struct.dataclass
class Output:
    """What a forward pass returns.

    Attributes:
        logits: [B, V]; of a model without classes the pooled features [B, D].
        tokens: the tokens after the last block.
        kept: counts after each operation [L].
        features: what the head reads of every token [B, K, D]: the tokens after the
            last norm, if that comes before pooling. None unless asked for.
    """

    logits: Array
    tokens: Tokens
    kept: Kept
    features: Array | None = None


class Block(nn.Module):
    """Attention, then compression, then MLP."""

    num_heads: int
    mlp_ratio: float
    qkv_bias: bool
    layer_scale: float | None
    layer_norm_eps: float
    dtype: jnp.dtype
    attention: str

    @nn.compact
    def __call__(
        self,
        tokens: Tokens,
        compress: Compress,
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
        scale = lambda name: (  # noqa: E731
            LayerScale(self.layer_scale, name=name) if self.layer_scale else lambda x: x
        )
        norm = lambda name: layer_norm(self.layer_norm_eps, self.dtype, name)  # noqa: E731
        heads = {"num_heads": self.num_heads, "qkv_bias": self.qkv_bias}
        attend = Attention(**heads, dtype=self.dtype, form=self.attention, name="attn")
        x_BND, seen = attend(norm("norm1")(tokens.x), tokens, **attention)
        # Not rounded before the end of the block: in bfloat16 that tips choices.
        before_BND = tokens.x.astype(at_least_float32(tokens.x))
        x_BND = before_BND + drop(scale("ls1")(x_BND), 0)
        tokens = compress(tokens.replace(x=x_BND), seen)
        mlp = Mlp(round(x_BND.shape[-1] * self.mlp_ratio), self.dtype, name="mlp")
        x_BND = tokens.x + drop(scale("ls2")(mlp(norm("norm2")(tokens.x))), 1)
        return tokens.replace(x=x_BND.astype(self.dtype))


class ViT(nn.Module):
    """A vision transformer; parameters are named as timm names them.

    Attributes:
        image_size: rows and columns of an image, in pixels.
        patch_size: rows and columns of a patch, in pixels.
        width: features of a token.
        depth: number of blocks.
        num_heads: heads of attention.
        num_classes: length of the logits; 0 for a model without a head.
        pool: "cls" reads the class token; "avg" the mean of the patch tokens,
            weighted by their sizes.
        mlp_ratio: width of the MLP over width of a token.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        prefix_tokens: tokens before the patches: a class token, then a distillation
            token if `distilled`, then registers; 0 for none of them.
        distilled: the second token has a head of its own, and the logits are the mean
            of both (DeiT, arXiv 2012.12877, section 4).
        position_prefix: whether prefix tokens have positions too.
        layer_scale: initial factor of the residual branches; None for none.
        layer_norm_eps: epsilon of every LayerNorm.
        compress: blocks that search may compress; by default all but the first, and
            all but the last too where tokens are averaged (DiffRate, section 4.1).
        dtype: type of the activations.
        attention: "plain", or in inference "cudnn" or "xla" for a fused kernel.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    num_classes: int
    pool: str = "cls"
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    prefix_tokens: int = 1
    distilled: bool = False
    position_prefix: bool = True
    layer_scale: float | None = None
    layer_norm_eps: float = 1e-6
    compress: tuple[bool, ...] | None = None
    dtype: Any = jnp.float32
    attention: str = "plain"

    @property
    def geometry(self) -> Geometry:
        """What compression has to know of this model."""
        patches = (self.image_size // self.patch_size) ** 2
        compress = self.compress
        if compress is None:
            last = (self.pool != "avg",) if self.depth > 1 else ()
            compress = (False, *(True,) * (self.depth - 2), *last)
        return Geometry(patches + self.prefix_tokens, self.prefix_tokens, compress)

    @property
    def macs(self) -> MacsTerms:
        """Cost of this model as a polynomial in its token counts."""
        width, tokens = self.width, self.geometry.num_tokens
        patch = 3 * self.patch_size**2
        return MacsTerms(
            fixed=tokens * width * patch
            + width * self.num_classes * (1 + self.distilled),
            linear_in=4 * width**2,
            quadratic_in=2 * width,
            linear_out=2 * width * round(width * self.mlp_ratio),
        )

    @nn.compact
    def __call__(
        self,
        images_BYXC: Array,
        compression: Compression,
        *,
        trace: bool = False,
        features: bool = False,
        drop_path: float = 0.0,
        keys_B: Array | None = None,
        remat: bool = False,
    ) -> Output:
        """Runs the model; see `forward`."""
        geometry = self.geometry
        kept = compression.kept(geometry)
        block = forgetful(Block) if remat else Block
        tokens = compression.begin(self._embed(images_BYXC, trace=trace))
        attention = {
            "prefix_tokens": self.prefix_tokens,
            "proportional": compression.proportional,
            "epsilon": compression.softmax_epsilon,
        }
        for index in range(self.depth):
            rate = drop_path * index / max(self.depth - 1, 1)
            tokens = block(
                self.num_heads,
                self.mlp_ratio,
                self.qkv_bias,
                self.layer_scale,
                self.layer_norm_eps,
                self.dtype,
                self.attention,
                name=f"blocks_{index}",
            )(
                tokens,
                lambda t, seen, i=index: compression.step(i, t, seen, kept, geometry),
                lambda x, b, i=index, r=rate: drop_branch(x, keys_B, r, 2 * i + b),
                attention,
            )
        logits_BV, normed_BND = self._head(tokens, every=features)
        return Output(logits_BV, finished(tokens), kept, normed_BND)

    def _embed(self, images_BYXC: Array, *, trace: bool) -> Tokens:
        """Cuts images into patches and adds prefix tokens and positions.

        In float32 or wider up to the end of the first block: bfloat16 pixels tip the
        choice of tokens in all that follow.
        """
        wide = jnp.promote_types(self.dtype, jnp.float32)
        # By default a TPU would multiply as if all were bfloat16.
        precision = None if self.dtype == wide else jax.lax.Precision.HIGH
        x_BND = nn.Dense(
            self.width, dtype=wide, precision=precision, name="patch_embed"
        )(patches(images_BYXC.astype(wide), self.patch_size))
        prefix = self._prefix(x_BND.shape[0], wide)
        if self.position_prefix:
            x_BND = self._add_positions(jnp.concatenate([*prefix, x_BND], axis=1))
        else:
            x_BND = jnp.concatenate([*prefix, self._add_positions(x_BND)], axis=1)
        return Tokens(x_BND, origin=one_each(x_BND) if trace else None)

    def _add_positions(self, x_BND: Array) -> Array:
        small = nn.initializers.truncated_normal(SPREAD)
        position_1ND = self.param("pos_embed", small, (1, *x_BND.shape[1:]))
        return x_BND + position_1ND.astype(x_BND.dtype)

    def _prefix(self, batch: int, dtype: jnp.dtype) -> list[Array]:
        """Returns the learned tokens before the patches, each kind [B, P, D]."""
        counts = {
            "cls_token": min(1, self.prefix_tokens),
            "dist_token": int(self.distilled),
            "reg_token": max(0, self.prefix_tokens - 1 - self.distilled),
        }
        small, found = nn.initializers.truncated_normal(SPREAD), []
        for name, count in counts.items():
            if count:
                token_1PD = self.param(name, small, (1, count, self.width))
                shape = (batch, count, self.width)
                found.append(jnp.broadcast_to(token_1PD.astype(dtype), shape))
        return found

    def _head(self, tokens: Tokens, *, every: bool) -> tuple[Array, Array | None]:
        """Returns float32 logits, and if `every` the features of all tokens."""
        name = "norm" if self.pool == "cls" else "fc_norm"
        norm = layer_norm(self.layer_norm_eps, self.dtype, name)
        readers = 1 + self.distilled
        if self.pool == "avg":
            x_BND = tokens.x
            read = [norm(average(tokens, self.prefix_tokens))]
        else:
            # Only what the head reads is normalised, unless all is wanted.
            x_BND = norm(tokens.x if every else tokens.x[:, :readers])
            read = [x_BND[:, reader] for reader in range(readers)]
        for number, head in enumerate(("head", "head_dist")[:readers]):
            if self.num_classes:
                dense = nn.Dense(self.num_classes, dtype=self.dtype, name=head)
                read[number] = dense(read[number])
        logits_BV = sum(read) / readers
        wide = jnp.promote_types(logits_BV.dtype, jnp.float32)
        return logits_BV.astype(wide), x_BND if every else None


def patches(images_BYXC: Array, patch_size: int) -> Array:
    """Returns the patches [B, P, Y*X*C] in rows, ready for a dense layer."""
    batch, rows, columns, channels = images_BYXC.shape
    grid = (rows // patch_size, columns // patch_size)
    split = images_BYXC.reshape(
        batch, grid[0], patch_size, grid[1], patch_size, channels
    )
    split = jnp.transpose(split, (0, 1, 3, 2, 4, 5))
    return split.reshape(batch, grid[0] * grid[1], patch_size**2 * channels)


def average(tokens: Tokens, prefix_tokens: int) -> Array:
    """Returns the mean patch token [B, D], each weighted by the patches it stands for.

    The denominator takes no gradient (the published rule of pooled models).
    """
    weight_BN = tokens.sizes()
    if tokens.alive is not None:
        weight_BN = weight_BN * tokens.alive
    weight_BN = weight_BN[:, prefix_tokens:]
    total_B1 = jax.lax.stop_gradient(jnp.sum(weight_BN, axis=1, keepdims=True))
    x_BND = tokens.x[:, prefix_tokens:]
    mean_BD = jnp.einsum("BND,BN->BD", x_BND.astype(weight_BN.dtype), weight_BN)
    return (mean_BD / total_B1).astype(tokens.x.dtype)
