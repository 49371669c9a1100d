"""`fewstep compose`: the last comparison of all plans that were made for the model."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.app.settings import ComposeSettings
from fewstep.files import atomic_dir, require_replaceable
from fewstep.pipeline.conditions import with_conditions
from fewstep.pipeline.samples import files_in
from fewstep.pipeline.stage.options import (
    CallOption,
    ConditionsOption,
    DeviceOption,
    ExtractorOption,
    GuidanceOption,
    ModelOption,
    takes_settings,
)
from fewstep.pipeline.stage.spec import STAMP, Spec, stamp

if TYPE_CHECKING:
    from fewstep.app.stages.compose.record import Composition


@takes_settings()
def command(
    model: ModelOption,
    plan: Annotated[list[Path], typer.Option(help="plan file, or a folder of them; any number of times")],
    reference: Annotated[Path, typer.Option(help="statistics, from fewstep stats, or a name in the zoo")],
    extractor: ExtractorOption,
    out: Annotated[Path, typer.Option(help="folder to write")],
    guidance: GuidanceOption = 1.0,
    conditions: ConditionsOption = None,
    call: CallOption = None,
    device: DeviceOption = "auto",
    *,
    compose: ComposeSettings,
    spec: Spec | None,
) -> None:
    """Compare plans by quality and time on images that none of them was made with.

    Of the plans that are shown to be as good as many steps of DDIM, within a margin, the fastest is chosen; where none
    is, nothing is.

    Example: fewstep compose --model model --plan found --plan narrow --reference stats.npz --extractor classifier
    --out composed
    """
    from fewstep.app.stages.compose.record import COMPOSITION, PLANS, PROTOCOL, Composition
    from fewstep.app.stages.compose.run import compose as compared
    from fewstep.files import write_json
    from fewstep.interop.load import load_model
    from fewstep.interop.zoo import find_reference
    from fewstep.metrics.extractor import load_extractor
    from fewstep.metrics.reference import load_reference
    from fewstep.pipeline.devices import chosen_device
    from fewstep.progress import track
    from fewstep.sampling.document import save_plan
    from fewstep.sampling.plan import load_plan, require_distinct_plans
    from fewstep.sampling.quantised import integers_path, with_integers
    from fewstep.sampling.task import Task

    require_replaceable(out, set(), names={PLANS, COMPOSITION, PROTOCOL, STAMP})
    files = files_in(plan, ".json")
    candidates = [load_plan(path) for path in files]
    place = chosen_device(device)
    network = load_extractor(extractor, device=place)
    guided = guidance if spec is None else spec.value("sample.guidance")
    loaded = with_conditions(load_model(model, call=call, device=place), conditions)
    loaded = with_integers(loaded, list(zip(files, candidates, strict=True)))
    task = Task(loaded, guided, compose.batch_size)
    measured = load_reference(find_reference(reference, network.id), extractor=network)
    made = compared(task, candidates, measured, network, compose, track=track)
    require_distinct_plans(made.plans)
    with atomic_dir(out) as folder:
        (folder / PLANS).mkdir()
        for one in made.plans:
            save_plan(one, folder / PLANS / f"{one.name}.json")
            if one.integers is not None:
                source = next(f for f, c in zip(files, candidates, strict=True) if c.hash == one.hash)
                shutil.copyfile(integers_path(source), integers_path(folder / PLANS / f"{one.name}.json"))
        made.table.to_parquet(folder / COMPOSITION, index=False)
        write_json(folder / PROTOCOL, made.protocol.model_dump())
        if spec:
            stamp(spec, folder)
    composition = Composition(made.table, made.protocol, {one.hash: one for one in made.plans})
    typer.echo(f"{out}: {_outcome(composition)}")


def _outcome(composition: "Composition") -> str:
    """What was chosen on seeds of the comparison, which alone is no result."""
    target, chosen, protocol = composition.target, composition.chosen, composition.protocol
    goal = f"as good as {target['plan']} (FD {target['fd']:.4g}, margin {100 * protocol.margin:g} %)"
    shown = int(composition.table["non_inferior"].iloc[1:].sum())
    if chosen is None:
        best = composition.best
        said = (
            f"no plan was shown to be {goal}, none is chosen; the best by FD is {best['plan']} at {best['fd']:.4g}, "
            f"difference {_ranged(best, 'difference')}"
        )
    else:
        said = (
            f"{chosen['plan']} is chosen of {shown} shown to be {goal}: FD {chosen['fd']:.4g}, difference "
            f"{_ranged(chosen, 'difference')}; {chosen['ms']:.3g} ms an image, {_ranged(chosen, 'speed')} times as fast"
        )
    busy = protocol.machine.warning
    return f"{said} (on seeds of the comparison; report on others){'' if busy is None else f'. {busy}'}"


def _ranged(row: dict[str, Any], name: str) -> str:
    return f"{row[name]:.3g} [{row[f'{name}_low']:.3g}, {row[f'{name}_high']:.3g}]"
