"""What all figures share: colours, sizes in inches, and labels that are never interpreted."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import matplotlib.style
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

#: Stands for the colour of the text around the figure; `to_svg` writes `currentColor` for it, so
#: that one picture is readable on white and on black.
INK = "#010203"

#: Okabe and Ito (2008), told apart with any kind of colour vision; black is left out, because it
#: vanishes in dark mode.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#f0e442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

#: Points; 9 pt are 12 CSS pixels.
TEXT, SMALL = 9.0, 8.0

STYLE: dict[str, Any] = {
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.labelsize": TEXT,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": TEXT,
    "figure.facecolor": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": TEXT,
    "legend.edgecolor": "none",
    "legend.facecolor": "none",
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "subnet",
    "text.color": INK,
    "text.parse_math": False,  # a label with `$` or `_` is a label
    "text.usetex": False,
    "xtick.color": INK,
    "xtick.labelsize": SMALL,
    "xtick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.color": INK,
    "ytick.labelsize": SMALL,
    "ytick.major.size": 2.5,
    "ytick.major.width": 0.6,
}

_P = ParamSpec("_P")
_R = TypeVar("_R")


def styled(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Run a function under the style of the figures, whatever the user's matplotlibrc says."""

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with matplotlib.style.context(["default", STYLE]):
            return function(*args, **kwargs)

    return wrapped


def canvas(
    inner: tuple[float, float],
    *,
    left: float = 0.7,
    right: float = 0.2,
    top: float = 0.3,
    bottom: float = 0.6,
) -> tuple[Figure, Axes]:
    """A figure with one axes of the given inner width and height; all lengths in inches.

    Margins are set by hand, from the width of the labels: what matplotlib would measure is its own
    font, and the reader's browser writes in another.
    """
    figure = Figure(figsize=(left + inner[0] + right, top + inner[1] + bottom))
    figure.patch.set_visible(False)
    return figure, axes_at(figure, (left, bottom, *inner))


def axes_at(figure: Figure, box: tuple[float, float, float, float]) -> Axes:
    """Axes at (left, bottom, width, height) in inches."""
    width, height = figure.get_size_inches()
    place = (box[0] / width, box[1] / height, box[2] / width, box[3] / height)
    axes: Axes = figure.add_axes(place)
    axes.patch.set_visible(False)
    return axes


def text_width(text: str, size: float = SMALL) -> float:
    """Width in inches that a text may need in the fonts of a browser."""
    units = 0.0
    for character in text:
        if unicodedata.category(character) in {"Mn", "Me", "Cf"}:
            continue
        units += 1.0 if unicodedata.east_asian_width(character) in {"W", "F"} else 0.6
    return units * size / 72


def widest(texts: Iterable[str], size: float = SMALL) -> float:
    """Width of the widest of the texts, in inches."""
    return max((text_width(text, size) for text in texts), default=0.0)


def clean(text: object, most: int = 26) -> str:
    """A label as one line of at most so many characters, without control characters."""
    line = "".join(
        " " if character.isspace() else character
        for character in str(text)
        if character.isspace() or unicodedata.category(character) not in {"Cc", "Cs", "Co", "Cn"}
    ).strip()
    return line if len(line) <= most else line[: most - 1] + "…"


@dataclass(frozen=True)
class Names:
    """What to call the languages, from the table of languages.

    Attributes:
        name: Label to English name, where known.
        script: Label to name of the script, where known.
    """

    name: dict[str, str]
    script: dict[str, str]

    @classmethod
    def of(cls, languages: pd.DataFrame | None) -> Names:
        """Read the columns `language`, `name` and `script_name` (else `script`)."""
        if languages is None or languages.empty:
            return cls({}, {})
        labels = [str(label) for label in languages["language"]]

        def column(*choices: str) -> dict[str, str]:
            found = next((choice for choice in choices if choice in languages.columns), None)
            if found is None:
                return {}
            return {
                label: str(value)
                for label, value in zip(labels, languages[found], strict=True)
                if isinstance(value, str) and value
            }

        return cls(column("name"), column("script_name", "script"))

    def long(self, label: str) -> str:
        """Label and English name."""
        name = self.name.get(label, "")
        short = clean(label, 18)
        return short if not name or name == label else f"{short}  {clean(name, 19)}"

    def scripts(self, labels: Sequence[str]) -> list[str]:
        """Scripts of the languages, the most frequent first, Latin ahead of all."""
        counts = pd.Series([self.script.get(label, "unknown") for label in labels]).value_counts()
        return sorted(counts.index, key=lambda s: (s != "Latin", -counts[s], s))


def look(index: int) -> tuple[str, str]:
    """Colour and marker of the nth group; the pair is unique up to 49 groups."""
    return (
        COLOURS[index % len(COLOURS)],
        MARKERS[(index + index // len(COLOURS)) % len(MARKERS)],
    )


def legend_entries(groups: Sequence[str]) -> tuple[list[Line2D], list[str]]:
    """Handles and labels for groups drawn with `look`."""
    handles = [
        Line2D([], [], linestyle="", markersize=5, markeredgewidth=0.5, markeredgecolor=INK,
               color=look(index)[0], marker=look(index)[1])
        for index in range(len(groups))
    ]  # fmt: skip
    return handles, [clean(group) for group in groups]


def plain_axes(axes: Axes) -> None:
    """Hide the frame and the tick marks."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def grid(axes: Axes, axis: Any = "x") -> None:
    """Faint lines behind the data."""
    axes.grid(True, axis=axis, color=INK, alpha=0.13, linewidth=0.6)
    axes.set_axisbelow(True)
