"""`fewstep search`: a sampling plan of its own for a model and a number of network calls."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.checks import ConfigError
from fewstep.files import write_json
from fewstep.methods.s3.stage.options import ToZeroOption, of_run
from fewstep.methods.s3.stage.settings import SearchSettings
from fewstep.pipeline.stage.options import (
    CallOption,
    ConditionsOption,
    DataOption,
    DeviceOption,
    ExtractorOption,
    GuidanceOption,
    ModelOption,
    ReferenceOption,
    StudyOption,
    takes_settings,
)
from fewstep.pipeline.stage.spec import Spec, require_result_folder, result_folder

if TYPE_CHECKING:
    from fewstep.methods.s3.stage.run import Found


@takes_settings(hide=("nfe",))
def command(
    model: ModelOption,
    nfe: Annotated[str, typer.Option(metavar="N,N,...", help="network calls per image")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    reference: ReferenceOption = None,
    data: DataOption = None,
    extractor: ExtractorOption = "effnet-lite0-p320",
    teacher: Annotated[Path | None, typer.Option(help="from fewstep teacher; made if not given")] = None,
    start: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            metavar="PLAN",
            help="plan of another model, resolution or guidance to start from, of one of the numbers of calls; may be "
            "repeated",
        ),
    ] = None,
    study: StudyOption = None,
    worker: Annotated[
        bool, typer.Option("--worker", help="only run trials for a search that another process leads")
    ] = False,
    to_zero: ToZeroOption = True,
    guidance: GuidanceOption = 1.0,
    conditions: ConditionsOption = None,
    call: CallOption = None,
    profile: Annotated[
        str | None,
        typer.Option(
            help="defaults of the settings: images, or text for text-to-image pipelines (their default)"
        ),
    ] = None,
    device: DeviceOption = "auto",
    *,
    search: SearchSettings,
    spec: Spec | None,
) -> None:
    """Find the best plan for exactly this model at a number of network calls.

    Structure by an Optuna study, numbers by gradients, the winner on images that nothing was fitted to. Without
    --reference or --data it is the plan nearest to fine solutions of the same noises.

    Example: fewstep search --model my-pipeline --nfe 5,8,10 --data data/images --out found
    """
    from fewstep.interop.load import is_prompted
    from fewstep.methods.s3.stage import workers as processes
    from fewstep.methods.s3.stage.cost import told_cost
    from fewstep.methods.s3.stage.run import run_search, run_trials
    from fewstep.methods.s3.stage.solutions import (
        FILE,
        read_teacher,
        require_teacher,
        solve_teacher,
        write_teacher,
    )
    from fewstep.methods.s3.transfer import require_calls
    from fewstep.pipeline.storage import require_storage
    from fewstep.progress import track
    from fewstep.sampling.document import save_plan
    from fewstep.sampling.plan import load_plan

    numbers = _numbers(nfe)
    require_result_folder(out, spec, {".json", ".parquet"})
    if search.storage is not None:
        require_storage(search.storage)
    to_zero, guidance = of_run(spec, to_zero, guidance)
    if spec is None:
        search = search.in_profile(profile or ("text" if call or is_prompted(model) else "images"))
    given = tuple(load_plan(path) for path in start or ())
    require_calls(given, numbers)
    setup = processes.SearchSetup(
        model, call, conditions, guidance, device, to_zero, search, reference, data, extractor, given
    )
    task = setup.task()
    for n in numbers:
        setup.space(task, n)  # refuses a number that is too small before anything is made
    if task.model.call is not None and not worker:
        typer.echo(told_cost(task, search, numbers), err=True)
    kept = study or out.with_name(f"{out.name}.study")
    kept = kept / spec.key if spec else kept
    measures = setup.measures(task)
    solutions_file = teacher or kept / FILE
    solutions_file = solutions_file / FILE if solutions_file.is_dir() else solutions_file
    if teacher is None and not solutions_file.exists():
        write_teacher(solutions_file, solve_teacher(task, search, to_zero=to_zero), task)
    solutions = read_teacher(solutions_file, task)
    require_teacher(solutions, search, to_zero=to_zero, path=solutions_file)
    finished: list[Found] = []
    for n in numbers:
        searched, work = setup.search(n, task, solutions, *measures), kept / f"nfe{n}"
        place = search.storage or str(work / "journal.log")
        if worker:
            run_trials(searched, storage=place, track=track)
            continue
        with processes.workers(search.workers - 1, setup, n, teacher=solutions_file, storage=place):
            neighbours = [neighbour for other in finished for neighbour in other.neighbours]
            finished.append(
                run_search(searched, storage=place, work=work, neighbours=neighbours, track=track)
            )
        typer.echo(_sentence(finished[-1]))
    if worker:
        return
    with result_folder(out, spec) as folder:
        for found in finished:
            save_plan(found.plan, folder / f"{found.plan.name}.json")
            write_json(folder / f"search.nfe{found.plan.nfe}.json", found.record)
            found.trials.to_parquet(folder / f"trials.nfe{found.plan.nfe}.parquet", index=False)


def _numbers(text: str) -> list[int]:
    try:
        return sorted({int(n) for n in text.split(",")})
    except ValueError:
        raise ConfigError(f"--nfe must be whole numbers such as 5,8,10; got {text!r}.") from None


def _sentence(found: "Found") -> str:
    record = found.record
    best = next(f for f in record["finalists"] if f["name"] == record["winner"])
    known = next(f for f in record["finalists"] if f["name"] == record["best_preset"])
    what = {"fd": "FD", "error": "distance to the fine solution"}[record["measure"]]
    ours, theirs = best[record["measure"]], known[record["measure"]]
    return (
        f"{found.plan.name}: {record['winner']}, {what} {ours:.4g}; best preset {record['best_preset']} "
        f"{theirs:.4g}, ratio {ours / theirs:.2f} (on seeds of the search; report on others)"
    )
