"""A figure as an SVG file of its own, legend included."""

from collections.abc import Sequence

from diffrate_jax.pages import page_part
from diffrate_jax.reporting.charts import SHAPES, Look, esc, room_of
from diffrate_jax.reporting.sections import Figure

KEY, MARGIN = 20, 8


def svg_picture(figure: Figure) -> str:
    """Returns a figure, its charts below each other, as one SVG file."""
    width = max(chart.width for chart in figure.charts)
    body, top = [], MARGIN
    for chart in figure.charts:
        body.append(f'<g transform="translate(0,{top})">{chart.inside()}</g>')
        top += chart.height
    for number, (look, x, row) in enumerate(placed(figure.looks, width)):
        body.append(key(look, x, top + KEY * row + MARGIN))
        if number == len(figure.looks) - 1:
            top += KEY * (row + 1)
    height = top + 2 * MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" '
        f'aria-label="{esc(figure.title)}">\n<style>{page_part("chart.css")}</style>\n'
        f'<rect width="100%" height="100%" style="fill:var(--page)"/>\n'
        f"{''.join(body)}\n</svg>\n"
    )


def placed(looks: Sequence[Look], width: int) -> list[tuple[Look, float, int]]:
    """Returns column and row of each entry of a legend."""
    places, x, row = [], float(MARGIN), 0
    for look in looks:
        room = 26 + room_of(look.name)
        if x > MARGIN and x + room > width:
            x, row = float(MARGIN), row + 1
        places.append((look, x, row))
        x += room
    return places


def key(look: Look, x: float, y: float) -> str:
    """Returns one entry of a legend."""
    return (
        f'<g class="pt" style="--c:var(--{look.colour})">'
        f'<path transform="translate({x + 8:.1f},{y:.1f})" d="{SHAPES[look.shape]}"/>'
        f'<text x="{x + 20:.1f}" y="{y + 4:.1f}">{esc(look.name)}</text></g>'
    )
