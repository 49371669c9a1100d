"""What a workflow that was killed has left in the queue of a SLURM cluster: waited for where it fits, else cancelled.

A job of the cluster outlives the workflow that submitted it. It is known by its comment, which names rule and
wildcards, and what it makes by the spec that it was given. Where the key of that is the one that the result must carry
now, nothing is gained by making it once more beside it; where it is not, nobody wants what the job would write.
"""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from fewstep.app.keys import make_specs, spec_path
from fewstep.app.params import Params
from fewstep.app.stages import STAGES
from fewstep.files import object_or_empty
from fewstep.pipeline.stage.stages import Result

_MARK = "rule_"
"""How the comments of jobs begin that Snakemake submits."""
POLL = 5.0  # seconds between two looks at the queue

Place = tuple[str, str]
"""Run, and the folder of a result in it."""


def group_of(result: Result, run: str) -> str:
    """The name under which short jobs that follow each other are one job of a cluster: of plans, their images, and the
    measurement of these.
    """
    return f"{run}-{result.origin}".replace("/", "-")


def settle(params: Params, say: Callable[[str], None]) -> None:
    """Wait for the jobs of this folder whose results are wanted as they are made, and cancel all others.
    Args: say: where sentences go.
    """
    living = _in_queue()
    if not living:
        return
    known = dict(_comments(params))
    places = {job: known.get(comment, ()) for job, comment in living.items()}
    wanted: dict[str, Mapping[str, str]] = {}

    def is_wanted(run: str, place: str) -> bool:
        if run not in wanted:
            wanted[run] = {name: spec.key for name, spec in make_specs(run, params.runs).items()}
        return object_or_empty(spec_path(run, place)).get("key") == wanted[run].get(place)

    adopted = {job for job, made in places.items() if made and all(is_wanted(*place) for place in made)}
    if cancelled := sorted(living.keys() - adopted):
        say(
            f"cancelled the jobs {', '.join(cancelled)} of an earlier workflow, whose results are not wanted so"
        )
        subprocess.run(["scancel", *cancelled], check=False)
    if adopted:
        made = sorted({"/".join(place) for job in adopted for place in places[job]})
        say(
            f"waiting for the jobs {', '.join(sorted(adopted))} of an earlier workflow, which make {', '.join(made)}; "
            "scancel ends one, and its result is then made anew"
        )
    while (now := _in_queue()) is None or living.keys() & now.keys():  # None: SLURM does not answer just now
        time.sleep(POLL)


def _in_queue() -> dict[str, str] | None:
    """Comments of the jobs of workflows of this user in this folder that have not ended, by id; None without SLURM."""
    if shutil.which("squeue") is None:
        return None
    done = subprocess.run(
        ["squeue", "--me", "--noheader", "--format=%i|%k|%Z"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return None
    rows = [line.split("|", 2) for line in done.stdout.splitlines()]
    ours = [
        row for row in rows if len(row) == 3 and row[1].startswith(_MARK)
    ]  # not that in which Snakemake runs
    here = Path.cwd().resolve()
    return {job: comment for job, comment, folder in ours if Path(folder).resolve() == here}


def _comments(params: Params) -> Iterator[tuple[str, Sequence[Place]]]:
    """What the comment of a job may be, and the results that such a job makes."""
    for run, settings in params.runs.items():
        groups: dict[str, dict[str, Place]] = {}
        for result in STAGES.results(settings):
            name, place = result.stage.name, (run, result.place)
            which = [
                run,
                *([result.origin] if result.source else []),
                *([str(result.nfe)] if result.nfe and not result.source else []),
            ]
            yield _comment(name, which), [place]
            if result.stage.over is not None:
                n = getattr(settings, name).shards
                for k in range(1, n + 1):
                    yield _comment(f"{name}_shard", [*which, str(k), str(n)]), [place]
            groups.setdefault(group_of(result, run), {})[name] = place
        for group, members in groups.items():
            for some in _subsets(sorted(members)):
                yield f"{_MARK}{group}_{'_'.join(some)}", [members[name] for name in some]


def _comment(rule: str, wildcards: Sequence[str]) -> str:
    return f"{_MARK}{rule}_wildcards_{'_'.join(wildcards)}".replace("/", "_")


def _subsets(names: Sequence[str]) -> Iterator[list[str]]:
    for mask in range(1, 1 << len(names)):
        yield [name for i, name in enumerate(names) if mask >> i & 1]
