"""Progress of anything longer than a few seconds: rate, time left, what it is at."""

import sys

from tqdm import tqdm

from diffrate_jax.distributed import is_first


def track(total: int, what: str, *, start: int = 0, unit: str = "step") -> tqdm:
    """Returns a progress bar on standard error, a line now and then in a log file.

    Of many processes the first shows it.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=start,
        desc=what,
        unit=unit,
        file=sys.stderr,
        dynamic_ncols=terminal,
        mininterval=0.2 if terminal else 20.0,
        disable=not is_first(),
    )


def say(text: object) -> None:
    """Tells something on standard error, from the first process alone."""
    if is_first():
        print(text, file=sys.stderr, flush=True)
