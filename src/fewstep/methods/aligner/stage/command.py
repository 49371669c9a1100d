"""`fewstep align`: fit the conditioning timesteps of a plan, at no cost when sampling."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.checks import ConfigError, DataError
from fewstep.methods.aligner.stage.settings import AlignSettings
from fewstep.pipeline.conditions import conditions_of_images, with_conditions
from fewstep.pipeline.measure import reference_and_extractor
from fewstep.pipeline.samples import files_in
from fewstep.pipeline.seeds import require_unseen
from fewstep.pipeline.stage.options import (
    CallOption,
    DataOption,
    DeviceOption,
    ExtractorOption,
    ModelOption,
    PlansGuidanceOption,
    ReferenceOption,
    takes_settings,
)
from fewstep.pipeline.stage.spec import Spec, require_result_folder, result_folder

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.data.packed import Dataset
    from fewstep.diffusion.condition import Condition
    from fewstep.diffusion.denoiser import Model
    from fewstep.methods.aligner.stage.run import Aligned
    from fewstep.sampling.plan import Plan


@takes_settings(hide=("nfe",))
def command(
    model: ModelOption,
    plan: Annotated[list[Path], typer.Option(help="plan to align, or a folder of plans; may be given again")],
    out: Annotated[Path, typer.Option(help="plan file to write; for several plans a folder")],
    images: Annotated[
        Path | None,
        typer.Option(help="packed dataset the model was trained on, for objectives that start from images"),
    ] = None,
    reference: ReferenceOption = None,
    data: DataOption = None,
    extractor: ExtractorOption = "effnet-lite0-p320",
    guidance: PlansGuidanceOption = 1.0,
    conditions: Annotated[
        Path | None,
        typer.Option(
            "--conditions",
            "--prompts",
            help="conditions folder or list of prompts, for a model that takes stored ones; objectives that "
            "start from images need one row for each of them",
        ),
    ] = None,
    call: CallOption = None,
    device: DeviceOption = "auto",
    *,
    align: AlignSettings,
    spec: Spec | None,
) -> None:
    """Fit the conditioning timestep of each call of a plan; the grid, the steps and the weights stay.

    A change must hold on noises of its own, and the plan on images of its own; else the plan stays as it is. It is
    judged by the distance to the reference, or without one by the distance to fine solutions of the same noises.

    Example: fewstep align --model model --plan plan.json --images data --reference stats.npz --extractor classifier
    --out aligned.json
    """
    from fewstep.interop.load import load_model
    from fewstep.methods.aligner.stage.run import Aligning
    from fewstep.pipeline.devices import chosen_device
    from fewstep.progress import track
    from fewstep.sampling.plan import load_plan
    from fewstep.sampling.task import Task

    parents = [load_plan(path) for path in files_in(plan, ".json")]
    _check(parents, out, align, spec)
    guidance = spec.value("sample.guidance") if spec else guidance
    network = with_conditions(load_model(model, call=call, device=chosen_device(device)), conditions)
    # a plan that was found for one guidance keeps it
    tasks = [
        Task(network, guidance if one.guidance is None else one.guidance, align.batch_size) for one in parents
    ]
    measured, features = reference_and_extractor(reference, data, extractor, device, tasks[0])
    x0, condition = _images(images, conditions, network, align)
    found = []
    for task, one in zip(tasks, parents, strict=True):
        aligning = Aligning(
            task, one, align,
            images=x0, condition=condition, reference=measured, extractor=features, track=track,
        )  # fmt: skip
        for name, reason in aligning.left_out.items():
            typer.echo(f"left out: {name}: {reason}", err=True)
        found.append(aligning.run())
        typer.echo(_sentence(one, found[-1]))
    _write(out, found, spec)


def _check(parents: Sequence["Plan"], out: Path, settings: AlignSettings, spec: Spec | None) -> None:
    """Raise ConfigError where plans cannot stand beside each other, or were made with the images to be used."""
    from fewstep.methods.aligner.stage.run import alignment_seeds
    from fewstep.sampling.plan import require_distinct_plans

    if out.suffix == ".json" and (len(parents) > 1 or spec):
        raise ConfigError(f"--out must be a folder for {len(parents)} plans or a spec, got the file {out}.")
    if out.suffix != ".json":
        require_result_folder(out, spec, {".json"})
    require_distinct_plans(parents)
    for one in parents:
        require_unseen(one, alignment_seeds(settings))


def _images(
    folder: Path | None, conditions: Path | None, model: "Model", settings: AlignSettings
) -> tuple["Tensor | None", "Condition | None"]:
    """Images of the training split in [-1, 1] and their conditions, as many as the fits need, drawn from all."""
    if folder is None:
        return None, None
    import torch

    from fewstep.data.packed import load_dataset
    from fewstep.data.pixels import to_unit
    from fewstep.rng import generator

    dataset = load_dataset(folder, "train")
    if model.decode is None and dataset.shape != model.shape:
        raise ConfigError(
            f"--images must have the model's shape, (C, H, W) = {model.shape}; {folder} has {dataset.shape}; "
            "name the dataset that the model was trained on."
        )
    order = torch.randperm(len(dataset), generator=generator(settings.seed, "images"))
    rows = order[: settings.noises + settings.gate_noises]
    return to_unit(dataset.batch(rows)), _of_images(dataset, rows, folder, conditions, model)


def _of_images(
    dataset: "Dataset", rows: "Tensor", folder: Path, conditions: Path | None, model: "Model"
) -> "Condition | None":
    """The conditions of some images; None where they are not known: objectives that need them are then left out."""
    import torch

    from fewstep.diffusion.condition import LABEL, Condition

    if model.conditions is None:
        return None
    names, values = model.conditions.entries.keys(), dict[str, "Tensor"]()
    if conditions is not None:
        try:
            values |= conditions_of_images(conditions, dataset, str(folder)).values
        except DataError as error:
            typer.echo(f"without conditions of images: {error}", err=True)
    if LABEL in names - values.keys() and dataset.labels is not None:
        values[LABEL] = torch.from_numpy(dataset.labels)
    return Condition(values)[rows] if values.keys() == names else None


def _write(out: Path, found: Sequence["Aligned"], spec: Spec | None) -> None:
    from fewstep.sampling.document import save_plan

    if out.suffix == ".json":
        save_plan(found[0].plan, out)
        return
    with result_folder(out, spec) as folder:
        for one in found:
            save_plan(one.plan, folder / f"{one.plan.name}.json")


def _sentence(parent: "Plan", aligned: "Aligned") -> str:
    record = aligned.record
    chosen = next((c for c in record["candidates"] if c["name"] == record["chosen"]), None)
    tried = chosen or (record["candidates"][0] if record["candidates"] else None)
    errors = None if tried is None else tried["error"]
    near = "" if errors is None else f", distance to fine solutions {_change(errors)}"
    if chosen is None:
        refused = max((c["refused"] for c in record["candidates"]), default=0)
        return f"{parent.name}: stays as it is, {record['why']}; the gates refused up to {refused} calls"
    value = f", FD {_change(record)}" if record["measure"] == "fd" else ""
    return (
        f"{aligned.plan.name}: {chosen['name']}, {chosen['moved']} of {parent.nfe} conditioning timesteps moved, "
        f"{chosen['refused']} refused{near}{value} (on seeds of the alignment; report on others)"
    )


def _change(values: dict[str, Any]) -> str:
    return f"{values['before']:.4g} -> {values['after']:.4g}"
