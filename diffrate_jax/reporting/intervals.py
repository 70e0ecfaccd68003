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


def bootstrap_difference(
    correct_a: str | np.ndarray,
    correct_b: str | np.ndarray,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Returns accuracy a − b in percentage points, and its 95% bootstrap interval.

    The images are drawn again with replacement, the same for a and b. Only how often
    each difference occurs matters, so one multinomial draw stands for all images.

    Args:
        correct_a: 0 or 1 for each image, as text, or the mean over several runs.
        correct_b: the same of the same images in the same order.

    Raises:
        UserError: not as many images on both sides, or none.

    >>> bootstrap_difference("1101", "1101")
    (0.0, 0.0, 0.0)
    """
    a, b = hits(correct_a), hits(correct_b)
    if a.shape != b.shape or not a.size:
        raise UserError(
            f"a paired comparison needs the same images twice, got {a.size} and "
            f"{b.size}; evaluate both on the same split"
        )
    values, first, counts = np.unique(
        (a - b).round(9), return_index=True, return_counts=True
    )
    # In order of first sight, so that exchanging a and b only changes the signs.
    order = np.argsort(first)
    values, shares = values[order], counts[order] / a.size
    draws = np.random.default_rng(seed).multinomial(a.size, shares, size=samples)
    low, high = np.percentile(draws @ values / a.size, [2.5, 97.5])
    # Adding zero turns -0.0 into 0.0.
    mean, low, high = (100 * x + 0.0 for x in (shares @ values, low, high))
    return float(mean), float(low), float(high)


def hits(correct: str | np.ndarray) -> np.ndarray:
    """Returns the text of an evaluation row as one number for each image."""
    if isinstance(correct, str):
        return (np.frombuffer(correct.encode(), np.uint8) == ord("1")).astype(float)
    return np.asarray(correct, float)
