"""Plain vision transformers (ViT, DeiT, MAE) with compression between their halves."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from diffrate_jax.compress import Gathered, Masked
from diffrate_jax.cost import MacsTerms
from diffrate_jax.errors import UserError
from diffrate_jax.models.layers import (
    Attention,
    LayerScale,
    Mlp,
    drop_branch,
    layer_norm,
)
from diffrate_jax.rates import Kept
from diffrate_jax.shapes import Array, Geometry
from diffrate_jax.tokens import Attended, Tokens
from diffrate_jax.tome import ToMe

Compression = Gathered | Masked | ToMe
Compress = Callable[[Tokens, Attended], Tokens]


@struct.dataclass
class Output:
    """What a forward pass returns.

    Attributes:
        logits: [B, V].
        tokens: the tokens after the last block.
        kept: counts after each operation [L].
    """

    logits: Array
    tokens: Tokens
    kept: Kept


class Block(nn.Module):
    """Attention, then compression, then MLP."""

    num_heads: int
    mlp_ratio: float
    qkv_bias: bool
    layer_scale: float | None
    layer_norm_eps: float
    dtype: jnp.dtype

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
        attend = Attention(self.num_heads, self.qkv_bias, self.dtype, name="attn")
        x_BND, seen = attend(norm("norm1")(tokens.x), tokens, **attention)
        x_BND = tokens.x + drop(scale("ls1")(x_BND), 0)
        tokens = compress(tokens.replace(x=x_BND), seen)
        mlp = Mlp(round(x_BND.shape[-1] * self.mlp_ratio), self.dtype, name="mlp")
        x_BND = scale("ls2")(mlp(norm("norm2")(tokens.x)))
        return tokens.replace(x=tokens.x + drop(x_BND, 1))


class ViT(nn.Module):
    """A vision transformer; parameters are named as timm names them.

    Attributes:
        image_size: rows and columns of an image, in pixels.
        patch_size: rows and columns of a patch, in pixels.
        width: features of a token.
        depth: number of blocks.
        num_heads: heads of attention.
        num_classes: length of the logits.
        pool: "cls" reads the class token; "avg" the mean of the patch tokens,
            weighted by their sizes.
        mlp_ratio: width of the MLP over width of a token.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        prefix_tokens: 1 for a class token, 0 for none.
        layer_scale: initial factor of the residual branches; None for none.
        layer_norm_eps: epsilon of every LayerNorm.
        compress: blocks that search may compress; by default all but the first, and
            all but the last too where tokens are averaged (DiffRate, section 4.1).
        dtype: type of the activations.
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
    layer_scale: float | None = None
    layer_norm_eps: float = 1e-6
    compress: tuple[bool, ...] | None = None
    dtype: Any = jnp.float32

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
            fixed=tokens * width * patch + width * self.num_classes,
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
        drop_path: float = 0.0,
        keys_B: Array | None = None,
    ) -> Output:
        """Runs the model; see `forward`."""
        geometry = self.geometry
        kept = compression.kept(geometry)
        tokens = compression.begin(self._embed(images_BYXC, trace=trace))
        attention = {
            "prefix_tokens": self.prefix_tokens,
            "proportional": compression.proportional,
            "epsilon": compression.softmax_epsilon,
        }
        for index in range(self.depth):
            rate = drop_path * index / max(self.depth - 1, 1)
            tokens = Block(
                self.num_heads,
                self.mlp_ratio,
                self.qkv_bias,
                self.layer_scale,
                self.layer_norm_eps,
                self.dtype,
                name=f"blocks_{index}",
            )(
                tokens,
                lambda t, seen, i=index: compression.step(i, t, seen, kept, geometry),
                lambda x, b, i=index, r=rate: drop_branch(x, keys_B, r, 2 * i + b),
                attention,
            )
        logits_BV = self._head(tokens)
        return Output(logits_BV, finished(tokens), kept)

    def _embed(self, images_BYXC: Array, *, trace: bool) -> Tokens:
        """Cuts images into patches and adds class token and positions."""
        patch_BPD = nn.Dense(self.width, dtype=self.dtype, name="patch_embed")(
            patches(images_BYXC.astype(self.dtype), self.patch_size)
        )
        small = nn.initializers.truncated_normal(0.02)
        x_BND = patch_BPD
        if self.prefix_tokens:
            cls_11D = self.param("cls_token", small, (1, 1, self.width))
            shape = (x_BND.shape[0], 1, self.width)
            cls_B1D = jnp.broadcast_to(cls_11D.astype(self.dtype), shape)
            x_BND = jnp.concatenate([cls_B1D, x_BND], axis=1)
        position_1ND = self.param("pos_embed", small, (1, *x_BND.shape[1:]))
        origin = one_each(x_BND) if trace else None
        return Tokens(x_BND + position_1ND.astype(self.dtype), origin=origin)

    def _head(self, tokens: Tokens) -> Array:
        """Pools the tokens and returns float32 logits."""
        if self.pool == "cls":
            norm = layer_norm(self.layer_norm_eps, self.dtype, "norm")
            pooled_BD = norm(tokens.x[:, 0])
        else:
            norm = layer_norm(self.layer_norm_eps, self.dtype, "fc_norm")
            pooled_BD = norm(average(tokens, self.prefix_tokens))
        logits_BV = nn.Dense(self.num_classes, dtype=self.dtype, name="head")(pooled_BD)
        return logits_BV.astype(jnp.promote_types(logits_BV.dtype, jnp.float32))


def patches(images_BYXC: Array, patch_size: int) -> Array:
    """Returns the patches [B, P, Y*X*C] in rows, ready for a dense layer."""
    batch, rows, columns, channels = images_BYXC.shape
    grid = (rows // patch_size, columns // patch_size)
    split = images_BYXC.reshape(
        batch, grid[0], patch_size, grid[1], patch_size, channels
    )
    split = jnp.transpose(split, (0, 1, 3, 2, 4, 5))
    return split.reshape(batch, grid[0] * grid[1], patch_size**2 * channels)


def one_each(x_BND: Array) -> Array:
    """Returns the origin [B, N, N] of tokens of which each is still itself."""
    batch, num_tokens = x_BND.shape[:2]
    itself_NN = jnp.eye(num_tokens, dtype=jnp.float32)
    return jnp.broadcast_to(itself_NN, (batch, num_tokens, num_tokens))


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


def finished(tokens: Tokens) -> Tokens:
    """Fills in sizes and marks of life; the dead have no origin."""
    alive_BN = tokens.alive
    if alive_BN is None:
        alive_BN = jnp.ones_like(tokens.sizes())
    origin = tokens.origin
    if origin is not None:
        origin = origin * jax.lax.stop_gradient(alive_BN)[..., None]
    return tokens.replace(size=tokens.sizes(), alive=alive_BN, origin=origin)


def check_vit(model: ViT) -> None:
    """Refuses an impossible architecture.

    Raises:
        UserError: a size that is not a positive integer or does not divide another,
            or an unknown pooling.
    """
    for field in ("image_size", "patch_size", "width", "depth", "num_heads"):
        check_positive(field, getattr(model, field))
    check_positive("num_classes", model.num_classes)
    if model.image_size % model.patch_size:
        raise UserError(
            f"image_size must be a multiple of patch_size {model.patch_size}, "
            f"got {model.image_size}"
        )
    if model.width % model.num_heads:
        raise UserError(
            f"width must be a multiple of num_heads {model.num_heads}, "
            f"got {model.width}"
        )
    if model.pool not in ("cls", "avg"):
        raise UserError(f"pool must be 'cls' or 'avg', got {model.pool!r}")
    if model.prefix_tokens not in (0, 1) or model.prefix_tokens < (model.pool == "cls"):
        raise UserError(
            "prefix_tokens must be 1 (a class token), or 0 with pool='avg', "
            f"got {model.prefix_tokens} with pool={model.pool!r}"
        )
    if model.compress is not None and len(model.compress) != model.depth:
        raise UserError(
            f"compress must hold one true or false for each of {model.depth} blocks, "
            f"got {len(model.compress)}"
        )


def check_positive(field: str, value: object) -> None:
    """Refuses what is not a positive integer.

    Raises:
        UserError: naming the field.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{field} must be a positive whole number, got {value!r}")
