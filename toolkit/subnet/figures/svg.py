"""A figure as SVG text that can stand alone or several times in one page."""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from xml.sax.saxutils import escape

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from subnet.figures._style import INK, clean, styled

#: Text stays text: the reader's machine has the fonts for its script, ours may not.
FONT_FAMILY = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', Arial, sans-serif"

_XLINK = "{http://www.w3.org/1999/xlink}"
_REFERENCE = re.compile(r"#([\w-]+)")
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_FONT = re.compile(r"font-family:[^;]*;?\s*")
_ROUNDED = frozenset({"d", "x", "y", "x1", "x2", "y1", "y2", "width", "height", "points"})


@styled
def to_svg(figure: Figure, *, name: str, title: str, description: str = "") -> str:
    """Draw a figure as SVG.

    The same figure gives the same bytes. Text is kept as text, in the colour and the direction of
    what surrounds it (`currentColor`, transparent background); nothing in it is markup. Identifiers
    begin with the name, so that figures with different names can stand in one page.

    Args:
        figure: What to draw.
        name: Name of the figure: letters, digits, `-`, `_`.
        title: What the figure shows, for those who cannot see it.
        description: More of the same.

    Returns:
        An `<svg>` element, without XML declaration.

    Example:
        >>> to_svg(Figure(), name="empty", title="Nothing")[:4]
        '<svg'
    """
    name = re.sub(r"[^\w-]", "-", name, flags=re.ASCII)
    file = io.StringIO()
    with warnings.catch_warnings():
        # matplotlib only measures with its own font; the browser has one for every script
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from")
        warnings.filterwarnings("ignore", message=r"Matplotlib currently does not support")
        FigureCanvasSVG(figure).print_svg(  # type: ignore[no-untyped-call]
            file, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    root = ET.fromstring(file.getvalue())  # noqa: S314  (written by matplotlib just now)
    _simplify(root, name)
    body = "".join(ET.tostring(child, encoding="unicode") for child in root)
    described = f" {name}-description" if description else ""
    start = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        f' width="{root.get("width")}" height="{root.get("height")}"'
        f' viewBox="{root.get("viewBox")}" role="img"'
        f' aria-labelledby="{name}-title{described}"'
        f' style="font-family: {FONT_FAMILY}; stroke-linejoin: round; stroke-linecap: butt">'
    )
    lines = [start, f'<title id="{name}-title">{escape(clean(title, 200))}</title>']
    if description:
        text = escape(clean(description, 2000))
        lines.append(f'<desc id="{name}-description">{text}</desc>')
    return "\n".join([*lines, re.sub(r"\n\s*", "\n", body).strip(), "</svg>"])


def _simplify(root: ET.Element, name: str) -> None:
    """Drop what only matplotlib needs, shorten numbers, and make identifiers the figure's own."""
    _drop(root, {"metadata", "style"})
    used: dict[str, str] = {}
    for element in root.iter():
        for value in element.attrib.values():
            if "#" in value and ("url(" in value or value.startswith("#")):
                for found in _REFERENCE.findall(value):
                    used.setdefault(found, f"{name}-{len(used)}")
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            if key == "id":
                if value in used:
                    element.set("id", used[value])
                continue
            if "url(" in value or value.startswith("#"):
                value = _REFERENCE.sub(lambda m: "#" + used.get(m[1], m[1]), value)
            elif key in _ROUNDED or (key == "transform" and "matrix" not in value):
                value = _LONG_NUMBER.sub(lambda m: f"{float(m[0]):.2f}", value)
            elif key == "style":
                value = _FONT.sub("", value).replace(INK, "currentColor").rstrip("; ")
            element.set(key.replace(_XLINK, "xlink:"), value)
    for group in root.iter("g"):
        _hoist_style(group)


def _drop(parent: ET.Element, tags: set[str]) -> None:
    for child in list(parent):
        if child.tag.rpartition("}")[2] in tags:
            parent.remove(child)
        else:
            _drop(child, tags)


def _hoist_style(group: ET.Element) -> None:
    """Write the style that all markers of a group share once."""
    uses = [child for child in group if child.tag == "use"]
    styles = {child.get("style") for child in uses}
    if len(uses) > 1 and len(uses) == len(group) and len(styles) == 1 and None not in styles:
        group.set("style", "; ".join(filter(None, (group.get("style"), styles.pop()))))
        for child in uses:
            del child.attrib["style"]
