"""Draws a column of a benchmark's table: a bar for each median, a line from least to greatest.

A ratio or a share is drawn, on a scale that goes to 1 at least.

Grey and indigo can be read on white and on black: a picture does not know the page's scheme.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape

_ROW, _LETTER, _WIDTH, _RIGHT = 28, 7.5, 420, 160  # in pixels
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#808080}rect{fill:#5c6bc0}line,path{stroke:#808080}"
    ".within{stroke:#c5cae9}"
)


def bars(title: str, rows: Sequence[tuple[str, str, Sequence[float]]]) -> str:
    """An SVG picture.

    Args:
        title: what is drawn.
        rows: label, what is written at the bar, and the numbers.
    """
    left = max(140, 16 + _LETTER * max(len(label) for label, _, _ in rows))
    longest = max(1.0, *(max(values) for _, _, values in rows))
    scale = _WIDTH / longest
    height = _ROW * (len(rows) + 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + _WIDTH + _RIGHT} {height}"'
        f' role="img"><title>{escape(title)}</title><style>{_STYLE}</style>',
        f'<text x="0" y="17">{escape(title)}</text>',
    ]
    x = left + scale  # as fast, as large, as long; or the whole
    parts.append(f'<line x1="{x:.1f}" y1="{_ROW}" x2="{x:.1f}" y2="{height}"')
    parts.append('stroke-dasharray="2 3"/>')
    for number, (label, shown, values) in enumerate(rows, 1):
        top, middle = number * _ROW, number * _ROW + _ROW / 2
        least, median, greatest = (
            left + scale * value for value in (min(values), statistics.median(values), max(values))
        )
        parts += [
            f'<text x="{left - 8}" y="{middle + 4}" text-anchor="end">{escape(label)}</text>',
            f'<rect x="{left}" y="{top + 6}" width="{median - left:.1f}" height="{_ROW - 12}"/>',
            f'<path class="within" d="M{least:.1f} {middle}H{median:.1f}"/>',
            f'<path d="M{median:.1f} {middle}H{greatest:.1f}"/>',
            f'<text x="{left + _WIDTH + 8}" y="{middle + 4}">{escape(shown)}</text>',
        ]
    return "\n".join([*parts, "</svg>\n"])
