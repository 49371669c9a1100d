import pytest

from fewstep.diffusion.schedule import VPLinear
from fewstep.pipeline.report.plan_figure import plan_figure, step_words
from fewstep.sampling.linear import in_linear_form
from fewstep.sampling.plan import Corrector, Derivative, Scale, Step
from fewstep.sampling.presets import PRESETS

SCHEDULE = VPLinear()


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_can_be_drawn(preset: str) -> None:
    nfe = 11 if preset == "heun" else 12  # its numbers of calls are odd
    figure = plan_figure({"a": PRESETS[preset](SCHEDULE, nfe, grid="uniform-t")})
    assert len(figure.axes) == (1 if preset in ("ddpm", "ddim-eta") else 2)


def test_steps_in_words() -> None:
    derivative = Derivative((0,), Scale("const", 1.25))
    assert step_words(Step(0, 1, "eps")) == "order 1 of ε"
    step = Step(1, 2, "x0", (derivative,), corr=Corrector("pseudo", (Derivative((2,)),)))
    assert step_words(step) == "order 2 of x₀, scale 1.25, corrected"
    assert step_words(in_linear_form(PRESETS["ddim"](SCHEDULE, 3, grid="karras"), SCHEDULE).steps[2]) == ""


def test_an_aligned_call_has_a_cross_at_its_conditioning_timestep() -> None:
    plan = PRESETS["ddim"](SCHEDULE, 4, grid="uniform-t")
    aligned = plan.with_node(2, t_cond=0.3)

    def crosses(plan):
        return [line for line in plan_figure({"a": plan}).axes[0].lines if line.get_marker() == "x"]

    assert not crosses(plan)
    (cross,) = crosses(aligned)
    assert cross.get_xdata()[0] > aligned.nodes[2].lambda_  # less noise than that of the state, t = 0.5


def test_a_call_at_reduced_width_has_a_smaller_mark() -> None:
    plan = PRESETS["ddim"](SCHEDULE, 4, grid="uniform-t").with_node(1, width=1)
    marks = [line for line in plan_figure({"a": plan}).axes[0].lines if line.get_marker() == "o"]
    assert marks[1].get_markersize() < marks[0].get_markersize() == marks[2].get_markersize()
