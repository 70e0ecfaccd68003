"""Runs an exported model with jax and numpy alone; export copies this file beside it.

As a program: python deit_s.jaxexport/run.py photo.jpg
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

FORMAT, VERSION = "diffrate_jax.export", 1
MANIFEST, PROGRAM, WEIGHTS = "manifest.json", "program.bin", "weights.safetensors"
# What safetensors calls the types that an artefact's weights may have.
TYPES = {"F32": np.dtype("float32"), "BF16": np.dtype(jax.numpy.bfloat16)}
# JAX calls the platform of its backend by another name than that of its exports.
BACKENDS = {"gpu": ("cuda", "rocm")}


class ArtefactError(ValueError):
    """Bad input: one sentence saying what was expected, what was found, what to do."""


class Predict:
    """An exported model: `logits = predict(images)`.

    Attributes:
        manifest: what the artefact says of itself.

    Raises:
        ArtefactError: the artefact is damaged, or made for other platforms or another
            jax.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self.manifest = read_manifest(folder)
        check_platform(self.manifest["platforms"])
        for name in (PROGRAM, WEIGHTS):
            check_file(folder / name, self.manifest["files"][name])
        self._weights = jax.device_put(read_weights(folder / WEIGHTS))
        self._run = jax.jit(read_program(folder / PROGRAM, self.manifest).call)

    def __call__(self, images: Any) -> jax.Array:
        """Returns float32 logits [b, V] of uint8 images [b, Y, X, 3], RGB.

        Each number of images is compiled once, when it first comes.

        Raises:
            ArtefactError: images of another type or size, or none.
        """
        size = self.manifest["preprocessing"]["image_size"]
        shape, dtype = tuple(np.shape(images)), getattr(images, "dtype", type(images))
        if dtype != np.uint8 or len(shape) != 4 or shape[1:] != (size, size, 3):
            raise ArtefactError(
                f"images must be uint8 [b, {size}, {size}, 3], got {dtype} "
                f"{list(shape)}; resize them and do not normalise them"
            )
        if not shape[0]:
            raise ArtefactError("expected at least one image, got none; give some")
        return self._run(self._weights, images)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns what an artefact says of itself.

    Raises:
        ArtefactError: there is none, it is damaged, or of a later version.
    """
    path = folder / MANIFEST
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtefactError(
            f"{folder} holds no exported model: cannot read {path} ({error.strerror}); "
            "give the folder that export wrote"
        ) from error
    except ValueError as error:
        raise ArtefactError(f"{path} is damaged: not JSON; copy it again") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ArtefactError(f"{path} describes no exported model; copy it again")
    if record.get("version") != VERSION:
        raise ArtefactError(
            f"{path} has version {record.get('version')!r}, this runner reads version "
            f"{VERSION}; use the run.py that came with it"
        )
    if record.get("sha256") != fingerprint(record):
        raise ArtefactError(f"{path} is damaged: its hash differs; copy it again")
    return record


def fingerprint(manifest: dict[str, Any]) -> str:
    """Returns the SHA-256 of all that a manifest says but this."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def check_platform(platforms: Sequence[str]) -> None:
    """Refuses a machine that the artefact was not made for.

    Raises:
        ArtefactError: naming what it was made for.
    """
    here = jax.default_backend()
    if not set(BACKENDS.get(here, (here,))) & set(platforms):
        raise ArtefactError(
            f"this artefact runs on {', '.join(platforms)}, jax here on {here}; set "
            "JAX_PLATFORMS, or export it with --platforms"
        )


def check_file(path: Path, digest: str) -> None:
    """Refuses a file that is not the one that the manifest speaks of.

    Raises:
        ArtefactError: it is missing or damaged.
    """
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtefactError(
            f"cannot read {path} ({error.strerror}); copy the whole folder again"
        ) from error
    if found != digest:
        raise ArtefactError(
            f"{path} is damaged: its SHA-256 is {found[:12]}…, {MANIFEST} says "
            f"{digest[:12]}…; copy it again"
        )


def read_program(path: Path, manifest: dict[str, Any]) -> jax.export.Exported:
    """Returns the exported program.

    Raises:
        ArtefactError: this jax does not read what that jax wrote.
    """
    try:
        return jax.export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:  # The file is whole: what fails is the version.
        raise ArtefactError(
            f"jax {jax.__version__} cannot read {path}, which jax "
            f"{manifest['versions']['jax']} wrote; exports are kept readable for about "
            "six months: export the model again, or install that jax"
        ) from error


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a safetensors file, mapped and not yet in memory."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    content = np.memmap(path, np.uint8, mode="r", offset=8 + length)
    return {
        name: content[slice(*tensor["data_offsets"])]
        .view(TYPES[tensor["dtype"]])
        .reshape(tensor["shape"])
        for name, tensor in header.items()
    }


def read_image(path: str | Path, preprocessing: dict[str, Any]) -> np.ndarray:
    """Returns a photo as the model was made for: uint8 [Y, X, 3]. Needs Pillow.

    The shorter side is brought to `resize`, the central square is cut out, byte for
    byte as torchvision's Resize and CenterCrop do it.

    Raises:
        ArtefactError: it cannot be read, or is no image, or there is no Pillow.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ArtefactError("photos need Pillow: pip install pillow") from error
    size, resize = preprocessing["image_size"], preprocessing["resize"]
    try:
        with Image.open(path) as opened:
            # A palette's transparency changes no colour, but Pillow would warn of it.
            opened.info.pop("transparency", None)
            image = opened.convert("RGB")
    except Exception as error:  # Decoders of a dozen formats: anything may happen.
        raise ArtefactError(
            f"cannot decode {path} ({error}); give files of images"
        ) from error
    width, height = (side * resize // min(image.size) for side in image.size)
    left, top = (round((side - size) / 2) for side in (width, height))
    how = Image.Resampling[preprocessing["interpolation"].upper()]
    image = image.resize((width, height), how)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def predictions(
    predict: Predict, paths: Sequence[str], batch_size: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each file with its probabilities [V].

    All batches are of one size, the last one padded, so that one is compiled.
    """
    batch_size = min(batch_size, len(paths))
    for start in range(0, len(paths), batch_size):
        some = paths[start : start + batch_size]
        images = [read_image(path, predict.manifest["preprocessing"]) for path in some]
        images += [np.zeros_like(images[0])] * (batch_size - len(images))
        if not start:
            print(f"compiling for {batch_size} at once", file=sys.stderr, flush=True)
        logits_BV = np.asarray(predict(np.stack(images)), np.float64)
        exp_BV = np.exp(logits_BV - logits_BV.max(axis=1, keepdims=True))
        yield from zip(some, exp_BV / exp_BV.sum(axis=1, keepdims=True), strict=False)


def described(manifest: dict[str, Any]) -> str:
    """Returns in a few lines what an artefact is and takes."""
    schedule, image = manifest["schedule"], manifest["preprocessing"]
    size = image["image_size"]
    return "\n".join(
        [
            f"{manifest['model']['name']}, schedule {schedule['given']}: "
            f"{schedule['macs'] / 1e9:.4g} of {schedule['dense_macs'] / 1e9:.4g} GMACs",
            f"{manifest['dtype']}, on {', '.join(manifest['platforms'])}; written by "
            f"jax {manifest['versions']['jax']}",
            f"takes uint8 [b, {size}, {size}, 3], RGB: shorter side to "
            f"{image['resize']}, {image['interpolation']}, central square; normalises "
            "by itself",
            f"gives float32 {manifest['output']['name']} "
            f"[b, {manifest['output']['shape'][1]}]",
        ]
    )


def classify(flags: argparse.Namespace) -> None:
    """Prints what the artefact is, or the likeliest classes of each photo.

    Raises:
        ArtefactError: the artefact cannot be run, or a file is no photo.
    """
    folder = Path(flags.artefact)
    if not flags.images:
        print(described(read_manifest(folder)))
        return
    if min(flags.batch, flags.top) < 1:
        raise ArtefactError("--batch and --top must be at least 1; raise them")
    predict = Predict(folder)
    labels = predict.manifest["labels"]
    if not labels:
        raise ArtefactError(
            "this model tells no classes apart; Predict(folder)(images) gives its "
            "features"
        )
    for path, share_V in predictions(predict, flags.images, flags.batch):
        print(path)
        for label in np.argsort(-share_V, kind="stable")[: flags.top]:
            print(f"  {share_V[label]:6.1%}  {labels[label]}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status: 0, or 2 after one sentence."""
    flags = argparse.ArgumentParser(
        description="Classifies photos with the exported model beside this file.",
        epilog="without photos it says what the model is and takes",
    )
    flags.add_argument("images", nargs="*", help="files of photos")
    flags.add_argument("--top", type=int, default=5, help="classes shown (default 5)")
    flags.add_argument("--batch", type=int, default=8, help="at once (default 8)")
    flags.add_argument(
        "--artefact", default=Path(__file__).parent, help="another folder than this"
    )
    try:
        classify(flags.parse_args(argv))
    except ArtefactError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
