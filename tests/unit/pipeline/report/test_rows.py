"""Which certificate stands for a plan, and what its row says of where the plan came from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from unit.app.report.study import METRIC, STUDY, certificate, certificate_of, write_all

from fewstep.checks import ConfigError
from fewstep.diffusion.schedule import VPLinear
from fewstep.files import sha256_text
from fewstep.pipeline.report.figures import highlighted
from fewstep.pipeline.report.results import flat_metrics, read_results, shown_lines
from fewstep.pipeline.report.rows import family
from fewstep.sampling.plan import Plan
from fewstep.sampling.presets import PRESETS

PRESET = PRESETS["unipc-2"](VPLinear(), 5, grid="uniform-t")
FOUND = replace(PRESET, name="found", fingerprint="f" * 64, provenance={"sampler": "mine", "grid": "free"})


def child(plan: Plan, name: str, sampler: str, **node: Any) -> Plan:
    """A plan made from another one, as stages sign it."""
    provenance = {**plan.provenance, "sampler": sampler, "parents": [plan.hash]}
    made = plan.with_node(1, **node) if node else plan
    return replace(made, name=name, fingerprint="f" * 64, provenance=provenance)


ALIGNED = child(FOUND, "found.aligned", "mine+aligned", t_cond=0.5)
NARROW = child(ALIGNED, "found.aligned.narrow", "mine+aligned+widths", width=1)
FULL = child(FOUND, "found.w100", "mine+widths")


@pytest.mark.parametrize(
    ("sampler", "name"),
    [
        ("dpm-solver-2s", "dpm-solver"), ("dpmpp-3m-exact", "dpmpp"), ("unipc-2-bh1", "unipc"),
        ("ddim-eta", "ddim"), ("ddpm", "ddpm"), ("heun", "heun"),
    ],
)  # fmt: skip
def test_family(sampler: str, name: str) -> None:
    assert family(sampler) == name


def rows(folder: Path, *certificates: dict[str, Any]) -> pd.DataFrame:
    return read_results([write_all(folder, certificates)]).frame.set_index("plan")


def test_where_a_plan_came_from_is_read_from_its_provenance(tmp_path: Path) -> None:
    of_preset = child(PRESET, "unipc.aligned", "unipc-2+aligned", t_cond=0.4)
    plans = (PRESET, FOUND, ALIGNED, NARROW, of_preset)
    found = rows(tmp_path, *(certificate_of(plan, 3.0 + i) for i, plan in enumerate(plans)))
    for plan, own, ancestors, reduced_width in (
        (PRESET, False, 0, False), (FOUND, True, 0, False), (ALIGNED, True, 1, False), (NARROW, True, 2, True),
        (of_preset, True, 0, False),
    ):  # fmt: skip
        assert tuple(found.loc[plan.name, ["own", "ancestors", "reduced_width"]]) == (
            own,
            ancestors,
            reduced_width,
        )


def test_names_of_samplers_say_nothing_of_their_origin(tmp_path: Path) -> None:
    known = certificate("searched+widths", "free", 5, 3.0)  # the name of a known sampler, by its provenance
    own = certificate("ddim", "uniform-t", 5, 4.0, provenance={"sampler": "ddim"})
    found = rows(tmp_path, known, own)
    assert not found.loc["searched+widths_free_nfe005", "own"]
    assert found.loc["ddim_uniform-t_nfe005", "own"]


def test_known_samplers_and_plans_without_certificate_are_no_ancestors(tmp_path: Path) -> None:
    assert rows(tmp_path, certificate_of(NARROW, 3.0))["ancestors"].tolist() == [0]


def test_plans_that_name_each_other_as_parents_are_counted_once(tmp_path: Path) -> None:
    one = replace(FOUND, provenance={**FOUND.provenance, "parents": [ALIGNED.hash, FOUND.hash]})
    found = rows(tmp_path, certificate_of(one, 3.0), certificate_of(ALIGNED, 4.0))
    assert found["ancestors"].tolist() == [1, 1]


def test_parents_that_are_none_are_left_out(tmp_path: Path) -> None:
    odd = replace(FOUND, provenance={**FOUND.provenance, "parents": {"a": 1}})
    assert rows(tmp_path, certificate_of(odd, 3.0))["ancestors"].tolist() == [0]


@pytest.mark.parametrize("order", [1, -1])
def test_certificates_of_one_plan_that_agree_are_one_row(tmp_path: Path, order: int) -> None:
    """Stages hand on what they leave as it was: the width search its full-width plan, the alignment what it kept."""
    kept = replace(FOUND, provenance={**FOUND.provenance, "align": {"kept": True}})
    assert FULL.hash == FOUND.hash == kept.hash
    same = [certificate_of(plan, 3.0) for plan in (FULL, FOUND, kept)]
    same[0]["costs"]["network_ms_per_image"] = 7.0  # each was timed on its own
    found = read_results([write_all(tmp_path, [*STUDY, *same][::order])])
    assert len(found.frame) == len(STUDY) + 1
    row = found.row(FOUND.hash)
    assert row is not None
    assert (row["sampler"], row["plan"], row["ancestors"]) == ("mine", "found", 0)
    assert found.plans[FOUND.hash].sampler == "mine"
    assert flat_metrics(found)["nfe005.mine"] == 3.0


@pytest.mark.parametrize("order", [1, -1])
def test_certificates_of_one_plan_that_disagree_are_refused(tmp_path: Path, order: int) -> None:
    other = certificate_of(FULL, 3.0)
    other["results"][METRIC]["value"] = 3.01
    with pytest.raises(
        ConfigError, match=r"must agree, but .*0\d\.json and .*0\d\.json have other images or results"
    ):
        rows(tmp_path / "results", *[certificate_of(FOUND, 3.0), other][::order])
    other = certificate_of(FULL, 3.0)
    other["subject"]["images_sha256"] = sha256_text("drawn elsewhere")
    with pytest.raises(ConfigError, match="leave one out"):
        rows(tmp_path / "images", *[certificate_of(FOUND, 3.0), other][::order])


def test_a_certificate_whose_plan_is_none_is_one_sentence(tmp_path: Path) -> None:
    torn = certificate("ddim", "uniform-t", 5, 3.0)
    torn["subject"]["plan"]["steps"] = {"schema": "fewstep.plan/1"}
    with pytest.raises(
        ConfigError, match=r"00\.json: subject\.plan\.steps: plan\.noise_schedule must be there"
    ):
        rows(tmp_path, torn)


def test_plans_of_reduced_width_are_no_lines_and_originals_come_first(tmp_path: Path) -> None:
    plans = [certificate_of(FOUND, 19.0), certificate_of(ALIGNED, 5.0), certificate_of(NARROW, 1.0)]
    results = read_results([write_all(tmp_path, [*STUDY, *plans])])
    lines = highlighted(results)
    assert lines[0].sampler == "mine"
    assert [line.own for line in lines][0] and not all(line.own for line in lines)
    assert "mine+aligned+widths" not in {line.sampler for line in lines}
    assert shown_lines(results.frame, "sampler", 1)["sampler"].tolist() == ["mine"]
