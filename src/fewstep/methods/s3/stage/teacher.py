"""`fewstep teacher`: the fine solutions that searches for any number of network calls are measured against."""

from pathlib import Path
from typing import Annotated

import typer

from fewstep.checks import ConfigError
from fewstep.methods.s3.stage.options import ToZeroOption, of_run, open_task
from fewstep.methods.s3.stage.settings import SearchSettings
from fewstep.pipeline.stage.options import (
    CallOption,
    ConditionsOption,
    DeviceOption,
    GuidanceOption,
    ModelOption,
    takes_settings,
)
from fewstep.pipeline.stage.spec import Spec, require_result_folder, result_folder

_OWN = ("noises", "trial_noises", "teacher_nfe", "seed", "batch_size")


@takes_settings(hide=tuple(name for name in SearchSettings.model_fields if name not in _OWN))
def command(
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="file to write (.npz), or a folder for it")],
    to_zero: ToZeroOption = True,
    guidance: GuidanceOption = 1.0,
    conditions: ConditionsOption = None,
    call: CallOption = None,
    device: DeviceOption = "auto",
    *,
    search: SearchSettings,
    spec: Spec | None,
) -> None:
    """Solve some noises finely: what searches for any number of calls are measured against.

    Example: fewstep teacher --model results/digits/train --out teacher.npz
    """
    from fewstep.methods.s3.stage.solutions import FILE, solve_teacher, write_teacher

    to_file = out.suffix == ".npz"
    if to_file and spec:
        raise ConfigError(f"--out must be a folder for a spec, got the file {out}.")
    if not to_file:
        require_result_folder(out, spec, {".npz"})
    to_zero, guidance = of_run(spec, to_zero, guidance)
    task = open_task(model, call, conditions, guidance, search.batch_size, device)
    solved = solve_teacher(task, search, to_zero=to_zero)
    if to_file:
        write_teacher(out, solved, task)
    else:
        with result_folder(out, spec) as folder:
            write_teacher(folder / FILE, solved, task)
    typer.echo(
        f"{out}: {len(solved.seeds)} + {len(solved.validation)} solutions of {solved.plan.nfe} network calls"
    )
