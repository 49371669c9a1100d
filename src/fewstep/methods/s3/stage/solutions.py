"""The teacher of a search: made from its settings, and kept in a file with the step costs along its trajectory."""

import json
from pathlib import Path

import numpy as np
import torch

from fewstep.checks import ConfigError, DataError
from fewstep.files import atomic_file
from fewstep.methods.s3.stage.seeds import search_seeds
from fewstep.methods.s3.stage.settings import SearchSettings
from fewstep.methods.s3.teacher import Teacher, make_teacher
from fewstep.pipeline.conditions import identity_of
from fewstep.sampling.plan import plan_from_json
from fewstep.sampling.task import Task

SCHEMA = "fewstep.teacher/1"
FILE = "teacher.npz"  # in the folder of the stage


def solve_teacher(task: Task, settings: SearchSettings, *, to_zero: bool) -> Teacher:
    """Fine solutions of the noises that a search of these settings looks at."""
    seeds = search_seeds(settings)
    validation = seeds["validation"][: settings.noises]
    return make_teacher(task, seeds["trials"], validation, nfe=settings.teacher_nfe, to_zero=to_zero)


def require_teacher(teacher: Teacher, settings: SearchSettings, *, to_zero: bool, path: Path) -> None:
    """Raise ConfigError where a teacher was made with other settings than those of the search."""
    for field, is_so, wanted in (
        ("seeds", teacher.seeds, search_seeds(settings)["trials"]),
        ("teacher_nfe", teacher.plan.nfe, settings.teacher_nfe),
        ("to_zero", teacher.plan.to_zero, to_zero),
    ):
        if is_so != wanted:
            raise ConfigError(
                f"The teacher's {field} must be that of the search, {wanted}; {path} has {is_so}; "
                "give the settings it was made with, or make it again."
            )


def write_teacher(path: Path, teacher: Teacher, task: Task) -> None:
    """Write an .npz by rename."""
    meta = {
        "schema": SCHEMA,
        "model": task.model.fingerprint,
        "guidance": task.guidance,
        "conditions": identity_of(task.model),
        "seeds": [teacher.seeds.start, teacher.seeds.stop],
        "validation": [teacher.validation.start, teacher.validation.stop],
        "plan": teacher.plan.to_json(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            x0=teacher.x0.cpu().numpy(),
            validation_x0=teacher.validation_x0.cpu().numpy(),
            ts=np.array(teacher.ts),
            costs=teacher.costs,
            meta=np.array(json.dumps(meta, sort_keys=True)),
        )


def read_teacher(path: Path, task: Task) -> Teacher:
    """Read what `write_teacher` wrote.
    Raises: DataError: missing, damaged or foreign. ConfigError: of another model, guidance or conditions.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            meta = json.loads(str(arrays["meta"]))
            if meta["schema"] != SCHEMA:
                raise ValueError(f"schema {meta['schema']!r}")
            x0, validation_x0 = (torch.from_numpy(arrays[name]) for name in ("x0", "validation_x0"))
            teacher = Teacher(
                range(*meta["seeds"]),
                x0.to(task.model.device),
                range(*meta["validation"]),
                validation_x0.to(task.model.device),
                tuple(arrays["ts"].tolist()),
                arrays["costs"],
                plan_from_json(meta["plan"]),
            )
    except Exception as error:  # numpy raises zipfile, zlib, OS and value errors for damaged archives
        raise DataError(
            f"{path} must be a file of fewstep teacher, but: {error}; make it again, or remove it."
        ) from None
    for field, is_so, wanted in (
        ("model", meta["model"], task.model.fingerprint),
        ("guidance", meta["guidance"], task.guidance),
        ("conditions", meta.get("conditions"), identity_of(task.model)),
    ):
        if is_so != wanted:
            raise ConfigError(
                f"The teacher's {field} must be that of the search, {wanted}; {path} has {is_so}; make it again."
            )
    return teacher
