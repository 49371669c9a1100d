"""What the commands `teacher` and `search` share: an option, and how they open what they are given."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.pipeline.conditions import with_conditions
from fewstep.pipeline.stage.spec import Spec

if TYPE_CHECKING:
    from fewstep.sampling.task import Task

ToZeroOption = Annotated[
    bool, typer.Option("--to-zero/--no-to-zero", help="end at clean data, or at the schedule's t_min")
]


def of_run(spec: Spec | None, to_zero: bool, guidance: float) -> tuple[bool, float]:
    """Whether plans end at clean data, and the guidance: those of the run where a workflow runs the command."""
    if spec is None:
        return to_zero, guidance
    return spec.value("plans.to_zero"), spec.value("sample.guidance")


def open_task(
    model: Path, call: Path | None, conditions: Path | None, guidance: float, batch_size: int, device: str
) -> "Task":
    """The model on a device with its conditions, and the guidance and the batch size of its calls."""
    from fewstep.interop.load import load_model
    from fewstep.pipeline.devices import chosen_device
    from fewstep.sampling.task import Task

    loaded = with_conditions(load_model(model, call=call, device=chosen_device(device)), conditions)
    return Task(loaded, guidance, batch_size)
