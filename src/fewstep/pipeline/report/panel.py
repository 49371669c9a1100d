"""A stage's part of the report.

A stage names a module with `panel(folders, results) -> Panel | None`, and the template stands beside that module under
its name: `panel.html.j2` beside `panel.py`. A template takes what it shares with others from "macros".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from fewstep.pipeline.report.numbers import count, number, percent, ratio

MACROS = "macros"
FILTERS = {"count": count, "number": number, "percent": percent, "ratio": ratio}


@dataclass(frozen=True)
class Panel:
    """What a stage shows in the report.

    Attributes:
        title: heading of its section, and its name in the navigation.
        html: what stands below the heading; `rendered` makes it. Ids in it begin with the name of the stage.
        figures: name of the file, without ending -> figure; the files stand in a folder of the stage's name.
        metrics: numbers and words that the report's metrics.json has for it.
    """

    title: str
    html: Markup
    figures: Mapping[str, Figure]
    metrics: Mapping[str, Any] = field(default_factory=dict)


def rendered(module: str, values: Mapping[str, Any]) -> Markup:
    """The template beside a module, filled in; values are escaped, and a name without a value is an error.

    Args:
        module: `__name__` of the module; of `a.b.panel` the template is `panel.html.j2` in the folder of `a.b`.
        values: what the template names.
    """
    return Markup(_environment().get_template(module).render(values))


def beside(module: str, ending: str) -> str:
    """The text of a file that stands beside a module under its name."""
    package, _, name = module.rpartition(".")
    return resources.files(package).joinpath(f"{name}.{ending}").read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(
            lambda name: beside(__name__, "macros.html.j2") if name == MACROS else beside(name, "html.j2")
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    return environment
