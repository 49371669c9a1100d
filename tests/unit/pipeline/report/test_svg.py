"""Figures inside a page: valid, in the colours of the page, and with names that no other figure uses."""

from xml.etree import ElementTree as ET

import pytest
from matplotlib.figure import Figure

from fewstep.pipeline.report.figures import COLOURS, INK, house_style, page_colours
from fewstep.pipeline.report.svg import inline_svg


def figure() -> Figure:
    with house_style():
        made = Figure(figsize=(3, 2))
        axes = made.add_subplot()
        axes.plot([0, 1], [0, 1], color=COLOURS[0], gid="line-a-b")
        axes.fill_between([0, 1], [0, 1], [1, 2], color=COLOURS[1], alpha=0.2, gid="band-a-b")
        axes.plot(0.5, 0.5, "o", color=COLOURS[0], gid="point-1")
        axes.annotate("A & <B>", (0, 0), color=INK, gid="label-a-b")
    return made


@pytest.fixture(scope="module")
def root() -> ET.Element:
    return ET.fromstring(
        inline_svg(figure(), name="mine", label='a "figure" of <x>', titles={"point-1": "x < y & z"})
    )


def groups(root: ET.Element, gid: str) -> list[ET.Element]:
    return [element for element in root.iter("g") if element.get("id") == gid]


def test_the_element_is_bare_and_says_what_it_shows(root: ET.Element) -> None:
    assert root.tag == "svg"
    assert root.attrib == {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-label": 'a "figure" of <x>',
    }
    assert not [element for element in root.iter() if ":" in element.tag or "}" in element.tag]
    assert not list(root.iter("metadata"))


def test_every_id_has_the_name_and_every_reference_a_target(root: ET.Element) -> None:
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    assert all(one.startswith("mine-") for one in ids)
    text = ET.tostring(root, encoding="unicode")
    used = {element.get("href") for element in root.iter() if element.get("href")}
    assert used and used <= {f"#{one}" for one in ids}
    clipped = {part.partition(")")[0] for part in text.split("url(#")[1:]}
    assert clipped and clipped <= set(ids)


def test_points_have_their_title_and_marks_their_family(root: ET.Element) -> None:
    (point,) = groups(root, "mine-point-1")
    assert point.get("class") == "point"
    assert [child.text for child in point if child.tag == "title"] == ["x < y & z"]
    for group in ("line", "band", "label"):
        (mark,) = groups(root, f"mine-{group}-a-b")
        assert (mark.get("class"), mark.get("data-family")) == ("mark", "a-b")


def test_colours_and_font_are_those_of_the_page(root: ET.Element) -> None:
    text = ET.tostring(root, encoding="unicode")
    assert not [colour for colour in page_colours().values() if colour in text]
    for variable in ("--c0", "--c1", "--ink", "--font"):
        assert f"var({variable})" in text
    assert "DejaVu" not in text


def test_the_same_figure_gives_the_same_text() -> None:
    assert inline_svg(figure(), name="a", label="l") == inline_svg(figure(), name="a", label="l")
