"""What it costs to leave one process: planning of many jobs, shards of a result.

Run: OMP_NUM_THREADS=1 PYTHONPATH=tests python benchmarks/cluster_costs.py planning | shards
Each writes benchmarks/results/cluster_{part}.md.
"""

import argparse
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from workflow.test_workflow import Project, new_project

from fewstep.files import atomic_file
from fewstep.pipeline.environment import environment
from fewstep.pipeline.samples import read_samples

RESULTS = Path(__file__).parent / "results"


def timed(project: Project, *words: str | Path, together: int = 1) -> tuple[float, float]:
    """Seconds of the clock and of processors that a command takes, or several of it (`{k}`: 1, 2, ...) at once."""
    environment = {**project.environment, "OMP_NUM_THREADS": "1"}
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    started = [
        subprocess.Popen(
            [str(word).replace("{k}", str(k)) for word in words],
            cwd=project.folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for k in range(1, together + 1)
    ]  # fmt: skip
    for one in started:
        said = one.communicate()[1]
        assert one.returncode == 0, said
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - began, used


def planning(top: Path) -> list[str]:
    """`snakemake -n` of 50 runs of known samplers at 10 numbers of calls: what does not depend on the jobs' length."""
    rows = []
    for n_runs in (1, 10, 50):
        project = new_project(top / f"plan{n_runs}")
        settings = project.folder / "params.yaml"
        content = yaml.safe_load(settings.read_text())
        content["defaults"] = {"plans": {"nfe": list(range(2, 12))}, "train": {"steps": 20}}
        content["runs"] = {f"run{i}": {"train": {"seed": i}} for i in range(n_runs)}
        content["dvc_runs"] = list(content["runs"])
        settings.write_text(yaml.safe_dump(content))
        first = timed(project, "snakemake", "-n", "--quiet", "all")
        again = timed(project, "snakemake", "-n", "--quiet", "all")
        jobs = sum(project.planned().values())
        specs = len(list((project.folder / "state").rglob("spec/**/*.json")))
        rows.append((n_runs, jobs, specs, *first, *again))
    return [
        "`snakemake -n` of runs of 10 numbers of calls, in a fresh folder (specs are written) and again.",
        "",
        "| runs | jobs | specs | first, s | processor, s | again, s | processor, s |",
        "|---|---|---|---|---|---|---|",
        *(f"| {r} | {j} | {s} | {a:.1f} | {b:.1f} | {c:.1f} | {d:.1f} |" for r, j, s, a, b, c, d in rows),
    ]


def shards(top: Path) -> list[str]:
    """Images and features of one plan by one process, and by two that share them."""
    project = new_project(top / "shards")
    settings = project.folder / "params.yaml"
    content = yaml.safe_load(settings.read_text())
    content["defaults"] = {
        "train": {"steps": 200},
        "plans": {"nfe": [50], "presets": ["ddim"], "grids": ["uniform-t"]},
    }
    settings.write_text(yaml.safe_dump(content))
    project.succeed(
        "snakemake",
        "--cores",
        "1",
        "--",
        "results/smoke/stats/spec.json",
        "results/smoke/plans/nfe50/spec.json",
    )
    results, rows = Path("results/smoke"), []
    plan = next((project.folder / results / "plans/nfe50").glob("ddim*.json")).relative_to(project.folder)
    draw = ["fewstep", "sample", results / "train", plan, "--seeds", "0-3999", "--out"]
    measure = [
        "--reference",
        results / "stats",
        "--extractor",
        results / "extractor",
        "--resamples",
        "10",
        "--out",
    ]
    for what, command in (
        ("4,000 images, DDIM in 50 calls", lambda out: [*draw, f"{out}.npz"]),
        ("their measurement", lambda out: ["fewstep", "evaluate", "whole.npz", *measure, f"{out}.json"]),
    ):
        make: Callable[[str], Sequence[str | Path]] = command
        whole, _ = timed(project, *make("whole"))
        shared, _ = timed(project, *make("shared"), "--shard", "{k}/2", together=2)
        merged, _ = timed(project, *make("shared"))
        rows.append((what, whole, shared, merged))
    same = len({read_samples(project.folder / f"{name}.npz").sha256 for name in ("whole", "shared")}) == 1
    return [
        "One thread a process, on two cores. The merge is the command without `--shard`: start of Python and torch, "
        f"reading and writing. The same images: {same}.",
        "",
        "| | 1 process, s | 2 shards, s | merge, s | 2 shards and merge |",
        "|---|---|---|---|---|",
        *(
            f"| {what} | {w:.1f} | {s:.1f} | {m:.1f} | {w / (s + m):.2f} times as fast |"
            for what, w, s, m in rows
        ),
    ]


PARTS: dict[str, Callable[[Path], list[str]]] = {
    "planning": planning, "shards": shards,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    part = parser.parse_args().part
    with tempfile.TemporaryDirectory(prefix="fewstep-", dir=os.environ.get("TMPDIR")) as folder:
        Path(folder).chmod(0o755)
        load = os.getloadavg()[0]
        lines = PARTS[part](Path(folder))
    machine = environment()
    text = [
        f"# {part.capitalize()}",
        "",
        f"`OMP_NUM_THREADS=1 PYTHONPATH=tests python benchmarks/cluster_costs.py {part}`",
        "",
        f"{os.cpu_count()} cores, of a load of {load:.1f} when it began; "
        f"{', '.join(f'{name} {value}' for name, value in machine.items())}.",
        "",
        *lines,
    ]
    with atomic_file(RESULTS / f"cluster_{part}.md") as temporary:
        temporary.write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
