"""What figures of other packages are drawn with, so that they look like those of `subnet`.

Every function that draws is decorated with `styled` and returns what `canvas` made; `to_svg` of
`subnet.figures` writes it.
"""

from subnet.figures._style import (
    COLOURS,
    INK,
    MARKERS,
    SMALL,
    TEXT,
    Names,
    axes_at,
    canvas,
    clean,
    grid,
    legend_entries,
    look,
    plain_axes,
    styled,
    text_width,
    widest,
)
from subnet.figures.heat_maps import (
    cluster_order,
    colour_bar,
    heat_map,
    robust_limit,
    span_of,
    write_numbers,
)

__all__ = [
    "COLOURS",
    "INK",
    "MARKERS",
    "SMALL",
    "TEXT",
    "Names",
    "axes_at",
    "canvas",
    "clean",
    "cluster_order",
    "colour_bar",
    "grid",
    "heat_map",
    "legend_entries",
    "look",
    "plain_axes",
    "robust_limit",
    "span_of",
    "styled",
    "text_width",
    "widest",
    "write_numbers",
]
