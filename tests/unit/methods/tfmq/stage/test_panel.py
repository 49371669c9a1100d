"""What the report shows of quantised plans."""

from dataclasses import replace
from pathlib import Path

import pytest
from unit.app.report.study import certificate_of, write_all

from fewstep.checks import DataError
from fewstep.diffusion.schedule import VPLinear
from fewstep.methods.tfmq.stage.panel import panel
from fewstep.pipeline.report.results import read_results
from fewstep.sampling.document import save_plan
from fewstep.sampling.presets import PRESETS

PARENT = PRESETS["ddim"](VPLinear(), 4, grid="uniform-t")


def quantised(bits, method, *, nearest=(0, 1, 2, 3), chosen="plain"):
    fits = {"plain": {"mse": 4e-3, "distance": 1.0}, "chosen": chosen, "drift": {"mse": 5e-3}}
    said = {
        "bits": bits, "method": method, "mse": 2e-3 if chosen != "plain" else 4e-3, "fits": fits, "bytes": 100_000,
        "float_bytes": 400_000, "layers": [9, 11],
        "temporal": [{"width": 0, "calls": [0, 1, 2, 3], "cosine": [1e-4] * 4, "nearest": list(nearest)}],
    }  # fmt: skip
    nodes = tuple(replace(n, quant=bits) if n.eval == "net" else n for n in PARENT.nodes)
    provenance = {
        "quantize": said,
        "parents": [PARENT.hash],
        "sampler": f"ddim+{bits}-{method}",
        "grid": "uniform-t",
    }
    return replace(
        PARENT, nodes=nodes, integers=f"{bits}{method}", name=f"{bits}.{method}", provenance=provenance
    )


@pytest.fixture
def study(tmp_path: Path):
    """Three quantised plans and their certificates, with that of their parent."""
    plans = [
        quantised("w8a8", "tfmq"),
        quantised("w4a8", "tfmq", chosen="polished"),
        quantised("w4a8", "naive", nearest=(0, 2, 2, 3)),
    ]
    for plan in plans:
        save_plan(plan, tmp_path / "quantize" / f"{plan.name}.json")
    contents = [certificate_of(plan, 10.0 + i) for i, plan in enumerate([PARENT, *plans])]
    write_all(tmp_path / "certificates", contents)
    return tmp_path


def test_the_panel_has_a_row_for_each_plan_and_says_which_features_are_confused(study):
    shown = panel([study / "quantize"], read_results([study / "certificates"]))
    assert shown is not None and set(shown.figures) == {"features", "sizes"}
    text = str(shown.html)
    assert "At 1 of 12 calls the features are nearest to those of another call" in text
    assert "better for sure in 1 of 3 plans" in text and "2.00 to 2.00" in text
    for name, fd in (("w8a8.tfmq", "11.0"), ("w4a8.tfmq", "12.0"), ("w4a8.naive", "13.0")):
        assert name in text and fd in text
    assert "25.0" in text  # percent of the size in floats


def test_plans_without_certificates_have_no_figure_of_sizes(study):
    for path in (study / "certificates").glob("0[123].json"):
        path.unlink()
    shown = panel([study / "quantize"], read_results([study / "certificates"]))
    assert shown is not None and set(shown.figures) == {"features"}


def test_a_plan_that_says_nothing_of_its_quantisation_is_refused(study):
    save_plan(PARENT, study / "quantize" / "parent.json")
    with pytest.raises(DataError, match="must say how it was quantised"):
        panel([study / "quantize"], read_results([study / "certificates"]))
