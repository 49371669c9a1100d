"""Whole searches that are tiny, and all that they leave; as a script, one of them, to be killed in the midst.

`interrupted.py KIND FOLDER`: KIND of `SEARCHES`.
"""

import json
import sys
from pathlib import Path

import torch
from unit.methods.ddsm.stage.slimming import SETTINGS, ddim, pixels, reference, searched, silent, slimmable
from unit.methods.s3.stage.test_known import search_of
from unit.methods.s3.stage.test_polish import images_search

from fewstep.methods.ddsm.stage.run import run_width_search
from fewstep.methods.s3.stage import decisions, known
from fewstep.methods.s3.stage import record as records
from fewstep.methods.s3.stage.run import run_search
from fewstep.pipeline import trials as studies
from fewstep.sampling.task import Task

KNOWN = {"KNOWN": 2, "SECOND_LOOK": 3, "GRIDS": ("uniform-t",)}
RANKED = {"RANKED_FROM": 10, "RANKED_EVERY": 3}


class Dying(Task):
    """Raises `death` at a number of solved batches."""

    solved, at, death = 0, -1, None

    def _solve(self, plan, seeds, values, select):
        if self.solved == self.at:
            raise self.death
        self.solved += 1
        return super()._solve(plan, seeds, values, select)


def dying(task, at, death):
    made = Dying(task.model, task.guidance, task.batch_size)
    made.at, made.death = at, death
    return made


def solver_search(folder, at, death, *, kind):
    """Plan, record and table of a search, but for what depends on the clock."""
    search = images_search(frechet_iterations=1) if kind == "search-images" else search_of(4)
    search.task = dying(search.task, at, death)
    small = {"trials": 5, "polish_iterations": 2, "polish_noises": 8, "finalists": 1}
    if kind == "search-ranked":
        small |= {"trials": 15, "polish_iterations": 0, "sampler": "s3-ranked"}
    search.settings = search.settings.model_copy(update=small)
    found = run_search(search, storage=str(folder / "journal.log"), work=folder, track=silent)
    record = json.loads(json.dumps(found.record))
    for name in records.CLOCKED:
        *groups, last = name.split(".")
        inner = record
        for group in groups:
            inner = inner[group]
        del inner[last]
    table = found.trials.drop(columns=list(studies.CLOCKED))
    return (
        search.task,
        {"plan": found.plan.to_json(), "record": record, "neighbours": repr(found.neighbours)},
        table,
    )


def width_search(folder, at, death, *, kind):
    """The same of a search for widths."""
    model = slimmable((0.0, 0.1, 0.3))
    measures = {"reference": reference(500), "extractor": pixels()} if kind == "stepaware-images" else {}
    settings = SETTINGS.model_copy(update={"population": 4, "generations": 2, "front_plans": 2})
    task = dying(Task(model, batch_size=64), at, death)
    search = searched(folder, model=model, plan=ddim(3), task=task, settings=settings, **measures)
    found = run_width_search(search, storage=str(folder / "journal.log"), track=silent)
    plans = [plan.to_json() for plan in found.plans]
    return task, {"plans": plans, "record": found.record}, found.frame


SEARCHES = {
    "search": solver_search,
    "search-images": solver_search,
    "search-ranked": solver_search,
    "stepaware": width_search,
    "stepaware-images": width_search,
}


def run(kind, folder, at=-1, death=None):
    """Search in a folder: the task, what was found as text, and the table."""
    folder.mkdir(exist_ok=True)
    task, found, table = SEARCHES[kind](folder, at, death, kind=kind)
    return task, json.dumps(found, sort_keys=True), table


def shrink(module, values, set_=setattr):
    for name, value in values.items():
        set_(module, name, value)


if __name__ == "__main__":
    torch.set_num_threads(1)
    shrink(known, KNOWN)
    shrink(decisions, RANKED)
    _, text, frame = run(sys.argv[1], Path(sys.argv[2]))
    Path(sys.argv[2], "found.json").write_text(text)
    frame.to_parquet(Path(sys.argv[2], "table.parquet"))
