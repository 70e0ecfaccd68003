"""How methods look, the same in every chart."""

import itertools
from collections.abc import Iterable, Iterator

from diffrate_jax.reporting.charts import Look
from diffrate_jax.reporting.methods import is_learned

# The colours of Okabe and Ito, which the colour-blind can tell apart.
COLOURS = ("blue", "orange", "green", "purple", "red", "sky", "grey", "ink")
SHAPES = ("circle", "square", "up", "diamond", "down", "cross")
STRONG = ("star", "hexagon")
KNOWN = {
    "dense": Look("dense", "ink", "square"),
    "learned": Look("learned", "blue", "star", is_strong=True),
    "ToMe constant": Look("ToMe constant", "orange"),
    "ToMe decreasing": Look("ToMe decreasing", "red", "down"),
    "ToMe increasing": Look("ToMe increasing", "sky", "up"),
    "uniform": Look("uniform", "grey"),
    "EViT": Look("EViT", "sky", "square"),
    "prune only": Look("prune only", "green", "up"),
    "merge only": Look("merge only", "purple", "diamond"),
    "redundancy constant": Look("redundancy constant", "blue", "square"),
    "published search": Look("published search", "red", "cross"),
    "random": Look("random", "grey", "cross"),
}


def looks_of(names: Iterable[str]) -> dict[str, Look]:
    """Returns a look for each name, in their order; what is learned stands out."""
    plain, strongest = marks(SHAPES), marks(STRONG)
    looks = {}
    for name in dict.fromkeys(names):
        if name in KNOWN:
            looks[name] = KNOWN[name]
            continue
        strong = is_learned(name)
        shape, colour = next(strongest if strong else plain)
        looks[name] = Look(name, colour, shape, is_strong=strong)
    return looks


def marks(shapes: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yields shapes and colours that no known method has, over and over."""
    taken = {(look.shape, look.colour) for look in KNOWN.values()}
    every = itertools.product(shapes, COLOURS)
    return itertools.cycle(pair for pair in every if pair not in taken)


def plain_looks(names: Iterable[str]) -> dict[str, Look]:
    """Returns a look for each of some runs, none of which stands out."""
    free = itertools.cycle(itertools.product(SHAPES, COLOURS))
    return {
        name: Look(name, colour, shape)
        for name, (shape, colour) in zip(names, free, strict=False)
    }
