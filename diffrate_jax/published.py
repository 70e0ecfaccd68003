"""Schedules that DiffRate released, and what it printed for them: data in configs/."""

import json
from pathlib import Path

from diffrate_jax.errors import UserError, did_you_mean
from diffrate_jax.schedule import Schedule

PUBLISHED = Path(__file__).parent.parent / "configs" / "schedules"


def published_schedule(model: str, target: float | str) -> Schedule:
    """Returns a schedule released with DiffRate (compression_rate.json).

    Args:
        model: preset name, such as "deit_small_patch16_224".
        target: the cost in GMACs that the schedule was learned for.

    Raises:
        UserError: no schedule was released for the model or the target.
    """
    files = {path.stem: path for path in sorted(PUBLISHED.glob("*.json"))}
    if model not in files:
        raise UserError(
            f"no schedule was published for model {model!r}; "
            + did_you_mean(model, files)
        )
    released = json.loads(files[model].read_text())["schedules"]
    if str(target) not in released:
        raise UserError(
            f"no schedule for {target} GMACs was published for {model}; "
            f"released: {', '.join(released)}"
        )
    record = released[str(target)]
    return Schedule(record["prune"], record["merge"], {"published": str(target)})


def published_figures(model: str, target: str) -> dict[str, float]:
    """Returns what DiffRate printed for a schedule of its own, nothing if it did not.

    Args:
        model: preset name.
        target: the cost in GMACs that the schedule was learned for.

    Returns:
        ``top1`` and ``top5`` in percent and ``loss`` on ImageNet's validation images,
        weights unchanged, and ``gmacs``.
    """
    path = PUBLISHED / f"{model}.json"
    released = json.loads(path.read_text())["schedules"] if path.exists() else {}
    return released.get(target, {}).get("published", {})
