"""`fewstep stepaware`: a width for each network call of a plan, as a front of plans or the best within a budget."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.checks import ConfigError
from fewstep.methods.ddsm.stage.settings import StepAwareSettings
from fewstep.pipeline.conditions import with_conditions
from fewstep.pipeline.measure import reference_and_extractor
from fewstep.pipeline.samples import files_in
from fewstep.pipeline.seeds import require_unseen
from fewstep.pipeline.stage.options import (
    CallOption,
    ConditionsOption,
    DataOption,
    DeviceOption,
    ExtractorOption,
    PlansGuidanceOption,
    ReferenceOption,
    StudyOption,
    takes_settings,
)
from fewstep.pipeline.stage.spec import Spec, require_result_folder, result_folder

if TYPE_CHECKING:
    from fewstep.diffusion.denoiser import Model
    from fewstep.methods.ddsm.stage.run import FoundWidths
    from fewstep.metrics.extractor import Extractor
    from fewstep.metrics.reference import Reference
    from fewstep.sampling.plan import Plan
    from fewstep.sampling.task import Task


@takes_settings(hide=("nfe",))
def command(
    out: Annotated[Path, typer.Option(help="folder to write; with --budget the plan file")],
    model: Annotated[Path | None, typer.Option(help="model folder, of a network with several widths")] = None,
    plan: Annotated[
        list[Path] | None,
        typer.Option(help="plan whose calls get widths, or a folder of plans; may be given again"),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="share of the full network's cost: write the best plan within it instead"),
    ] = None,
    front: Annotated[
        Path | None, typer.Option(help="folder of an earlier search to pick from, without searching")
    ] = None,
    reference: ReferenceOption = None,
    data: DataOption = None,
    extractor: ExtractorOption = "effnet-lite0-p320",
    study: StudyOption = None,
    guidance: PlansGuidanceOption = 1.0,
    conditions: ConditionsOption = None,
    call: CallOption = None,
    device: DeviceOption = "auto",
    *,
    stepaware: StepAwareSettings,
    spec: Spec | None,
) -> None:
    """Find a sub-network width for each call of a plan, for a model that was trained at several widths.

    Example: fewstep stepaware --model results/digits/train --plan plan.json --out front
    Then: fewstep stepaware --front front --budget 0.5 --out plan50.json
    """
    from fewstep.sampling.plan import load_plan
    from fewstep.sampling.task import Task

    parents = [load_plan(path) for path in files_in(plan or [], ".json")]
    _check(model, parents, budget, front)
    if front is not None:
        _write_one(_front(front, parents), budget, out)
        return
    assert model is not None
    if budget is None:
        require_result_folder(out, spec, {".json", ".parquet"})
    guidance = spec.value("sample.guidance") if spec else guidance
    kept = study or out.with_name(f"{out.name}.study")
    kept = kept / spec.key if spec else kept
    network = _model(model, call, conditions, parents, stepaware, device)
    # a plan that was found for one guidance keeps it
    tasks = [
        Task(network, guidance if parent.guidance is None else parent.guidance, stepaware.batch_size)
        for parent in parents
    ]
    measure = reference_and_extractor(reference, data, extractor, device, tasks[0])
    found = [
        _searched(task, one, stepaware, kept, budget, *measure)
        for task, one in zip(tasks, parents, strict=True)
    ]
    if budget is not None:
        _write_one(found[0].plans, budget, out)
    else:
        _write_all(out, found, spec)


def _check(model: Path | None, parents: Sequence["Plan"], budget: float | None, front: Path | None) -> None:
    """Raise ConfigError where the options do not say one thing."""
    from fewstep.sampling.plan import require_distinct_plans

    if budget is not None and not 0 < budget <= 1:
        raise ConfigError(f"--budget must lie in (0, 1], a share of the full network's cost; got {budget}.")
    if front is not None and budget is None:
        raise ConfigError(
            "--front needs --budget, the share of the full network's cost that a plan may have."
        )
    if front is not None:
        return
    if model is None or not parents:
        raise ConfigError(
            "--model and --plan must say which calls get widths; give both, or pick from a --front."
        )
    if budget is not None and len(parents) > 1:
        raise ConfigError(
            f"--budget must be for one plan, got {len(parents)}; write a front, and pick from it."
        )
    require_distinct_plans(parents)


def _model(
    path: Path,
    call: Path | None,
    conditions: Path | None,
    parents: Sequence["Plan"],
    settings: StepAwareSettings,
    device: str,
) -> "Model":
    """The model, after all that can be wrong with it, the plans and the seeds."""
    from fewstep.interop.load import load_model
    from fewstep.methods.ddsm.cost import require_slimmable
    from fewstep.methods.ddsm.stage.width_search import require_full_width, width_seeds
    from fewstep.pipeline.devices import chosen_device
    from fewstep.sampling.sample import check_fingerprint

    loaded = with_conditions(load_model(path, call=call, device=chosen_device(device)), conditions)
    require_slimmable(loaded)
    for parent in parents:
        require_full_width(parent)
        check_fingerprint(loaded, parent)
        require_unseen(parent, width_seeds(settings))
    return loaded


def _searched(
    task: "Task",
    parent: "Plan",
    settings: StepAwareSettings,
    kept: Path,
    budget: float | None,
    reference: "Reference | None",
    extractor: "Extractor | None",
) -> "FoundWidths":
    from fewstep.methods.ddsm.stage.run import run_width_search, too_small
    from fewstep.methods.ddsm.stage.width_search import WidthSearch, cost_table
    from fewstep.progress import track

    work = kept / parent.hash[:16]
    table = cost_table(task, settings, kept / f"costs.guidance{task.guidance:g}.json")
    search = WidthSearch(task, parent, table, settings, work, reference=reference, extractor=extractor)
    if budget is not None and budget < (smallest := search.share((search.k - 1,) * search.n)):
        raise too_small(budget, smallest)  # before hours are spent on it
    found = run_width_search(search, storage=str(work / "journal.log"), track=track)
    typer.echo(_sentence(parent, found))
    return found


def _front(folder: Path, parents: Sequence["Plan"]) -> list["Plan"]:
    """The plans of an earlier search; of one parent, where it is given."""
    from fewstep.sampling.plan import load_plan

    plans = [load_plan(path) for path in files_in([folder], ".json")]
    wanted = {parent.hash for parent in parents}
    return [one for one in plans if not wanted or wanted & set(one.provenance.get("parents", ()))]


def _write_one(plans: Sequence["Plan"], budget: float | None, out: Path) -> None:
    from fewstep.methods.ddsm.stage.run import pick
    from fewstep.sampling.document import save_plan

    if budget is None:
        raise ConfigError(
            "--front needs --budget, the share of the full network's cost that a plan may have."
        )
    chosen = pick(plans, budget)
    save_plan(chosen, out)
    share = chosen.provenance["stepaware"]["cost"]["share"]
    typer.echo(f"{out}: {chosen.name}, {share:.1%} of the full network's cost")


def _write_all(out: Path, found: Sequence["FoundWidths"], spec: Spec | None) -> None:
    import pandas as pd

    from fewstep.sampling.document import save_plan

    with result_folder(out, spec) as folder:
        for searched in found:
            for plan in searched.plans:
                save_plan(plan, folder / f"{plan.name}.json")
        pd.concat([searched.frame for searched in found]).to_parquet(folder / "trials.parquet", index=False)
    typer.echo(f"{out}: {sum(len(searched.plans) for searched in found)} plans")


def _sentence(parent: "Plan", found: "FoundWidths") -> str:
    record = found.record
    shares = [one.provenance["stepaware"]["cost"]["share"] for one in found.plans]
    against = [
        f"{name} {record[key]:.3g}"
        for name, key in (("one width everywhere", "uniform"), ("random orders", "random"))
        if record[key] is not None
    ]
    far = f"; at the same cost {' and '.join(against)} times as far from the full network's images"
    failed = f", {record['failed']} failed" if record["failed"] else ""
    return (
        f"{parent.name}: {len(shares)} plans of {min(shares):.1%} to {max(shares):.1%} of the cost, "
        f"{record['evaluations']} tried{failed}{far if against else ''} "
        "(on seeds of the search; report on others)"
    )
