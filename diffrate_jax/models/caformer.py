"""CAFormer: two stages of convolution, two of attention, compressed in the third."""

import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from diffrate_jax.cost import MacsTerms
from diffrate_jax.models.layers import drop_branch, forgetful, layer_norm
from diffrate_jax.models.metaformer import (
    CONVOLUTION,
    EPSILON,
    AttentionBlock,
    ConvolutionBlock,
    Downsampling,
    Head,
    as_tokens,
)
from diffrate_jax.models.vit import Compression, Output, average
from diffrate_jax.shapes import Array, Geometry
from diffrate_jax.tokens import Tokens, finished, one_each

KERNELS, STRIDES, PADDINGS = (7, 3, 3, 3), (4, 2, 2, 2), (2, 1, 1, 1)
# The stages of attention; tokens are merged in the first of them.
MERGING, LAST = 2, 3


class CAFormer(nn.Module):
    """A CAFormer; parameters are named as its authors name them.

    Tokens are merged, and never pruned, in the third stage; before the fourth each
    place of the map takes the features of the token it ended in.

    Attributes:
        depths: blocks of the four stages.
        widths: features of a token in the four stages.
        num_classes: length of the logits.
        image_size: rows and columns of an image, in pixels.
        dtype: type of the activations.
    """

    depths: tuple[int, int, int, int]
    widths: tuple[int, int, int, int]
    num_classes: int
    image_size: int = 224
    dtype: Any = jnp.float32

    @property
    def compress(self) -> tuple[bool, ...]:
        """Blocks that search may compress: of stage 3, but its first and last."""
        depth = self.depths[MERGING]
        inner = tuple(0 < block < depth - 1 for block in range(depth))
        return inner + (False,) * self.depths[LAST]

    @property
    def maps(self) -> tuple[int, ...]:
        """Tokens of each stage's map."""
        return tuple(
            (self.image_size // math.prod(STRIDES[: stage + 1])) ** 2
            for stage in range(len(STRIDES))
        )

    @property
    def geometry(self) -> Geometry:
        """What compression has to know of this model."""
        later = ((self.depths[MERGING], self.maps[LAST]),)
        return Geometry(self.maps[MERGING], 0, self.compress, later)

    @property
    def macs(self) -> MacsTerms:
        """Cost of this model as a polynomial in the token counts of its attention."""
        # One width for each block of attention.
        widths = (self.widths[MERGING],) * self.depths[MERGING]
        widths += (self.widths[LAST],) * self.depths[LAST]
        return MacsTerms(
            fixed=self._convolutions() + 8 * self.widths[LAST] * self.num_classes,
            linear_in=tuple(4 * width**2 for width in widths),
            quadratic_in=tuple(2 * width for width in widths),
            linear_out=tuple(8 * width**2 for width in widths),
        )

    def _convolutions(self) -> int:
        """Returns what down-sampling and the blocks of convolution cost."""
        widths_in = (3, *self.widths[:LAST])
        rows = zip(self.maps, self.widths, widths_in, KERNELS, strict=True)
        total = sum(n * width * k**2 * before for n, width, before, k in rows)
        for stage in range(MERGING):
            tokens, width = self.maps[stage], self.widths[stage]
            block = 12 * tokens * width**2 + 2 * CONVOLUTION**2 * tokens * width
            total += self.depths[stage] * block
        return total

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
        attention = {
            "prefix_tokens": 0,
            "proportional": compression.proportional,
            "epsilon": compression.softmax_epsilon,
        }

        def drop(block: int) -> Any:
            rate = drop_path * block / max(sum(self.depths) - 1, 1)
            return lambda x, branch: drop_branch(x, keys_B, rate, 2 * block + branch)

        convolution, attend = (
            forgetful(kind) if remat else kind
            for kind in (ConvolutionBlock, AttentionBlock)
        )
        block, first = 0, sum(self.depths[:MERGING])
        tokens = Tokens(as_tokens(images_BYXC.astype(self.dtype)))
        for stage, depth in enumerate(self.depths):
            merged, tokens = tokens, Tokens(self._downsampling(stage)(tokens))
            if stage == MERGING:
                tokens = tokens.replace(origin=one_each(tokens.x))
            for index in range(depth):
                name = f"stages_{stage}_{index}"
                if stage < MERGING:
                    run = convolution(self.dtype, name=name)
                    tokens = tokens.replace(x=run(tokens.x, drop(block)))
                else:
                    compress = lambda t, seen, i=block - first: compression.step(  # noqa: E731
                        i, t, seen, kept, geometry
                    )
                    run = attend(self.dtype, name=name)
                    tokens = run(tokens, compress, drop(block), attention)
                block += 1
        if not trace:
            merged = merged.replace(origin=None)
        own = merged.x if features else None
        return Output(self._head(tokens), finished(merged), kept, own)

    def _downsampling(self, stage: int) -> Downsampling:
        return Downsampling(
            self.widths[stage],
            KERNELS[stage],
            STRIDES[stage],
            PADDINGS[stage],
            is_first=stage == 0,
            dtype=self.dtype,
            name=f"downsample_layers_{stage}",
        )

    def _head(self, tokens: Tokens) -> Array:
        """Averages the tokens and returns float32 logits."""
        norm = layer_norm(EPSILON, self.dtype, "norm")
        head = Head(self.num_classes, self.dtype, name="head")
        logits_BV = head(norm(average(tokens, 0)))
        return logits_BV.astype(jnp.promote_types(logits_BV.dtype, jnp.float32))
