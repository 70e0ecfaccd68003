"""A model with its schedule as a folder that runs without this package.

A delivery format, never an archive: `jax.export` programs stay readable for about six
months. What lasts is the model folder and the schedule, from which to export again.

The weights lie beside the program and are its argument. As constants they would be
copied by every pass over the program, and could be read by nothing else.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from diffrate_jax import runner
from diffrate_jax.compressions import schedule_of
from diffrate_jax.cost import cost_macs
from diffrate_jax.data.augment import normalise
from diffrate_jax.errors import UserError, did_you_mean
from diffrate_jax.files import Json, digest, in_bucket, write_json, writing
from diffrate_jax.inference import DTYPES
from diffrate_jax.models import Model, Params, architecture, family_of, forward
from diffrate_jax.models.precision import narrowed
from diffrate_jax.models.vit import Compression
from diffrate_jax.preprocess import Preprocess
from diffrate_jax.shapes import Array
from diffrate_jax.tome import ToMe
from diffrate_jax.version import __version__

PLATFORMS = ("cpu", "cuda", "tpu")
RUNNER = "run.py"


@dataclasses.dataclass(frozen=True)
class Delivery:
    """What an artefact is made of.

    Attributes:
        model: architecture.
        name: of its preset, or of its family.
        compression: what runs in its blocks; None is the dense model.
        given: how the user named the compression, such as "published:2.9".
        preprocess: what images go through; the artefact itself does the last step,
            and normalises.
        dtype: of weights and activations: "float32" or "bfloat16".
        platforms: that it is to run on, of "cpu", "cuda" and "tpu".
        labels: names of the classes; numbers if none are given.

    Raises:
        UserError: an unknown dtype or platform, or as many labels as there are not
            classes.
    """

    model: Model
    name: str
    compression: Compression | None
    given: str
    preprocess: Preprocess
    dtype: str = "float32"
    platforms: Sequence[str] = PLATFORMS
    labels: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(
                f"unknown dtype {self.dtype!r}; {did_you_mean(self.dtype, DTYPES)}"
            )
        for platform in self.platforms or ("",):
            if platform not in PLATFORMS:
                hint = did_you_mean(platform, PLATFORMS)
                raise UserError(f"unknown platform {platform!r}; {hint}")
        if self.labels and len(self.labels) != self.model.num_classes:
            raise UserError(
                f"the model tells {self.model.num_classes} classes apart, got "
                f"{len(self.labels)} labels; give one for each, in their order"
            )


def save_artefact(
    folder: str | os.PathLike,
    delivery: Delivery,
    params: Params,
    *,
    provenance: dict[str, Json] | None = None,
) -> dict[str, int]:
    """Writes an artefact, which appears whole or not at all; an older one is replaced.

    Args:
        folder: to be made.
        delivery: what goes into it.
        params: the model's weights.
        provenance: anything worth saving besides, the same whenever it is made.

    Returns:
        The size of each file in bytes.

    Raises:
        UserError: the place cannot be written to, or holds something else.
    """
    from safetensors.numpy import save_file

    check_place(folder)
    params = narrowed(params, jnp.dtype(delivery.dtype))
    weights = {
        name: np.ascontiguousarray(weight)
        for name, weight in flatten_dict(params, sep=".").items()
    }
    program = exported(delivery, weights)
    with appearing(Path(folder).absolute()) as part:
        (part / runner.PROGRAM).write_bytes(program.serialize())
        save_file(weights, part / runner.WEIGHTS)
        # Whoever may read the program may read its weights.
        shutil.copymode(part / runner.PROGRAM, part / runner.WEIGHTS)
        shutil.copyfile(runner.__file__, part / RUNNER)
        record = manifest(delivery, program, provenance or {})
        names = (runner.PROGRAM, runner.WEIGHTS)
        record["files"] = {name: digest(part / name) for name in names}
        record = json.loads(json.dumps(record))  # As it will be read back.
        record["sha256"] = runner.fingerprint(record)
        write_json(part / runner.MANIFEST, record)
        return {file.name: file.stat().st_size for file in part.iterdir()}


def exported(
    delivery: Delivery, weights: dict[str, Any], platforms: Sequence[str] = ()
) -> jax.export.Exported:
    """Returns the program logits = f(weights, images) for any number of images.

    Args:
        delivery: what is exported.
        weights: arrays, or their shapes, by flat names.
        platforms: others than the delivery's.
    """
    size = delivery.model.image_size
    (batch,) = jax.export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
    with without_places():
        export = jax.export.export(
            jax.jit(function(delivery)), platforms=platforms or delivery.platforms
        )
        return export(weights, images)


def function(delivery: Delivery) -> Callable[[dict[str, Any], Array], Array]:
    """Returns what is exported, as a function: from bytes of pixels to logits."""
    model = delivery.model.clone(dtype=jnp.dtype(delivery.dtype))
    image = delivery.preprocess

    def run(weights: dict[str, Any], images_BYXC: Array) -> Array:
        params = unflatten_dict(weights, sep=".")
        images_BYXC = normalise(images_BYXC, image.mean, image.std)
        return forward(model, params, images_BYXC, delivery.compression).logits

    return run


@contextlib.contextmanager
def without_places() -> Iterator[None]:
    """Leaves the files and lines of this machine out of programs made meanwhile."""
    setting = "jax_traceback_in_locations_limit"
    before = jax.config.values[setting]
    jax.config.update(setting, 0)
    try:
        yield
    finally:
        jax.config.update(setting, before)


def manifest(
    delivery: Delivery, program: jax.export.Exported, provenance: dict[str, Json]
) -> dict[str, Json]:
    """Returns what an artefact says of itself: no dates, so that it can be made again.

    The hashes are missing yet.
    """
    model, image = delivery.model, delivery.preprocess
    pixels = [image.image_size, image.image_size, 3]
    numbers = [str(number) for number in range(model.num_classes)]
    (logits,) = program.out_avals
    return {
        "format": runner.FORMAT,
        "version": runner.VERSION,
        "model": {
            "name": delivery.name,
            "family": family_of(model),
            "fields": architecture(model),
        },
        "schedule": schedule_record(delivery),
        "input": {"dtype": "uint8", "shape": ["b", *pixels], "colours": "RGB"},
        "preprocessing": dataclasses.asdict(image),
        "output": {
            "name": "logits" if model.num_classes else "features",
            "dtype": str(logits.dtype),
            "shape": ["b", logits.shape[1]],
        },
        "labels": list(delivery.labels) or numbers,
        "dtype": delivery.dtype,
        "platforms": list(program.platforms),
        "versions": {
            "jax": jax.__version__,
            "diffrate_jax": __version__,
            "calling_convention": program.calling_convention_version,
        },
        "provenance": provenance,
    }


def schedule_record(delivery: Delivery) -> dict[str, Json]:
    """Returns what a manifest says of the compression and of its cost."""
    model, compression = delivery.model, delivery.compression
    schedule = schedule_of(compression, model.geometry)
    macs, dense = cost_macs(model, schedule), cost_macs(model, None)
    kind = "tome" if isinstance(compression, ToMe) else "gathered"
    return {
        "given": delivery.given,
        "kind": "dense" if compression is None else kind,
        "rule": schedule.rule if kind == "gathered" and compression else None,
        "reference": getattr(compression, "reference", False),
        "prune": schedule.prune,
        "merge": schedule.merge,
        "macs": macs,
        "dense_macs": dense,
    }


def check_place(folder: str | os.PathLike, *, replace: bool = True) -> None:
    """Refuses to write over what is no artefact, and if not `replace` over any.

    Raises:
        UserError: something is there, or the place is in a bucket.
    """
    if in_bucket(folder):
        raise UserError(f"{folder} is in a bucket; write a local folder and copy it")
    folder = Path(folder)
    if not folder.exists():
        return
    if not (folder / runner.MANIFEST).is_file() or not (folder / RUNNER).is_file():
        raise UserError(f"{folder} exists and is no exported model; give another --out")
    if not replace:
        raise UserError(
            f"{folder} holds an exported model; give --overwrite or another --out"
        )


@contextlib.contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """Yields a folder to fill, which takes its place when all went well.

    Raises:
        UserError: the disk is full, or the place cannot be written to.
    """
    part = folder.with_name(f".{folder.name}.{os.getpid()}")
    old = part.with_name(f"{part.name}.old")
    try:
        with writing(folder):
            part.mkdir(parents=True, exist_ok=True)
            yield part
            if folder.exists():
                folder.replace(old)
            part.replace(folder)
    finally:
        if old.exists() and not folder.exists():
            old.replace(folder)
        for rest in (part, old):
            shutil.rmtree(rest, ignore_errors=True)
