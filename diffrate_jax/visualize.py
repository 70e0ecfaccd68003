"""Shows what each token stands for: which patches were merged and pruned, by block.

Writes one HTML page that needs no other file and no network, with a slider over the
blocks; or a PNG for a paper, with a column for each block.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from diffrate_jax.arguments import Parser
from diffrate_jax.chosen import chosen_model, read_labels, short, weights_of
from diffrate_jax.compressions import parse_compression, schedule_of
from diffrate_jax.cost import cost_macs
from diffrate_jax.data.folder import SUFFIXES
from diffrate_jax.depiction import Depicter, read_image
from diffrate_jax.depiction.figure import token_figure
from diffrate_jax.depiction.page import Facts, token_page
from diffrate_jax.depiction.views import Picture
from diffrate_jax.errors import UserError
from diffrate_jax.exits import report_errors
from diffrate_jax.files import write_text
from diffrate_jax.models import Model
from diffrate_jax.models.vit import Compression
from diffrate_jax.pictures import save_png
from diffrate_jax.progress import say

EXAMPLES = """examples:
  python -m diffrate_jax.visualize --weights=weights/deit_s --schedule=published:2.9 \\
      --image=dog.jpg --labels=imagenet_classes.txt --out=dog.html
  python -m diffrate_jax.visualize --model=deit_small_patch16_224 \\
      --weights=deit_small.safetensors --schedule=tome:8 \\
      --image=cat.jpg,dog.jpg --blocks=2,5,8,11 --out=figure.png
  python -m diffrate_jax.visualize --recipe=configs/cifar10.py \\
      --weights=vit_cifar10.safetensors --schedule=schedule.json \\
      --image=photos/ --out=photos.html
"""
KINDS = (".html", ".png")
# Images that each kind of file can hold: a figure is one bitmap of all of them.
MOST = {".html": 400, ".png": 40}
# Columns of a figure, where nobody chose any.
COLUMNS = 6


def parser() -> Parser:
    """Returns the program's flags."""
    flags = Parser("visualize", __doc__, EXAMPLES)
    add = flags.add_argument
    add("--weights", help="folder of convert; or a file of any source")
    add("--model", help="preset name, where --weights does not say")
    add("--recipe", help="config file whose model is taken instead")
    add("--schedule", help="none, published:2.9, tome:8, uniform:60%% or path")
    add(
        "--image",
        action="append",
        default=[],
        help="photo, or folder of photos; more of them separated by commas, or by "
        "more flags",
    )
    add("--out", help="file to write, .html or .png")
    add(
        "--blocks",
        help="all, or numbers such as 0,5,11; by default all in HTML, and in PNG at "
        f"most {COLUMNS} of those that remove tokens",
    )
    add("--labels", help="text file of class names, one to a line")
    add(
        "--preprocess",
        help="published or timm; by default the recipe's, or else the preset's own "
        "(timm)",
    )
    return flags


def visualize(flags: argparse.Namespace) -> None:
    """Reads model and images, runs them, and writes what the flags ask for."""
    for flag in ("weights", "schedule", "image", "out"):
        if not getattr(flags, flag):
            raise UserError(f"--{flag} is needed; see --help for examples")
    kind = kind_of(flags.out)
    files = image_files(flags.image)
    check_count(len(files), kind)
    model, name, preprocess = chosen_model(flags)
    compression = parse_compression(flags.schedule, model, name)
    facts = facts_of(model, name, compression, short(flags.schedule))
    blocks = chosen_blocks(flags.blocks, facts, kind)
    labels = labels_of(flags.labels, model)
    images = {name: read_image(path, preprocess) for name, path in files.items()}
    say(preprocess)
    params = weights_of(flags, model)
    depicter = Depicter(model, params, compression, preprocess, labels)
    pictures = [
        replace(picture, views=tuple(picture.views[block] for block in blocks))
        for picture in depicter.pictures(images)
    ]
    write(flags.out, pictures, facts, kind)
    size = Path(flags.out).stat().st_size / 1e6
    count = "1 image" if len(pictures) == 1 else f"{len(pictures)} images"
    print(f"{flags.out}: {count}, {facts.sentence}, {size:.2g} MB")


def kind_of(out: str) -> str:
    """Returns what is to be written, ".html" or ".png".

    Raises:
        UserError: anything else, or a folder.
    """
    kind = Path(out).suffix.lower()
    if kind not in KINDS:
        raise UserError(f"--out must end in .html or .png, got {out!r}; rename it")
    if Path(out).is_dir():
        raise UserError(f"--out must be a file, {out} is a folder; name a file in it")
    return kind


def image_files(given: Sequence[str]) -> dict[str, Path]:
    """Returns the photos that were named, by what they are called in pictures.

    Raises:
        UserError: one that does not exist, a comma too many, or a folder without any.
    """
    names: dict[Path, str] = {}
    for text in given:
        for part in split_names(text):
            names |= named_photos(Path(part))
    # As short as tells them apart.
    for call in (names.get, lambda path: f"{path.parent.name}/{path.stem}", str):
        files = {call(path): path for path in names}
        if len(files) == len(names):
            break
    return files


def split_names(text: str) -> list[str]:
    """Returns the paths that one flag names.

    Raises:
        UserError: a comma has no path beside it.
    """
    # A name may have commas itself; a list of names may be longer than any name.
    parts = [text] if os.path.exists(text) else text.split(",")
    # An empty path would be the current directory, with all photos below it.
    if not all(parts):
        raise UserError(
            f"--image takes paths with one comma between two of them, got {text!r}; "
            "leave out the comma that has no path beside it"
        )
    return parts


def check_count(count: int, kind: str) -> None:
    """Refuses more images than a file can hold.

    Raises:
        UserError: there are more.
    """
    if count > MOST[kind]:
        page = "" if kind == ".html" else "let --out end in .html, or "
        raise UserError(
            f"a {kind} file holds at most {MOST[kind]} images, got {count}; {page}name "
            "fewer"
        )


def named_photos(path: Path) -> dict[Path, str]:
    """Returns the name of one photo, or of all in a folder and below it."""
    if os.path.isdir(path):
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not inside:
            raise UserError(
                f"expected images in {path}, found none that ends in "
                f"{', '.join(SUFFIXES)}; name a folder that has some"
            )
        return {p: str(p.relative_to(path).with_suffix("")) for p in inside}
    if not os.path.isfile(path):
        raise UserError(f"no image {str(path)!r}; give the path of a photo or a folder")
    return {path: path.stem}


def facts_of(
    model: Model, name: str, compression: Compression | None, given: str
) -> Facts:
    """Returns what is said of all pictures together."""
    geometry = model.geometry
    schedule = schedule_of(compression, geometry)
    return Facts(
        name,
        given,
        cost_macs(model, schedule),
        cost_macs(model, None),
        schedule.steps(geometry)[: geometry.first_stage],
        geometry,
    )


def chosen_blocks(text: str | None, facts: Facts, kind: str) -> list[int]:
    """Returns the blocks to show.

    Args:
        text: what `--blocks` says, None where it was not given.
        facts: of the model.
        kind: of what is written; figures have no room for all.

    Raises:
        UserError: blocks that the model has not, or that are no numbers.
    """
    every = range(len(facts.steps))
    if text == "all" or (text is None and kind == ".html"):
        return list(every)
    if text is None:
        busy = [b for b in every if facts.steps[b][2] < facts.steps[b][0]] or every[-1:]
        at = np.linspace(0, len(busy) - 1, min(COLUMNS, len(busy)))
        return [busy[round(place)] for place in at]
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) in every for part in parts):
        raise UserError(
            f"--blocks takes all, or numbers from 0 to {every[-1]} such as "
            f"0,{every[-1]}, got {text!r}"
        )
    return sorted({int(part) for part in parts})


def labels_of(path: str | None, model: Model) -> list[str]:
    """Returns the names of the classes, none where no file was named.

    Raises:
        UserError: as many as there are not classes.
    """
    labels = read_labels(path) if path else []
    if path and len(labels) != model.num_classes:
        raise UserError(
            f"the model tells {model.num_classes} classes apart, {path} has "
            f"{len(labels)} lines; give one label for each, in their order"
        )
    return labels


def write(out: str, pictures: Sequence[Picture], facts: Facts, kind: str) -> None:
    """Writes the page or the figure; the file appears whole or not at all.

    Raises:
        UserError: the place cannot be written to.
    """
    if kind == ".html":
        write_text(out, token_page(pictures, facts))
    else:
        save_png(token_figure(pictures, facts.steps, facts.geometry), out)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    argv = sys.argv if argv is None else argv
    return report_errors(lambda: visualize(parser().parse_args(argv[1:])))


if __name__ == "__main__":
    sys.exit(main())
