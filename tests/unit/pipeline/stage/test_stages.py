"""The list of stages is checked when it is read, and results and command lines follow from it."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from pydantic import Field

from fewstep.checks import ConfigError
from fewstep.pipeline.stage import Every, Inputs, Of, OfSource, Panels, Stage, Value
from fewstep.pipeline.stage.settings import Section
from fewstep.pipeline.stage.stages import Stages


class Numbers(Section):
    """Numbers of calls."""

    nfe: list[int] = Field(default=[], description="numbers of calls")


class Bare(Section):
    """A field that says nothing."""

    x: int = 1


def make(out: Annotated[Path, typer.Option()], nfe: Annotated[int, typer.Option()] = 0) -> None:
    """Make plans."""


def refine(
    plan: Annotated[list[Path], typer.Option()],
    out: Annotated[Path, typer.Option()],
    study: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Make plans from plans."""


def draw(plans: Annotated[Path, typer.Argument()], out: Annotated[Path, typer.Option()]) -> None:
    """Draw images."""


def show(
    run: Annotated[str, typer.Argument()],
    samples: Annotated[list[Path], typer.Argument()],
    out: Annotated[Path, typer.Option()],
    panel: Annotated[list[str] | None, typer.Option()] = None,
    best_of: Annotated[str, typer.Option()] = "",
) -> None:
    """Show it."""


MAKE = Stage(
    name="make", command=make, makes="plans", does="make", settings=Numbers, nfe=lambda s: s.make.nfe,
)  # fmt: skip
REFINE = Stage(
    name="refine", command=refine, makes="plans", does="refine", inputs=lambda s, nfe: {"plan": "make"},
    settings=Numbers, nfe=lambda s: s.refine.nfe, keeps="study", panel="some.module",
)  # fmt: skip
DRAW = Stage(name="draw", command=draw, makes="images", does="draw", over="plans")
SHOW = Stage(
    name="show", command=show, makes="report", does="show",
    inputs=lambda s, nfe: {"samples": Every("images"), "panel": Panels(), "best_of": Value("fd & kid")},
)  # fmt: skip
ALL = (MAKE, REFINE, DRAW, SHOW)


def stages(*extra: Stage, without: str = "") -> Stages:
    return Stages([stage for stage in (*ALL, *extra) if stage.name != without], {})


def settings(**sections: Any) -> Any:
    chosen = {"make": {"nfe": [3, 4]}, "refine": {"nfe": [4]}} | sections
    return stages().settings().model_validate(chosen)


def test_a_run_has_what_its_settings_ask_for() -> None:
    places = [result.place for result in stages().results(settings())]
    assert places == [
        "make/nfe3", "make/nfe4", "refine/nfe4", "draw/make/nfe3", "draw/make/nfe4", "draw/refine/nfe4", "show",
    ]  # fmt: skip
    fewer = stages().results(settings(make={"nfe": [4]}, refine={"nfe": []}))
    assert [result.place for result in fewer] == ["make/nfe4", "draw/make/nfe4", "show"]


def words(place: str, **sections: Any) -> str:
    chosen = settings(**sections)
    result = next(result for result in stages().results(chosen) if result.place == place)
    return " ".join(stages().words(result, "run", chosen))


def test_a_command_line_gives_folders_of_results_in_the_order_of_the_parameters() -> None:
    assert words("make/nfe3") == "make --out results/run/make/nfe3 --nfe 3"
    assert words("refine/nfe4") == (
        "refine --plan results/run/make/nfe4 --out results/run/refine/nfe4 --study state/run/kept/refine/nfe4"
    )
    assert words("draw/refine/nfe4") == "draw results/run/refine/nfe4 --out results/run/draw/refine/nfe4"
    assert words("show") == (
        "show run results/run/draw/make/nfe3 results/run/draw/make/nfe4 results/run/draw/refine/nfe4 "
        "--out results/run/show --panel refine=results/run/refine/nfe4 --best-of fd & kid"
    )


def test_inputs_are_stamps_and_those_of_absent_stages_are_left_out() -> None:
    chosen = settings()
    result = stages().named(REFINE, "refine/nfe4", chosen)
    assert result is not None
    assert stages().stamps(result, "run", chosen) == {"plan": ["results/run/make/nfe4/spec.json"]}
    alone = settings(make={"nfe": []})
    assert stages().stamps(result, "run", alone) == {}
    assert stages().named(REFINE, "refine/nfe3", chosen) is None


def test_numbers_of_calls_files_and_drawn_images_can_be_named() -> None:
    picks = Stage(
        name="pick", command=show, makes="numbers", does="pick",
        inputs=lambda s, nfe: {
            "samples": (Of("make", nfe=(3,), sampled=True), Of("make", nfe=(4,), file="best.json")),
        },
    )  # fmt: skip
    listed, chosen = stages(picks), settings()
    result = listed.named(picks, "pick", chosen)
    assert result is not None
    line = listed.words(result, "run", chosen)
    assert line[:4] == ["pick", "run", "results/run/draw/make/nfe3", "results/run/make/nfe4/best.json"]


def test_a_stage_over_results_can_be_given_what_each_of_them_was_given() -> None:
    """As images of a generator are drawn with its own model, and those of other plans with theirs."""

    def draw_with(
        plans: Annotated[Path, typer.Argument()], plan: Annotated[Path, typer.Option()], out: Path
    ) -> None: ...

    again = Stage(
        name="again", command=draw_with, makes="certificates", does="draw", over="plans",
        inputs=lambda s, nfe: {"plan": OfSource("plan")},
    )  # fmt: skip
    listed, chosen = stages(again), settings()
    lines = {
        result.place: listed.words(result, "run", chosen)
        for result in listed.results(chosen)
        if result.stage is again
    }
    assert "results/run/make/nfe4" in lines["again/refine/nfe4"]
    assert not any("--plan" in word for word in lines["again/make/nfe3"])  # which was given none


def test_plans_made_from_plans_are_refinements() -> None:
    assert REFINE.refines
    assert not MAKE.refines
    assert not DRAW.refines


def named(name: str, **changes: Any) -> Stage:
    values: dict[str, Any] = {"command": make, "makes": "numbers", "does": "do"} | changes
    return Stage(name=name, **values)


def giving(**inputs: Any) -> Callable[[Any, Any], Inputs]:
    return lambda settings, nfe: inputs


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (named("make"), "two are called make"),
        (named("x", settings=Bare), r"Every setting must have a description, but x\.x has none"),
        (named("x", inputs=giving(out="nowhere")), "Inputs must be stages, make, .*; stage x names nowhere"),
        (
            named("x", inputs=giving(other="make")),
            "Inputs must be parameters of the command, out, nfe; .* other",
        ),
        (named("x", reads=("make.calls",)), r"stage x names make\.calls"),
        (named("x", uses=("nothing",)), "stage x names nothing"),
    ],
)
def test_a_wrong_stage_is_refused_in_one_sentence_when_the_list_is_read(wrong: Stage, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        stages(wrong)
    assert "\n" not in str(caught.value)


def test_a_section_of_no_stage_must_have_a_name_of_its_own() -> None:
    with pytest.raises(ConfigError, match="make is one of a stage, too"):
        Stages(ALL, {"make": Numbers})
