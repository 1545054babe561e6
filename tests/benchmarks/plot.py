"""A small line chart as SVG: one picture does not justify a library."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 48, 56
COLOURS = ("#4f46e5", "#d97706", "#059669")


class Series(NamedTuple):
    name: str
    points: Sequence[tuple[float, float, str]]  # x, y, label


def write_plot(path: Path, *, title: str, x: str, y: str, series: Sequence[Series]) -> None:
    """The x axis is logarithmic."""
    points = [point for one in series for point in one.points]
    low, high = min(p[0] for p in points) / 1.3, max(p[0] for p in points) * 1.3
    bottom = math.floor(20 * min(p[1] for p in points) - 0.2) / 20
    highest = max(p[1] for p in points)
    top = math.ceil(20 * highest + 0.2) / 20 if highest > 1 else 1.0

    def across(value: float) -> float:
        share = math.log(value / low) / math.log(high / low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def up(value: float) -> float:
        share = (value - bottom) / (top + 0.005 - bottom)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="26" font-size="15" fill="#111827">{escape(title)}</text>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 14}" text-anchor="middle" fill="#374151">'
        f"{escape(x)}</text>",
        f'<text x="16" y="{HEIGHT / 2}" text-anchor="middle" fill="#374151" '
        f'transform="rotate(-90 16 {HEIGHT / 2})">{escape(y)}</text>',
    ]
    for n in range(6):
        value = bottom + (top - bottom) * n / 5
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(value):.1f}" y2="{up(value):.1f}" '
            'stroke="#e5e7eb"/>'
            f'<text x="{LEFT - 8}" y="{up(value) + 4:.1f}" text-anchor="end" fill="#6b7280">'
            f"{value:.2f}</text>"
        )
    for value in (v * 10**e for e in range(-2, 7) for v in (1, 2, 5)):
        if low <= value <= high:
            parts.append(
                f'<text x="{across(value):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" '
                f'fill="#6b7280">{_in_figures(value)}</text>'
            )
    for number, one in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        line = " ".join(f"{across(px):.1f},{up(py):.1f}" for px, py, _ in one.points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for place, (px, py, label) in enumerate(one.points):
            below = 18 if place % 2 else -8
            parts.append(
                f'<circle cx="{across(px):.1f}" cy="{up(py):.1f}" r="4" fill="{colour}"/>'
                f'<text x="{across(px):.1f}" y="{up(py) + below:.1f}" text-anchor="middle" '
                f'fill="#374151">{escape(label)}</text>'
            )
        parts.append(
            f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - BOTTOM - 12 - 18 * number}" text-anchor="end" '
            f'fill="{colour}">{escape(one.name)}</text>'
        )
    path.write_text("\n".join([*parts, "</svg>\n"]))


def _in_figures(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"
