"""Progress of anything longer than a few seconds: rate, time left, what it is at."""

import sys

from tqdm import tqdm


def track(total: int, what: str, *, start: int = 0, unit: str = "step") -> tqdm:
    """Returns a progress bar on standard error, a line now and then in a log file."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=start,
        desc=what,
        unit=unit,
        file=sys.stderr,
        dynamic_ncols=terminal,
        mininterval=0.2 if terminal else 20.0,
    )
