"""`fewstep quantize`: a plan whose network works with few bits."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.checks import ConfigError
from fewstep.methods.tfmq.stage.settings import QuantizeSettings
from fewstep.pipeline.conditions import with_conditions
from fewstep.pipeline.samples import files_in
from fewstep.pipeline.seeds import require_unseen
from fewstep.pipeline.stage.options import (
    ConditionsOption,
    DeviceOption,
    ModelOption,
    PlansGuidanceOption,
    StudyOption,
    takes_settings,
)
from fewstep.pipeline.stage.spec import Spec, require_result_folder, result_folder

if TYPE_CHECKING:
    from fewstep.diffusion.denoiser import Model
    from fewstep.methods.tfmq.stage.run import Quantised
    from fewstep.sampling.plan import Plan


@takes_settings(hide=("nfe",))
def command(
    model: ModelOption,
    plan: Annotated[
        list[Path], typer.Option(help="plan to quantise, or a folder of plans; may be given again")
    ],
    out: Annotated[Path, typer.Option(help="folder to write: plans, and the integers of each")],
    nfe: Annotated[
        int | None,
        typer.Option(help="of the plans given, quantise the best of as many network calls alone"),
    ] = None,
    study: StudyOption = None,
    guidance: PlansGuidanceOption = 1.0,
    conditions: ConditionsOption = None,
    device: DeviceOption = "auto",
    *,
    quantize: QuantizeSettings,
    spec: Spec | None,
) -> None:
    """Round a model's weights and activations to few bits for the calls of a plan, without training.

    Each plan comes with a file of integers beside it, and is then drawn, measured and exported as any other plan.

    Example: fewstep quantize --model results/digits/train --plan plan.json --bits w8a8,w4a8 --out quantised
    """
    from fewstep.interop.load import load_model
    from fewstep.methods.tfmq.stage.run import Quantising, chosen_parent
    from fewstep.pipeline.devices import chosen_device
    from fewstep.progress import track
    from fewstep.sampling.plan import load_plan
    from fewstep.sampling.task import Task

    given = [load_plan(path) for path in files_in(plan, ".json")]
    parents = chosen_parent(given, nfe)
    require_result_folder(out, spec, {".json", ".safetensors"})
    guidance = spec.value("sample.guidance") if spec else guidance
    network = with_conditions(load_model(model, device=chosen_device(device)), conditions)
    _check(network, parents, quantize)
    kept = study or out.with_name(f"{out.name}.study")
    found = []
    for parent in parents:
        guided = guidance if parent.guidance is None else parent.guidance
        task = Task(network, guided, quantize.batch_size)
        work = Quantising(task, parent, quantize, kept / parent.hash[:16], track=track)
        for warning in work.warnings:
            typer.echo(warning, err=True)
        for recipe in work.recipes():
            found.append(work.run(recipe))
            typer.echo(_sentence(found[-1]))
    _write(out, found, spec)


def _check(network: "Model", parents: Sequence["Plan"], settings: QuantizeSettings) -> None:
    """Raise ConfigError for what can be wrong with plans, model and seeds, before any work."""
    from fewstep.methods.tfmq.calibration import FEWEST
    from fewstep.methods.tfmq.stage.run import quantisation_seeds
    from fewstep.nets.roles import roles_of
    from fewstep.sampling.plan import require_distinct_plans
    from fewstep.sampling.sample import check_fingerprint

    if not parents:
        raise ConfigError(
            "There must be a plan in floats to quantise; those given have bits already, or there is none."
        )
    if settings.noises < FEWEST:
        raise ConfigError(f"--noises must be at least {FEWEST}, better 32 or more; got {settings.noises}.")
    require_distinct_plans(parents)
    roles_of(network.module(0), network.name)
    for parent in parents:
        check_fingerprint(network, parent)
        require_unseen(parent, quantisation_seeds(settings))


def _write(out: Path, found: Sequence["Quantised"], spec: Spec | None) -> None:
    from fewstep.sampling.document import save_plan
    from fewstep.sampling.quantised import integers_path

    with result_folder(out, spec) as folder:
        for quantised in found:
            path = folder / f"{quantised.plan.name}.json"
            quantised.integers.save(integers_path(path), plan=quantised.plan.hash)
            save_plan(quantised.plan, path)


def _sentence(quantised: "Quantised") -> str:
    record = quantised.record
    cosine = [value for part in record["temporal"] for value in part["cosine"]]
    fits = record["fits"]
    polished = (
        f" (before its coefficients were fitted again: {fits['plain']['mse']:.3g})"
        if fits["chosen"] != "plain"
        else ""
    )
    return (
        f"{quantised.plan.name}: {record['layers'][0]} of {record['layers'][1]} layers, "
        f"{record['bytes'] / 1e6:.3g} MB (floats: {record['float_bytes'] / 1e6:.3g}), "
        f"mean squared distance to the parent's images {record['mse']:.3g}{polished}, features of the time off by "
        f"{sum(cosine) / len(cosine):.2g} (1 - cosine)"
    )
