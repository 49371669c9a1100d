"""A searched plan of a small text-to-image pipeline against known samplers at as many calls and at twice as many.

    python benchmarks/text_to_image_training.py --data state/cifar10-jpeg --out cifar10-text
    fewstep search --model cifar10-text --call call.yaml --prompts cifar10-text.search.txt --nfe 4 --analytic false
        --out found
    python benchmarks/text_to_image_quality.py --model cifar10-text --call call.yaml --prompts cifar10-text.report.txt
        --found found --nfe 4 --work work

The distance is that of each image to the pipeline's own DDIM in 50 steps from the same noise (root mean square, levels
of 255), on prompts and noises that the search has not seen; intervals count prompts. Known samplers are DDIM,
DPM-Solver++(2M) and UniPC-2 on trailing times (uniform-t), Karras' and equal log-SNR. The claim of solver search on
Stable Diffusion [liu2024usf] is that N calls do as well as the best known sampler in 2 N: here, that the interval of
the difference ends below a tenth of that sampler's distance. The best of 2 N is picked on these very images, which
favours it. What was drawn is kept in --work. The table goes to benchmarks/results/text_to_image_quality.md.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import fewstep as fs
from fewstep.files import atomic_file
from fewstep.metrics.paired import mean_by_prompt, paired_distances
from fewstep.pipeline.conditions import with_conditions
from fewstep.pipeline.seeds import require_unseen, require_unseen_prompts
from fewstep.progress import track
from fewstep.sampling.plan import load_plan
from fewstep.sampling.presets import PRESETS

RESULT = Path(__file__).parent / "results/text_to_image_quality.md"
KNOWN = ("ddim", "dpmpp-2m", "unipc-2")
GRIDS = ("uniform-t", "karras", "uniform-lambda")
MARGIN = 0.1


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("model", "call", "prompts", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--found", type=Path)
    parser.add_argument("--nfe", default="4")
    parser.add_argument("--images", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = with_conditions(fs.load_model(options.model, call=options.call), options.prompts)
    seeds, rows = range(options.images), model.conditions.identity["rows"]
    groups = [seed % rows for seed in seeds]
    options.work.mkdir(parents=True, exist_ok=True)

    def drawn(plan):
        file = options.work / f"{plan.hash[:16]}.npy"
        if not file.exists():
            images = fs.sample(
                model, plan, seeds=seeds, condition=model.condition_of(seeds), batch_size=50,
                progress=track(plan.name, unit="batch"),
            )  # fmt: skip
            with atomic_file(file) as temporary, open(temporary, "wb") as out:
                np.save(out, images.numpy())
        return np.load(file)

    fine = drawn(PRESETS["ddim"](model.schedule, 50, grid="uniform-t", to_zero=True))
    numbers = [int(n) for n in options.nfe.split(",")]

    def distances(plan):
        return paired_distances(drawn(plan), fine)

    lines = [
        "# Searched plans of a small text-to-image pipeline",
        "",
        f"`benchmarks/text_to_image_quality.py`, {options.images} images of {rows} prompts that no search has seen, "
        f"call {options.call.read_text().strip()!r}.",
        "Distance to the pipeline's own DDIM in 50 steps from the same noise, root mean square in levels of 255.",
        "",
        "| calls | sampler | distance |",
        "|---|---|---|",
    ]
    known = {}
    for n in sorted({*numbers, *(2 * n for n in numbers)}):
        for preset in KNOWN:
            for grid in GRIDS:
                plan = PRESETS[preset](model.schedule, n, grid=grid, to_zero=True)
                known[n, f"{preset}, {grid}"] = distances(plan)
    for (n, name), values in known.items():
        lines.append(f"| {n} | {name} | {_said(mean_by_prompt(values, groups))} |")
    for n in numbers if options.found else ():
        plan = load_plan(options.found / f"searched.nfe{n}.json")
        require_unseen(plan, seeds)
        require_unseen_prompts(plan, seeds, model)
        values = distances(plan)
        lines.append(f"| {n} | searched | {_said(mean_by_prompt(values, groups))} |")
        for calls, word in ((n, "as many"), (2 * n, "twice as many")):
            best = min((k for k in known if k[0] == calls), key=lambda k: known[k].mean())
            less, target = mean_by_prompt(values - known[best], groups), known[best].mean()
            holds = less.interval.high < MARGIN * target
            lines += [
                "",
                f"{n} calls searched less the best of {word} ({best[1]} in {calls}): {_said(less)}, "
                f"{values.mean() / target:.2f} times its distance; "
                f"{'not worse' if holds else 'not shown to be no worse'} at a margin of {MARGIN:.0%}.",
            ]
    print("\n".join(lines))
    if options.found:
        RESULT.write_text("\n".join(lines) + "\n")


def _said(mean):
    return f"{mean.value:.2f} [{mean.interval.low:.2f}, {mean.interval.high:.2f}]"


if __name__ == "__main__":
    main()
