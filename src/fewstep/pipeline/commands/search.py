"""`fewstep teacher` and `search`: a sampling plan of its own for a model and a number of network calls."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.checks import ConfigError
from fewstep.files import write_json
from fewstep.pipeline.config import PlanSettings, SampleSettings, SearchSettings
from fewstep.pipeline.measure import reference_and_extractor
from fewstep.pipeline.options import (
    DataOption,
    DeviceOption,
    ExtractorOption,
    GuidanceOption,
    ModelOption,
    ReferenceOption,
    StudyOption,
    takes_settings,
)
from fewstep.pipeline.specs import Spec, result_folder, stamp

if TYPE_CHECKING:
    from fewstep.methods.s3.teacher import Teacher
    from fewstep.pipeline.search import Found
    from fewstep.sampling.task import Task

ToZeroOption = Annotated[
    bool, typer.Option("--to-zero/--no-to-zero", help="end at clean data, or at the schedule's t_min")
]


@takes_settings(
    hide=tuple(
        n
        for n in SearchSettings.model_fields
        if n not in ("noises", "trial_noises", "teacher_nfe", "seed", "batch_size")
    )
)
def teacher(
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="file to write (.npz)")],
    to_zero: ToZeroOption = True,
    guidance: GuidanceOption = 1.0,
    device: DeviceOption = "auto",
    *,
    search: SearchSettings,
    spec: Spec | None,
) -> None:
    """Solve some noises finely: what searches for any number of calls are measured against.

    Example: fewstep teacher --model results/digits/model --out teacher.npz
    """
    from fewstep.pipeline.solutions import write_teacher

    to_zero, guidance = _of_run(spec, to_zero, guidance)
    task = _task(model, guidance, search, device)
    made = _made_teacher(task, search, to_zero)
    write_teacher(out, made, task)
    if spec:
        stamp(spec, out.parent)
    typer.echo(
        f"{out}: {len(made.seeds)} + {len(made.validation)} solutions of {made.plan.nfe} network calls"
    )


@takes_settings(hide=("nfe",))
def search(
    model: ModelOption,
    nfe: Annotated[str, typer.Option(metavar="N,N,...", help="network calls per image")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    reference: ReferenceOption = None,
    data: DataOption = None,
    extractor: ExtractorOption = "effnet-lite0-p320",
    teacher: Annotated[Path | None, typer.Option(help="from fewstep teacher; made if not given")] = None,
    study: StudyOption = None,
    storage: Annotated[
        str | None,
        typer.Option(help="URL of a database for workers on several machines (default: a file in --study)"),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="processes that run trials")] = 1,
    worker: Annotated[
        bool, typer.Option("--worker", help="only run trials for a search that another process leads")
    ] = False,
    to_zero: ToZeroOption = True,
    guidance: GuidanceOption = 1.0,
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
    from fewstep.methods.s3.space import Space
    from fewstep.pipeline.search import Search, run_search
    from fewstep.pipeline.study import require_storage
    from fewstep.progress import track

    numbers = _numbers(nfe)
    if storage is not None:
        require_storage(storage)
    to_zero, guidance = _of_run(spec, to_zero, guidance)
    task = _task(model, guidance, search, device)
    spaces = [
        Space(task.model.schedule, n, to_zero=to_zero, max_order=search.max_order, analytic=search.analytic)
        for n in numbers
    ]
    kept = study or out.with_name(f"{out.name}.study")
    kept = kept / spec.key if spec else kept
    measured, network = reference_and_extractor(reference, data, extractor, device, task)
    solutions = _teacher(task, search, to_zero, teacher, kept)
    found: list[Found] = []
    for space in spaces:
        with _helpers(0 if worker else workers - 1, space.nfe):
            one = run_search(
                Search(task, solutions, space, search, measured, network),
                storage=storage or str(kept / f"nfe{space.nfe}" / "journal.log"),
                work=kept / f"nfe{space.nfe}",
                neighbours=[neighbour for other in found for neighbour in other.neighbours],
                track=track,
                only_trials=worker,
            )
        if one is not None:
            found.append(one)
            typer.echo(_sentence(one))
    if worker:
        return
    with result_folder(out, spec) as folder:
        for one in found:
            one.plan.save(folder / f"{one.plan.name}.json")
            write_json(folder / f"search.nfe{one.plan.nfe}.json", one.record)
            one.trials.to_parquet(folder / f"trials.nfe{one.plan.nfe}.parquet", index=False)


def _numbers(text: str) -> list[int]:
    try:
        return sorted({int(n) for n in text.split(",")})
    except ValueError:
        raise ConfigError(f"--nfe must be whole numbers such as 5,8,10; got {text!r}.") from None


def _of_run(spec: Spec | None, to_zero: bool, guidance: float) -> tuple[bool, float]:
    """Whether plans end at clean data, and the guidance: those of the run where a workflow runs this."""
    if spec is None:
        return to_zero, guidance
    return spec.section(PlanSettings).to_zero, spec.section(SampleSettings).guidance


def _task(model: Path, guidance: float, settings: SearchSettings, device: str) -> "Task":
    from fewstep.interop.load import load_model
    from fewstep.pipeline.devices import chosen_device
    from fewstep.sampling.task import Task

    return Task(load_model(model, device=chosen_device(device)), guidance, settings.batch_size)


def _made_teacher(task: "Task", settings: SearchSettings, to_zero: bool) -> "Teacher":
    from fewstep.methods.s3.teacher import make_teacher
    from fewstep.pipeline.search import Seeds

    seeds = Seeds.of(settings)
    validation = seeds.validation[: settings.noises]
    return make_teacher(task, seeds.trials, validation, nfe=settings.teacher_nfe, to_zero=to_zero)


def _teacher(
    task: "Task", settings: SearchSettings, to_zero: bool, given: Path | None, kept: Path
) -> "Teacher":
    """The one given, the one of an earlier start, or a new one."""
    from fewstep.pipeline.search import Seeds
    from fewstep.pipeline.solutions import read_teacher, write_teacher

    path = given or kept / "teacher.npz"
    if given is None and not path.exists():
        write_teacher(path, _made_teacher(task, settings, to_zero), task)
    read = read_teacher(path, task)
    for field, is_so, wanted in (
        ("seeds", read.seeds, Seeds.of(settings).trials),
        ("teacher_nfe", read.plan.nfe, settings.teacher_nfe),
        ("to_zero", read.plan.to_zero, to_zero),
    ):
        if is_so != wanted:
            raise ConfigError(
                f"The teacher's {field} must be that of the search, {wanted}; {path} has {is_so}; "
                "give the settings it was made with, or make it again."
            )
    return read


@contextmanager
def _helpers(count: int, nfe: int) -> Iterator[None]:
    """Further processes of this very command that run trials for one number of calls; they end with its search."""
    command = [sys.executable, "-m", "fewstep", *sys.argv[1:], "--nfe", str(nfe), "--worker"]
    processes = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.wait()


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
