"""How sure an accuracy is: intervals of one, and of the difference between two."""

import numpy as np

from diffrate_jax.errors import UserError

# Quantile of the normal distribution that leaves 2.5 % above it.
Z95 = 1.959964


def wilson(share: float, count: int) -> tuple[float, float]:
    """Returns the 95% interval of a share that was counted (Wilson 1927).

    Args:
        share: that was found, between 0 and 1.
        count: examples that it was found among.

    >>> low, high = wilson(0.5, 100)
    >>> round(low, 3), round(high, 3)
    (0.404, 0.596)
    """
    weight = Z95**2 / count
    centre = (share + weight / 2) / (1 + weight)
    half = (
        Z95 / (1 + weight) * np.sqrt(share * (1 - share) / count + weight / 4 / count)
    )
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def paired_difference(
    correct_a: str | np.ndarray, correct_b: str | np.ndarray
) -> tuple[float, float, float]:
    """Returns accuracy a − b in percentage points, and its 95% interval.

    The interval is the adjusted one of Bonett and Price (2012): Wald's, after two more
    images, one that only a has right and one that only b has. A bootstrap, or Wald's
    alone, has no width where no image differs, and covers too seldom where few do;
    Agresti and Min (2005) add half as much, which covers 86 % where all of two expected
    differences are on one side, this 93 % at worst.

    A mean over several runs differs by d between −1 and 1, for which the same sums
    hold: of d and of d². The two images count whole there, which makes the interval
    rather wider. It is for the choice of images alone, not for that of seeds.

    Args:
        correct_a: 0 or 1 for each image, as text, or the mean over several runs.
        correct_b: the same of the same images in the same order.

    Raises:
        UserError: not as many images on both sides, or none.

    >>> mean, low, high = paired_difference("1101" * 100, "1101" * 100)
    >>> mean, round(low, 2), round(high, 2)
    (0.0, -0.69, 0.69)
    """
    a, b = hits(correct_a), hits(correct_b)
    if a.shape != b.shape or not a.size:
        raise UserError(
            f"a paired comparison needs the same images twice, got {a.size} and "
            f"{b.size}; evaluate both on the same split"
        )
    # Rounded, as thirds of runs add up to nearly one; adding 0 turns -0.0 into 0.0.
    d, count = (a - b).round(9) + 0.0, a.size + 2
    centre = d.sum() / count
    half = Z95 * np.sqrt(((d @ d + 2) / count - centre**2) / count)
    low, high = np.clip([centre - half, centre + half], -1, 1)
    return float(100 * d.mean()), float(100 * low), float(100 * high)


def hits(correct: str | np.ndarray) -> np.ndarray:
    """Returns the text of an evaluation row as one number for each image."""
    if isinstance(correct, str):
        return (np.frombuffer(correct.encode(), np.uint8) == ord("1")).astype(float)
    return np.asarray(correct, float)
