"""Templates that stand beside the module of a panel."""

import importlib
import sys
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from fewstep.pipeline.report.panel import rendered

TEMPLATE = """{% from "macros" import facts, fd, figure %}
<p>{{ text }}</p>
{% if value is defined %}
{{ value | number }} {{ value | ratio }} {{ value | percent }} {{ (1000 * value) | count }}
{% endif %}
{{ facts({"a<b": "1 & 2"}) }}
{{ fd({"fd": 3.125, "fd_low": 3.0, "fd_high": 3.25}) }}
{% call figure(svg, "what <it> is") %}said <b>below</b>{% endcall %}

{{ figure(svg, "bare") }}
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with a template beside its module."""
    package = tmp_path / "paper_with_a_panel"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "panel.py").touch()
    (package / "panel.html.j2").write_text(TEMPLATE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("paper_with_a_panel.panel").__name__
    for name in ("paper_with_a_panel", "paper_with_a_panel.panel"):
        sys.modules.pop(name)


def test_values_are_escaped_and_markup_stands(module: str) -> None:
    html = rendered(module, {"text": "<script>", "value": 0.5, "svg": Markup("<svg></svg>")})
    assert isinstance(html, Markup)
    assert "<p>&lt;script&gt;</p>" in html
    assert "0.500 0.50× 50.0 500" in html
    assert "<dt>a&lt;b</dt><dd>1 &amp; 2</dd>" in html
    assert '<b>3.12</b> <span class="range">[3.00, 3.25]</span>' in html
    assert 'aria-label="Figure: what &lt;it&gt; is"><svg></svg></div>' in html
    assert "<figcaption>said <b>below</b></figcaption>" in html
    assert html.count("<figcaption>") == 1


def test_a_name_without_a_value_is_an_error(module: str) -> None:
    with pytest.raises(UndefinedError, match="text"):
        rendered(module, {"svg": ""})
