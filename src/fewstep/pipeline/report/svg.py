"""Figures inside a page: SVG that takes its colours and its font from the style sheet."""

import io
from collections.abc import Mapping
from xml.etree import ElementTree as ET

from markupsafe import Markup
from matplotlib.figure import Figure

from fewstep.pipeline.report.figures import FONT, house_style, page_colours

_GROUPS = ("line", "band", "label")  # before the family in the gid of an artist that belongs to one
_SVG, _HREF = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"


def inline_svg(figure: Figure, *, name: str, label: str, titles: Mapping[str, str] | None = None) -> Markup:
    """The figure as an SVG element that takes its colours from the variables of the page.

    Args:
        figure: What to draw.
        name: Prefix of every id, so that several figures fit one page.
        label: What the figure shows, for readers who cannot see it.
        titles: Tooltip by gid of the artists that have one.
    """
    buffer = io.BytesIO()
    with house_style():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ET.fromstring(buffer.getvalue())
    for metadata in root.findall(f"{_SVG}metadata"):
        root.remove(metadata)
    for element in list(root.iter()):
        element.tag = element.tag.removeprefix(_SVG)
        _describe(element, titles or {})
        _adapt(element, name)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    return Markup(ET.tostring(root, encoding="unicode"))


def _describe(element: ET.Element, titles: Mapping[str, str]) -> None:
    """Make an artist with a title a point that says it, and one of a family a mark of that family."""
    gid = element.get("id", "")
    group, _, family = gid.partition("-")
    if element.tag == "g" and gid in titles:
        element.set("class", "point")
        title = ET.Element("title")
        title.text = titles[gid]
        element.insert(0, title)
    elif element.tag == "g" and family and group in _GROUPS:
        element.set("class", "mark")
        element.set("data-family", family)


def _adapt(element: ET.Element, name: str) -> None:
    """Prefix ids and references to them, and put the variables of the page in place of colours and font."""
    if _HREF in element.attrib:
        element.set("href", element.attrib.pop(_HREF))
    for key, value in element.items():
        if key == "id":
            element.set(key, f"{name}-{value}")
        elif key == "href":
            element.set(key, value.replace("#", f"#{name}-", 1))
        else:
            with_references = value.replace("url(#", f"url(#{name}-")
            element.set(key, _styled(with_references) if key == "style" else with_references)


def _styled(style: str) -> str:
    variables = {colour: f"var(--{variable})" for variable, colour in page_colours().items()}
    declarations = []
    for declaration in filter(str.strip, style.split(";")):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        value = variables.get(value, value.replace(f"'{FONT}'", "var(--font)"))
        declarations.append(f"{key}: {value}")
    return "; ".join(declarations)
