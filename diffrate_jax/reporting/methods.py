"""What the names that evaluations give their rows say of the methods."""

import re

from diffrate_jax.timing.peers import PEERS

# Methods that are there to be beaten, by the names that evaluations give them.
BASELINES = re.compile(
    r"ToMe .*|\w+ constant|prune only|merge only|uniform|EViT|random( \d+)?"
    r"|published search|(tome|uniform):.*"
)
DENSE = ("dense", "none", *PEERS)
# What fine-tuning calls its rows of the weights that it leaves.
TUNED = ("after", "dense, after")


def plain_name(name: str, others: set[str], target: str | None = None) -> str:
    """Returns the name of a method for one of its draws, seeds or targets.

    >>> plain_name("random 3", set()), plain_name("seed 1", {"learned"})
    ('random', 'learned')
    >>> plain_name("learned 50%", set(), "50%")
    'learned'
    """
    if re.fullmatch(r"random \d+", name):
        return "random"
    is_seed = re.fullmatch(r"seed \d+", name) and "learned" in others
    bare = name.removesuffix(f" {target}")
    return "learned" if is_seed else name if bare in others else bare


def is_baseline(name: str) -> bool:
    """Returns whether a row is there to be beaten."""
    return BASELINES.fullmatch(name) is not None


def is_learned(name: str) -> bool:
    """Returns whether a row is a schedule, of whatever name, that search found."""
    return name not in DENSE and not is_baseline(name)
