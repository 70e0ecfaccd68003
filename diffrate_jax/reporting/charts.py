"""Charts as SVG: axes, lines, points, bars and cells, each mark with its tooltip.

Colours are names that the style sheet defines for light and dark, and a mark's title
is what a browser shows on hover even without JavaScript.
"""

import dataclasses
import html
import math
from collections.abc import Iterable, Sequence

SHAPES = {
    "circle": "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0z",
    "square": "M-4,-4h8v8h-8z",
    "up": "M0,-5.5L5,4H-5z",
    "down": "M0,5.5L5,-4H-5z",
    "diamond": "M0,-5.5L5.5,0L0,5.5L-5.5,0z",
    "cross": "M-4.5,-2.5L-2.5,-4.5L0,-2L2.5,-4.5L4.5,-2.5L2,0L4.5,2.5L2.5,4.5L0,2"
    "L-2.5,4.5L-4.5,2.5L-2,0z",
    "star": "M0,-8L2,-2.6L7.6,-2.5L3.2,1L4.7,6.5L0,3.3L-4.7,6.5L-3.2,1L-7.6,-2.5"
    "L-2,-2.6z",
    "hexagon": "M0,-7.5L6.5,-3.8V3.8L0,7.5L-6.5,3.8V-3.8z",
}
Point = tuple[float, float]
# Pixels of letters in DejaVu Sans, the widest font of the style sheet: slim ones, broad
# ones, and all others, of which capitals are rare enough.
SLIM, BROAD = frozenset("fijlrtI/.,:;-|()[]!' "), frozenset("mwMW%@…—")
NARROW, LETTER, WIDE = 4.9, 7.7, 12.0


@dataclasses.dataclass(frozen=True)
class Look:
    """How a series looks in every chart: a colour of the style sheet, and a shape."""

    name: str
    colour: str
    shape: str = "circle"
    is_strong: bool = False


@dataclasses.dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` along one side of a chart."""

    label: str
    low: float
    high: float
    is_log: bool = False

    @classmethod
    def around(
        cls,
        label: str,
        values: Iterable[float],
        *,
        pad: float = 0.06,
        zero: bool = False,
        is_log: bool = False,
    ) -> "Axis":
        """Returns an axis that holds all values, from zero where `zero` says so."""
        values = list(values)
        low, high = min(values), max(values)
        # Values so near each other would have ticks of one name.
        is_one = high - low <= 1e-4 * abs(high)
        if is_log:
            room = 2 if is_one else (high / low) ** pad
            return cls(label, low / room, high * room, is_log=True)
        room = 0.05 * abs(high) or 1 if is_one else pad * (high - low)
        bottom = min(0.0, low) if zero else low - room
        return cls(label, bottom, high + room)

    def place(self, value: float) -> float:
        """Returns where a value is, 0 at the low end and 1 at the high one."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int = 6) -> list[float]:
        """Returns round values between the ends, of which there are few."""
        if self.is_log and self.high / self.low > 3:
            powers = range(
                math.floor(math.log10(self.low)), 1 + math.ceil(math.log10(self.high))
            )
            every = [f * 10.0**p for p in powers for f in (1, 2, 5)]
            found = [t for t in every if self.low <= t <= self.high]
            return (
                found
                if len(found) <= most + 2
                else [t for t in found if f"{t:e}"[0] == "1"]
            )
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(i * step, 12) for i in range(first, last + 1)]

    def text(self, value: float) -> str:
        """Returns a tick's words."""
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}"


class Chart:
    """Marks on two axes, written as one SVG element.

    Args:
        title: above it.
        x: the axis below; None leaves it and its room out.
        y: the axis on the left; None likewise.
        width: of the whole, in pixels.
        height: of the whole.
        left: room for the words on the left.
    """

    def __init__(
        self,
        title: str,
        x: Axis | None,
        y: Axis | None,
        *,
        width: int = 480,
        height: int = 320,
        left: int = 66,
        right: int = 14,
    ) -> None:
        self.title, self.width, self.height = title, width, height
        self._x, self._y = x, y
        self._left, self._right, self.top = left, width - right, 34 if title else 12
        self._bottom = height - (46 if x else 8)
        self._marks: list[str] = []

    def at(self, x: float, y: float) -> Point:
        """Returns where values are, in pixels from the upper left corner."""
        return self.across(x), self.down(y)

    def across(self, x: float) -> float:
        """Returns the column of a value."""
        share = self._x.place(x) if self._x else x
        return self._left + share * (self._right - self._left)

    def down(self, y: float) -> float:
        """Returns the row of a value."""
        share = self._y.place(y) if self._y else 1 - y
        return self._bottom - share * (self._bottom - self.top)

    def line(
        self,
        points: Sequence[Point],
        look: Look,
        *,
        run: str = "",
        dash: str = "",
        tip: str = "",
    ) -> None:
        """Draws a line through points; `dash` is that of SVG."""
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(*p) for p in points))
        broken = f' stroke-dasharray="{dash}"' if dash else ""
        strong = " strong" if look.is_strong else ""
        self._marks.append(
            f'<polyline class="line{strong}" {_tags(look, run)}{broken} '
            f'points="{places}">{_tip(tip)}</polyline>'
        )

    def point(self, x: float, y: float, look: Look, tip: str, *, run: str = "") -> None:
        """Draws a mark that tells what it is."""
        column, row = self.at(x, y)
        self._marks.append(
            f'<g class="pt" tabindex="0" {_tags(look, run)}>{_tip(tip)}'
            f'<path transform="translate({column:.1f},{row:.1f})" '
            f'd="{SHAPES[look.shape]}"/></g>'
        )

    def whisker(self, x: float, low: float, high: float, look: Look, run: str) -> None:
        """Draws an interval of y."""
        column = self.across(x)
        ends = self.down(low), self.down(high)
        self._marks.append(
            f'<path class="whisker" {_tags(look, run)} '
            f'd="M{column - 3:.1f},{ends[0]:.1f}h6m-3,0V{ends[1]:.1f}m-3,0h6"/>'
        )

    def box(
        self,
        corner: Point,
        size: Point,
        colour: str,
        tip: str = "",
        *,
        run: str = "",
        shade: float = 1,
        is_stop: bool = True,
    ) -> None:
        """Fills a rectangle given in pixels; `is_stop`: the keyboard stops there."""
        (x, y), (wide, high) = corner, size
        focus = ' tabindex="0"' if tip and is_stop else ""
        faint = f' fill-opacity="{shade:.2f}"' if shade < 1 else ""
        self._marks.append(
            f'<g class="box"{focus} data-run="{esc(run)}" style="--c:var(--{colour})">'
            f'{_tip(tip)}<rect x="{x:.1f}" y="{y:.1f}" width="{max(wide, 0):.1f}" '
            f'height="{max(high, 0):.1f}"{faint}/></g>'
        )

    def stroke(self, start: Point, end: Point, colour: str, width: float = 1.5) -> None:
        """Draws a line between two places given in pixels."""
        (x1, y1), (x2, y2) = start, end
        self._marks.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
            f'stroke-width="{width}" style="stroke:var(--{colour})"/>'
        )

    def text(self, place: Point, words: str, *, kind: str = "", run: str = "") -> None:
        """Writes words at a place given in pixels; `kind` is "end", "mid" or more."""
        named = f' data-run="{esc(run)}"' if run else ""
        self._marks.append(
            f'<text class="{kind}" x="{place[0]:.1f}" y="{place[1]:.1f}"{named}>'
            f"{esc(words)}</text>"
        )

    def inside(self) -> str:
        """Returns the chart without its outer element."""
        head = f'<text class="head" x="4" y="18">{esc(self.title)}</text>'
        return (head if self.title else "") + self._axes() + "".join(self._marks)

    def svg(self, label: str) -> str:
        """Returns the chart; `label` is for those who do not see it."""
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" style="--wide:{self.width}" role="group" '
            f'aria-label="{esc(label)}">'
            f"{self.inside()}</svg>"
        )

    def _axes(self) -> str:
        marks = []
        if self._y:
            for tick in self._y.ticks():
                y = self.down(tick)
                marks.append(
                    f'<path class="grid" d="M{self._left},{y:.1f}H{self._right}"/>'
                    f'<text class="end" x="{self._left - 6}" y="{y + 4:.1f}">'
                    f"{self._y.text(tick)}</text>"
                )
            middle = (self.top + self._bottom) / 2
            marks.append(
                f'<text class="mid" transform="translate(13,{middle}) rotate(-90)">'
                f"{esc(self._y.label)}</text>"
            )
        if self._x:
            for tick in self._x.ticks():
                x = self.across(tick)
                marks.append(
                    f'<path class="grid" d="M{x:.1f},{self.top}V{self._bottom}"/>'
                    f'<text class="mid" x="{x:.1f}" y="{self._bottom + 17}">'
                    f"{self._x.text(tick)}</text>"
                )
            middle = (self._left + self._right) / 2
            marks.append(
                f'<text class="mid" x="{middle}" y="{self.height - 8}">'
                f"{esc(self._x.label)}</text>"
            )
        return "".join(marks)


def esc(text: str) -> str:
    """Returns text that is no markup."""
    return html.escape(text)


def room_of(words: str) -> float:
    """Returns how many pixels words take at most, but for a few rare letters."""
    return sum(NARROW if c in SLIM else WIDE if c in BROAD else LETTER for c in words)


def shortened(name: str, room: float) -> str:
    """Returns the end of a name, which tells paths apart, in so many pixels."""
    if room_of(name) <= room:
        return name
    ends = ("…" + name[start:] for start in range(1, len(name)))
    return next((end for end in ends if room_of(end) <= room), "…")


def _tip(text: str) -> str:
    return f"<title>{esc(text)}</title>" if text else ""


def _tags(look: Look, run: str) -> str:
    return (
        f'data-series="{esc(look.name)}" data-run="{esc(run)}" '
        f'style="--c:var(--{look.colour})"'
    )
