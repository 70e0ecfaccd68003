"""Pictures and what became of their tokens: one HTML page that needs nothing else."""

import base64
import dataclasses
import html
import io
import json
from collections.abc import Sequence

import numpy as np
from PIL import Image

from diffrate_jax.depiction.groups import Group, inset
from diffrate_jax.depiction.views import Guess, Picture, View
from diffrate_jax.files import Json
from diffrate_jax.pages import page_part
from diffrate_jax.shapes import Geometry

# Width of an outline, in patches.
LINE = 0.1
TITLE = "What each token stands for"


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is said of all pictures together.

    Attributes:
        model: name of the model.
        schedule: how the user named it.
        macs: multiply-accumulates of one image.
        dense_macs: and of the dense model.
        steps: tokens (coming in, after pruning, after merging) of each block.
        geometry: of the model.
    """

    model: str
    schedule: str
    macs: int
    dense_macs: int
    steps: tuple[tuple[int, int, int], ...]
    geometry: Geometry

    @property
    def sentence(self) -> str:
        """What is shown, in one line."""
        share = self.macs / self.dense_macs
        return (
            f"{self.model} · {self.schedule} · {self.macs / 1e9:.4g} of "
            f"{self.dense_macs / 1e9:.4g} GMACs ({share:.1%})"
        )

    @property
    def attention(self) -> str:
        """What importance is a share of."""
        whose = "the class token's" if self.geometry.prefix_tokens else "all"
        return f"{whose} attention"


def token_page(pictures: Sequence[Picture], facts: Facts) -> str:
    """Returns the page.

    Args:
        pictures: of one model, with the same blocks.
        facts: about the model.
    """
    parts = {
        "title": html.escape(TITLE),
        "style": page_part("tokens.css"),
        "script": page_part("card.js") + page_part("tokens.js"),
        "data": in_script(_record(pictures, facts)),
    }
    page = page_part("tokens.html")
    # One pass over the page: what is put in is not searched for marks.
    before, *rest = page.split("{{")
    return before + "".join(
        parts[mark] + after for mark, after in (part.split("}}", 1) for part in rest)
    )


def in_script(record: Json) -> str:
    """Returns JSON that may stand in a script element whatever its texts say."""
    text = json.dumps(record, separators=(",", ":"), allow_nan=False)
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text


def _record(pictures: Sequence[Picture], facts: Facts) -> Json:
    first = pictures[0]
    return {
        "facts": facts.sentence,
        "attention": facts.attention,
        "tokens": facts.geometry.num_tokens,
        "prefix": facts.geometry.prefix_tokens,
        "side": first.side,
        "pixels": len(first.image_YXC),
        "line": LINE,
        "blocks": [
            {"block": view.block, "steps": facts.steps[view.block]}
            for view in first.views
        ],
        "pictures": [_picture(picture) for picture in pictures],
    }


def _picture(picture: Picture) -> Json:
    return {
        "name": picture.name,
        "image": data_url(picture.image_YXC),
        "pruned": picture.pruned_P.tolist(),
        "views": [_view(view) for view in picture.views],
        "dense": [_guess(guess) for guess in picture.dense],
        "compressed": [_guess(guess) for guess in picture.compressed],
    }


def _view(view: View) -> Json:
    merged = [group for group in view.groups if len(group.patches) > 1]
    owner_P = np.full(len(view.importance_P), -1)
    for number, group in enumerate(merged):
        owner_P[list(group.patches)] = number
    return {
        "owner": owner_P.tolist(),
        "importance": [_short(share) for share in view.importance_P],
        "groups": [_group(group) for group in merged],
    }


def _group(group: Group) -> Json:
    return {
        "patches": len(group.patches),
        "size": round(group.size, 2),
        "fill": _hex(group.colour),
        "line": _hex(group.edge),
        "path": "".join(svg_loop(inset(loop, LINE / 2)) for loop in group.loops),
    }


def _guess(guess: Guess) -> Json:
    return {"label": guess.label, "probability": round(guess.probability, 4)}


def _short(share: float) -> float | None:
    """Returns a number to three digits; none where it is none."""
    return None if np.isnan(share) else float(f"{share:.3g}")


def _hex(colour: Sequence[int]) -> str:
    return "#" + "".join(f"{channel:02x}" for channel in colour)


def svg_loop(loop: Sequence[tuple[float, float]]) -> str:
    """Returns a closed loop as a part of an SVG path."""
    points = "L".join(f"{x:.2f} {y:.2f}" for x, y in loop)
    return f"M{points}Z"


def data_url(image_YXC: np.ndarray) -> str:
    """Returns an image as a PNG in a URL."""
    buffer = io.BytesIO()
    Image.fromarray(image_YXC).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
