"""Draw and measure all known samplers, and searched plans, on one model: Fréchet distance and milliseconds an image.

    PYTHONPATH=src python benchmarks/gpu/measure.py --model zoo/cifar10-32-base --reference cifar10-jpeg \
        --plans zoo/cifar10-32-base/plans --seconds 530 --out $OUT

Searched plans first, then the presets on their own grid and on uniform-t, few calls first. Each finished plan is a
line of --work/measured.jsonl, from which the same command resumes; nothing is begun that would not end in time.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import torch
from common import Lease

from fewstep.checks import ConfigError
from fewstep.metrics.evaluate import evaluate_samples
from fewstep.metrics.extractor import extract
from fewstep.pipeline.seeds import require_unseen
from fewstep.sampling.plan import Plan, load_plan
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import Costs, sample
from fewstep.sampling.task import Task

GRIDS = (None, "uniform-t")
"""Of the known samplers: the paper's own, and equal times."""


def plans_of(task: Task, numbers: list[int], folder: Path | None, presets: list[str]) -> Iterator[Plan]:
    """Searched plans, then known samplers; each plan once."""
    seen: set[str] = set()
    searched = sorted(folder.glob("*.json")) if folder is not None else []
    for path in searched:
        plan = load_plan(path)
        if plan.nfe in numbers:
            seen.add(plan.hash)
            yield plan
    for nfe in numbers:
        for name in presets:
            for grid in GRIDS:
                try:
                    plan = PRESETS[name](task.model.schedule, nfe, grid=grid)
                except ConfigError:  # not every preset can make every number of calls
                    continue
                if plan.hash not in seen:
                    seen.add(plan.hash)
                    yield plan


def measure(
    plan: Plan, task: Task, lease: Lease, judge: Any, *, images: int, dtype: torch.dtype
) -> dict[str, Any]:
    """One line of results."""
    reference, extractor = judge
    seeds, costs = range(images), Costs()
    require_unseen(plan, seeds)
    started = common.synchronised(lease.device)
    drawn = sample(
        task.model,
        plan,
        seeds=seeds,
        batch_size=task.batch_size,
        condition=task.model.condition_of(seeds),
        dtype=None if dtype == torch.float32 else dtype,
        costs=costs,
    )
    drawing = common.synchronised(lease.device) - started
    found = extract(drawn, extractor)
    ((label, result),) = evaluate_samples(found, reference, extractor, metrics=("fd",)).items()
    return {
        "plan": plan.name,
        "hash": plan.hash,
        "nfe": plan.nfe,
        "metric": label,
        "value": result["value"],
        "interval": result["interval"],
        "baseline": result.get("baseline"),
        "ms_per_image": 1000 * drawing / images,
        "network_ms_per_image": 1000 * costs.network_seconds / images,
        "dtype": str(dtype).removeprefix("torch."),
        "seconds": round(common.synchronised(lease.device) - started, 3),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows by number of calls, best first."""
    lines = ["| NFE | sampler | FD | ms/image |", "|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: (row["nfe"], row["value"])):
        low, high = row["interval"]
        lines.append(
            f"| {row['nfe']} | {row['plan']} | {row['value']:.4g} [{low:.4g}, {high:.4g}] | {row['ms_per_image']:.3g} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    made = common.with_data(common.parser(__doc__))
    made.add_argument("--model", type=Path, required=True, help="model folder, or its name in the zoo")
    made.add_argument("--plans", type=Path, default=None, help="folder of searched plans")
    made.add_argument("--nfe", type=int, nargs="+", default=[5, 10, 4, 6, 8, 3, 20, 50])
    made.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    made.add_argument("--images", type=int, default=10_000, help="a plan, seeds from 0")
    made.add_argument("--batch", type=int, default=1000)
    made.add_argument(
        "--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the network's calls"
    )
    options = made.parse_args(arguments)
    lease = Lease.of(options, exact=True)
    task = common.task_of(options.model, lease, batch_size=options.batch)
    judge, dtype = common.judge(lease, options), getattr(torch, options.dtype)
    kept = lease.work / "measured.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done, per_call = {row["hash"] for row in rows}, 0.0
    for plan in plans_of(task, options.nfe, options.plans, options.presets):
        if plan.hash in done:
            continue
        if lease.left < 1.3 * per_call * plan.nfe + 0.02 * lease.seconds:
            continue  # a later one may have fewer calls
        row = measure(plan, task, lease, judge, images=options.images, dtype=dtype)
        per_call = max(0.7 * per_call, row["seconds"] / plan.nfe)
        rows.append(row)
        with kept.open("a") as file:
            file.write(json.dumps(row) + "\n")
        lease.say(f"{row['plan']}: {row['value']:.4g}, {row['ms_per_image']:.3g} ms an image")
    reference, extractor = judge
    common.record(
        lease,
        "measured.json",
        {
            "model": {"name": task.model.name, "fingerprint": task.model.fingerprint},
            "n": options.images,
            "protocol": {"reference": reference.protocol, "extractor": extractor.protocol},
            "rows": rows,
        },
    )
    (lease.out / "measured.md").write_text(table(rows) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    common.run(main)
