"""Editing attributes across a plane: success against change of content, by C, step and space, over several trainings.

Run: editing.py DATA --attributes 3/8,9/4 --extractor E [--models A,B | --seeds 0,1,2 --steps 2500]
     [--variants "chosen;C=1 at 0.2;C=0.001 at 0.2"] [--calls 40] [--heldout 40] [--zetas 1,2,3] [--keep FOLDER]
Writes benchmarks/results/editing_{NAME}.md. Without --models, a model is trained for each seed. `chosen` finds the
mixing step and chooses C by the success of edits; the others take both as given. What is in the folder already is not
made again, so that an interrupted run resumes.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from unittest import mock

import numpy as np
import torch

from fewstep import process
from fewstep.app.cli import main as fewstep
from fewstep.data.packed import load_dataset
from fewstep.files import atomic_file
from fewstep.methods.boundary.choice import Curve, shared_content, success_at
from fewstep.methods.boundary.stage.fit.run import read_record as read_boundaries
from fewstep.methods.boundary.stage.run import read_record
from fewstep.metrics.uncertainty import wilson_interval
from fewstep.pipeline.environment import environment

RESULTS = Path(__file__).parent / "results"
VARIANTS = ("chosen", "C=1 at 0.2", "C=0.001 at 0.2", "C=1 at 0.4", "C=0.001 at 0.4")
METHODS = {
    "eps": "state",
    "h": "bottleneck",
    "both": "both",
    "random": "random",
    "random, far": "random, 3 times as far",
}
Row = dict[str, Any]


def command(*words: object) -> None:
    """A command of fewstep in this process, where it ends well."""
    with mock.patch.object(sys, "argv", ["fewstep", *map(str, words)]):
        try:
            fewstep()
        except SystemExit as ended:
            if ended.code:
                raise


def trained(options: argparse.Namespace, seed: int) -> Path:
    """A model of whole images, trained where it is not there."""
    place = options.keep / f"base-{seed}"
    if not place.exists():
        command("train", "--data", options.data, "--steps", options.steps, "--batch-size", 64, "--lr", 2e-3, "--seed",
                seed, "--warmup", min(100, options.steps // 10), "--threads", 1, "--out", place, "--checkpoints",
                options.keep / "ck" / place.name)  # fmt: skip
    return place


def measured(options: argparse.Namespace, model: Path | str, variant: str) -> tuple[Row, Row]:
    """The records of the boundaries and of the edits of a variant, from disk where they are there."""
    name = re.sub(r"[^\w.]+", "-", f"{Path(model).name}-{variant}")
    fit, edit = options.keep / f"fit-{name}", options.keep / f"edit-{name}"
    given = re.fullmatch(r"C=(\S+) at (\S+)", variant)
    how: list[object] = (
        ["--c", given[1], "--t", given[2]] if given else ["--c", options.cs, "--times", options.times]
    )
    if not fit.exists():
        command("boundary", "fit", "--model", model, "--data", options.data, "--attribute", options.attributes,
                "--extractor", options.extractor, "--calls", options.calls, "--per-side", options.per_side, "--choice",
                options.choice, "--curve-images", options.curve_images, "--sweep", options.sweep, *how,
                "--batch-size", options.batch_size, "--out", fit)  # fmt: skip
    if not edit.exists():
        command("edit", "--model", model, "--boundary", fit, "--data", options.data, "--heldout", options.heldout,
                "--zeta", options.zetas, "--extractor", options.extractor, "--batch-size", options.batch_size,
                "--out", edit)  # fmt: skip
    return read_boundaries(fit), read_record(edit)


def off(values: Sequence[float]) -> str:
    """The standard deviation over trainings, where there are several."""
    return f" ± {stdev(values):.2f}" if len(values) > 1 else ""


def share(rows: Sequence[Row]) -> str:
    """Success over trainings: its mean with the interval of all images, or the spread over trainings."""
    values = [row["success"]["value"] for row in rows]
    if len(values) > 1:
        return f"{mean(values):.2f}{off(values)}"
    low, high = wilson_interval(values[0], len(rows[0]["success"]["hits"]))
    return f"{values[0]:.2f} [{low:.2f}, {high:.2f}]"


def table(options: argparse.Namespace, found: dict[str, list[tuple[Row, Row]]]) -> Iterator[str]:
    """The lines of the table: an attribute and a way to edit each."""
    zetas = [float(zeta) for zeta in options.zetas.split(",")]
    yield (
        "| attribute | boundary | step | C, state | accuracy, state / bottleneck | edited | "
        + " | ".join(f"success / change at {zeta:g}" for zeta in zetas)
        + " |"
    )
    yield "|---|---|---|---|---|---|" + "---|" * len(zetas)
    for attribute in options.attributes.split(","):
        for variant, records in found.items():
            entries = [
                next(entry for entry in record["boundaries"] if entry["attribute"] == attribute)
                for _, record in records
            ]
            steps = sorted({f"{entry['t']:.2g}" for entry in entries})
            cs = sorted({f"{entry['c']['eps']:g}" for entry in entries})
            accuracies = [[entry["accuracy"][space] for entry in entries] for space in ("eps", "h")]
            facts = f"{', '.join(steps)} | {', '.join(cs)} | {' / '.join(f'{mean(one):.2f}' for one in accuracies)}"
            for method, name in METHODS.items():
                if method in ("h", "both") and variant != "chosen":
                    continue
                cells = []
                for zeta in zetas:
                    own = [
                        next(r for r in entry["results"] if (r["method"], r["zeta"]) == (method, zeta))
                        for entry in entries
                    ]
                    cells.append(f"{share(own)} / {mean(r['content']['value'] for r in own):.2f}")
                yield f"| {attribute} | {variant} | {facts} | {name} | {' | '.join(cells)} |"
            if variant == "chosen":
                sampled = [entry["sampled"] for entry in entries]
                cells = []
                for k in range(len(zetas)):
                    rows = [one["results"][k] for one in sampled]
                    cells.append(f"{share(rows)} / {mean(row['content']['value'] for row in rows):.2f}")
                name = f"both, from noise ({share([one['before'] for one in sampled])} before)"
                yield f"| {attribute} | {variant} | {facts} | {name} | {' | '.join(cells)} |"


def at_equal_change(options: argparse.Namespace, found: dict[str, list[tuple[Row, Row]]]) -> Iterator[str]:
    """Success at the largest change of content that the edits of the state of all variants and trainings reach."""
    entries = {
        (attribute, variant): [
            next(entry for entry in record["boundaries"] if entry["attribute"] == attribute)
            for _, record in records
        ]
        for attribute in options.attributes.split(",")
        for variant, records in found.items()
    }
    variants = list(found)
    controls = ["random, 3 times as far"]
    yield f"| attribute | change | {' | '.join([*(f'{one}, state' for one in variants), 'both', *controls])} |"
    yield f"|---|---|{'---|' * (len(variants) + 2)}"
    for attribute in options.attributes.split(","):
        own = {variant: entries[attribute, variant] for variant in variants}
        level = shared_content([curve(entry, "eps") for some in own.values() for entry in some])
        ways = [
            *((some, "eps") for some in own.values()),
            (own[variants[0]], "both"),
            (own[variants[0]], "random, far"),
        ]
        values = [[float(success_at(curve(entry, method), level)) for entry in some] for some, method in ways]
        yield f"| {attribute} | {level:.2f} | {' | '.join(f'{mean(one):.2f}{off(one)}' for one in values)} |"


def curve(entry: Row, method: str) -> Curve:
    """Changes of content and success of the edits of a method."""
    rows = [row for row in entry["results"] if row["method"] == method]
    return tuple(np.array([row[what]["value"] for row in rows]) for what in ("content", "success"))


def curves(found: list[tuple[Row, Row]]) -> Iterator[str]:
    """The three curves of the mixing step, means over trainings."""
    names = (
        "norm, sampled",
        "norm, inverted",
        "in half the calls",
        "in the limit",
        "gap",
        "gap in the limit",
        "error",
    )
    yield f"| step | {' | '.join(names)} | accuracy, state / bottleneck |"
    yield f"|---|{'---|' * len(names)}---|"
    for points in zip(*(record["points"] for record, _ in found), strict=True):

        def of(*path: str, points: Any = points) -> float:
            values = []
            for point in points:
                for key in path:
                    point = point[key]
                values.append(point)
            return mean(values)

        accuracy = [
            mean(mean(one[space] for one in point["accuracy"].values()) for point in points)
            for space in ("eps", "h")
        ]
        yield (
            f"| {points[0]['t']:.2g} | {of('sampled', 'mean'):.2f} ± {of('sampled', 'std'):.2f} | "
            f"{of('inverted', 'mean'):.2f} | {of('coarse', 'mean'):.2f} | {of('limit_mean'):.2f} | {of('gap'):.2f} | "
            f"{of('limit_gap'):.2f} | {of('error'):.2g} | {accuracy[0]:.2f} / {accuracy[1]:.2f} |"
        )


def seconds(found: list[tuple[Row, Row]]) -> str:
    """Times of a fit and of an edit, in words."""
    fits = [entry["seconds"] for record, _ in found for entry in record["boundaries"]]
    parts = {name: mean(fit[name] for fit in fits) for name in ("inversion", "planes", "choice")}
    edits = [entry["ms"] for _, record in found for entry in record["boundaries"]]
    curve = mean(record["seconds"]["curves"] for record, _ in found)
    inversion, edit = (mean(one[name] for one in edits) for name in ("inversion", "edit"))
    return (
        f"Of a boundary in both spaces: {parts['inversion']:.1f} s for the inversion of its images, "
        f"{parts['planes']:.2f} s for its planes of all C, {parts['choice']:.0f} s for the choice of C; "
        f"{curve:.0f} s for the curves. Of an image: {inversion:.1f} ms for its inversion, {edit:.1f} ms for an edit."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--attributes", required=True)
    parser.add_argument("--extractor", required=True, help="a name, or the folder of a classifier")
    parser.add_argument("--models", type=lambda text: text.split(","), help="instead of training some")
    parser.add_argument("--seeds", type=lambda text: [int(one) for one in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--variants", type=lambda text: text.split(";"), default=list(VARIANTS))
    parser.add_argument("--cs", default="0.001,0.01,0.1,1")
    parser.add_argument("--times", default="0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9")
    parser.add_argument("--sweep", default="0.5,1,1.5,2,3")
    parser.add_argument("--zetas", default="1,2,3")
    for name, default in (
        ("calls", 40),
        ("per-side", 100),
        ("choice", 40),
        ("curve-images", 200),
        ("heldout", 40),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--keep", type=Path, default=Path("editing"))
    options = parser.parse_args()
    process.set_up()
    torch.set_num_threads(1)
    models = options.models or [trained(options, seed) for seed in options.seeds]
    found = {variant: [measured(options, model, variant) for model in models] for variant in options.variants}
    dataset, facts = load_dataset(options.data), environment()
    several = len(models) > 1
    text = "\n".join(
        [
            f"# Editing on {dataset.name}",
            "",
            "Cells: share of held-out images without the attribute that have it after one edit / mean squared change",
            "of pixels in [-1, 1], by the "
            "distance from the plane in units of the mean distance of training images. Random: moved as far in both "
            f"spaces. {options.heldout} images an attribute at most;",
            f"{options.calls} calls; planes of {options.per_side} images a side. "
            + (
                f"Means over {len(models)} trainings of {options.steps} steps, ± standard deviation over trainings."
                if several
                else f"Model {Path(models[0]).name}; 95 % intervals over images."
            ),
            "",
            *table(options, found),
            "",
            "Success at equal change of pixels, between the distances on a line; the last two columns are of "
            f"{options.variants[0]}:",
            "",
            *at_equal_change(options, found),
            "",
            *(
                [
                    "The curves by which the step is found:",
                    "",
                    *curves(found["chosen"]),
                    "",
                    seconds(found["chosen"]),
                ]
                if "chosen" in found
                else []
            ),
            "",
            f"Made by `benchmarks/editing.py` at {facts['git_commit']}, torch {facts['torch']}, one thread, "
            "on a machine that others used, too.",
            "",
        ]
    )
    with atomic_file(RESULTS / f"editing_{dataset.name}.md") as temporary:
        temporary.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
