"""Layer-wise decay of the learning rate: what is nearer to the image moves less."""

import re
from collections.abc import Iterable

import jax
import optax

from diffrate_jax.models import Params
from diffrate_jax.models.precision import EMBEDDING

# "blocks_3" of a ViT, "stages_2_5" of a CAFormer, by stage and place in it.
BLOCK = re.compile(r"(?:blocks|stages_(\d+))_(\d+)")
DOWNSAMPLING = re.compile(r"downsample_layers_(\d+)")
HEAD = ("norm", "fc_norm", "head", "head_dist")


def layers(names: Iterable[str]) -> dict[str, int]:
    """Returns the layer of each module of a model: how many come before it.

    The embedding of patches is layer 0, the blocks are 1, 2, …, the last norm and the
    head follow on the last block. What makes a map of a CAFormer smaller is of one
    layer with the first block that reads it.

    Args:
        names: of the modules and tables that a model is made of, in any order.

    Raises:
        ValueError: one that belongs nowhere.

    >>> layers(["blocks_1", "blocks_0", "pos_embed", "head"])
    {'blocks_1': 2, 'blocks_0': 1, 'pos_embed': 0, 'head': 3}
    """
    names = list(names)
    matches = {name: BLOCK.fullmatch(name) for name in names}
    places = {n: (int(m[1] or 0), int(m[2])) for n, m in matches.items() if m}
    order = sorted(places.values())

    def layer(name: str) -> int:
        if name in places:
            return 1 + order.index(places[name])
        smaller = DOWNSAMPLING.fullmatch(name)
        if name in EMBEDDING or (smaller and smaller[1] == "0"):
            return 0
        if smaller:
            return 1 + order.index((int(smaller[1]), 0))
        if name in HEAD:
            return 1 + len(order)
        raise ValueError(f"{name} is neither embedding, nor block, nor head")

    return {name: layer(name) for name in names}


def scales(params: Params, decay: float) -> Params:
    """Returns for each weight what its learning rate is multiplied by.

    It is 1 in the head and `decay` times less with every layer towards the image
    (Clark et al., arXiv 2003.10555; for vision BEiT, arXiv 2106.08254, appendix).
    """
    number = layers(params)
    last = max(number.values())
    return {
        name: jax.tree.map(lambda _, n=name: decay ** (last - number[n]), weights)
        for name, weights in params.items()
    }


def scale_by_layer(decay: float) -> optax.GradientTransformation:
    """Returns what comes last of an optimiser: updates, times their layer's scale."""

    def scaled(updates: Params, _: Params) -> Params:
        return jax.tree.map(lambda u, s: u * s, updates, scales(updates, decay))

    return optax.stateless(scaled)
