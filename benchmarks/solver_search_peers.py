"""Public few-step programs run by their own code, and our searched plans, on one model: same noises, same evaluator.

Run: git clone https://github.com/zju-pi/diff-sampler; git clone https://github.com/thu-nics/USF
     OMP_NUM_THREADS=1 python benchmarks/solver_search_peers.py MODEL PLAN... --reference stats.npz --extractor NAME \
         --data DATASET --diff-sampler diff-sampler --usf USF
Writes benchmarks/results/solver_search_peers.md (or --name); a program that is not named is left out.

MODEL is a U-Net of this project that predicts noise and has a DDPM table; each PLAN was searched on it, and the
record of its search, search.nfe*.json beside it, says how many network calls that took: USF's search gets as many.
What has to be chosen (among the presets, and within USF's search) is chosen on noises that no reported image has.
The programs see the model through benchmarks/peers, where it is said which of their settings are used.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from peers import amed, gits
from peers.adapter import Opened, Sampler
from peers.usf import usf
from torch import Tensor

from fewstep import process
from fewstep.data.packed import load_dataset
from fewstep.data.pixels import to_u8, to_unit
from fewstep.files import atomic_file
from fewstep.interop.load import load_model
from fewstep.metrics.extractor import extract, load_extractor
from fewstep.metrics.frechet import frechet
from fewstep.metrics.reference import load_reference
from fewstep.metrics.statistics import Statistics
from fewstep.metrics.uncertainty import half_samples, normal_interval, spread
from fewstep.rng import ImageNoise
from fewstep.sampling.plan import Plan, load_plan
from fewstep.sampling.sample import sample
from fewstep.sampling.task import batches

RESULTS = Path(__file__).parent / "results"
SEARCH_SEED, REPORT_SEED = 1_000_000_000, 500_000_000


class Row(NamedTuple):
    """One line of the table."""

    nfe: int
    value: float
    interval: str
    name: str
    calls: int


class Judge:
    """Fréchet distances of what a sampler makes of given noises."""

    def __init__(self, arguments: argparse.Namespace, opened: Opened) -> None:
        self.arguments, self.opened = arguments, opened
        self.extractor = load_extractor(arguments.extractor)
        self.reference = load_reference(arguments.reference, extractor=self.extractor).statistics

    def images(self, run: Sampler, seeds: range) -> Tensor:
        """Made in batches, uint8."""
        shape = self.opened.model.shape
        parts = batches(seeds, self.arguments.batch_size)
        with torch.no_grad():
            return torch.cat([to_u8(run(ImageNoise(part, shape)())) for part in parts])

    def features(self, images: Tensor) -> np.ndarray:
        return extract(images, self.extractor)

    def score(self, run: Sampler) -> float:
        """On the noises to choose by."""
        images = self.images(run, range(SEARCH_SEED, SEARCH_SEED + self.arguments.trial_images))
        return frechet(Statistics.from_features(self.features(images)), self.reference).value

    def row(self, nfe: int, name: str, run: Sampler | Plan, calls: int) -> Row:
        """On the noises to report; `calls` is what making the sampler took."""
        seeds = range(REPORT_SEED, REPORT_SEED + self.arguments.n)
        if isinstance(run, Plan):
            images = sample(self.opened.model, run, seeds=seeds, batch_size=self.arguments.batch_size)
        else:
            before = self.opened.calls
            images = self.images(run, seeds)
            made = (self.opened.calls - before) / len(seeds)
            assert made == nfe, f"{name} makes {made} calls an image where {nfe} were asked for"
        features = self.features(images)
        value = frechet(Statistics.from_features(features), self.reference).value
        sd = spread(half_samples(features, self.reference, resamples=50, seed=0))
        low, high = normal_interval(value, sd, 0.95)
        row = Row(nfe, value, f"{value:.1f} [{low:.1f}, {high:.1f}]", name, calls)
        print(row, flush=True)
        return row


def searched(judge: Judge, paths: Iterable[Path]) -> list[Row]:
    """Our plans, with the calls that their records give."""
    plans = [load_plan(path) for path in paths]
    return [
        judge.row(plan.nfe, "**searched**", plan, spent(path))
        for plan, path in zip(plans, paths, strict=True)
    ]


def spent(path: Path) -> int:
    """Network calls of the search that made a plan."""
    record = json.loads(next(path.parent.glob("search.nfe*.json")).read_text())
    return sum(record["network_calls"].values())


def diff_sampler(judge: Judge, nfes: Iterable[int]) -> list[Row]:
    """The best of their presets, and of their samplers on GITS grids."""
    clone, opened, rows = judge.arguments.diff_sampler, judge.opened, []
    for nfe in nfes:
        before = opened.calls
        scored = [(judge.score(run), name, run) for name, run in gits.samplers(clone, opened, nfe)]
        calls = opened.calls - before
        scored = sorted((row for row in scored if np.isfinite(row[0])), key=lambda row: row[0])
        best = {name.endswith(".gits"): (name, run) for _, name, run in reversed(scored)}
        rows += [judge.row(nfe, f"diff-sampler {name}", run, calls) for name, run in best.values()]
    return rows


def amed_rows(judge: Judge, nfes: Iterable[int]) -> list[Row]:
    """Each variant of AMED, trained here."""
    clone, opened, batch = judge.arguments.diff_sampler, judge.opened, judge.arguments.amed_batch
    return [
        judge.row(nfe, f"AMED {name}", run, calls)
        for nfe in nfes
        for name, run, calls in amed.samplers(clone, opened, nfe, batch)
    ]


def usf_rows(judge: Judge, budgets: dict[int, int], mean: Tensor) -> list[Row]:
    """The best of their presets, and what their search finds."""
    rows = []
    with usf(judge.arguments.usf, judge.opened, mean) as program:
        for nfe, found in program.search(budgets, judge.score).items():
            name, decisions = found["preset"]
            preset_calls = found["presets"] * judge.arguments.trial_images * nfe
            rows.append(judge.row(nfe, f"USF preset {name}", program.run(decisions), preset_calls))
            best = found["best"]
            print(best)
            afs = "" if best["afs"] == "no_afs" else f", afs {best['afs']}"
            trials = f"{found['trials']} trials, {found['failed']} failed"
            rows.append(judge.row(nfe, f"USF search ({trials}{afs})", program.run(best), budgets[nfe]))
    return rows


def table(judge: Judge, rows: list[Row]) -> str:
    """Markdown, best first at each NFE."""
    arguments, model = judge.arguments, judge.opened.model
    lines = [
        f"# {model.name}: FD-{judge.extractor.id} of {arguments.n} images, public programs beside searched plans",
        "",
        "Intervals of 95 %; below 1 in the fourth column the searched plan is better. afs: the first step is "
        "analytical and a step more is made. Calls: of the network on one image, to choose or to train; choices on "
        f"{arguments.trial_images} images of other noises. AMED: one training each, {amed.UPDATES} batches of "
        f"{arguments.amed_batch} trajectories, backward passes not counted. The intervals are of the images alone: "
        "another run of a search or of a training would find something else.",
        "",
        "| NFE | sampler | FD | searched / this | calls |",
        "|---|---|---|---|---|",
    ]
    for nfe in sorted({row.nfe for row in rows}):
        same = sorted((row for row in rows if row.nfe == nfe), key=lambda row: row.value)
        ours = next(row.value for row in same if row.name == "**searched**")
        lines += [
            f"| {nfe} | {row.name} | {row.interval} | {ours / row.value:.2f} | {row.calls / 1000:.0f}k |"
            for row in same
        ]
    return "\n".join([*lines, ""])


def main(arguments: argparse.Namespace) -> None:
    torch.distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:29507", rank=0, world_size=1)
    started = time.process_time()
    opened = Opened(load_model(arguments.model))
    judge = Judge(arguments, opened)
    data = load_dataset(arguments.data, "train")
    mean = to_unit(data.batch(range(len(data)))).mean(0, keepdim=True)
    rows = searched(judge, arguments.plans)
    budgets = {row.nfe: row.calls for row in rows}
    parts: list[Callable[[], list[Row]]] = []
    if arguments.usf:
        parts.append(lambda: usf_rows(judge, budgets, mean))
    if arguments.diff_sampler:
        parts += [lambda: diff_sampler(judge, budgets), lambda: amed_rows(judge, budgets)]
    for part in parts:
        rows += part()
        with atomic_file(RESULTS / f"solver_search_{arguments.name}.md") as temporary:
            temporary.write_text(table(judge, rows))
    print(table(judge, rows), f"{time.process_time() - started:.0f} s of processor time")


if __name__ == "__main__":
    process.set_up()
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("plans", nargs="+", type=Path, help="searched plans, one for each NFE")
    parser.add_argument("--reference", required=True)
    parser.add_argument("--extractor", required=True)
    parser.add_argument(
        "--data", required=True, help="the data set, whose mean USF's analytical first step takes"
    )
    parser.add_argument("--diff-sampler", type=Path, help="a clone")
    parser.add_argument("--usf", type=Path, help="a clone")
    parser.add_argument("--n", type=int, default=5000, help="reported images")
    parser.add_argument("--trial-images", type=int, default=250, help="images to choose by")
    parser.add_argument(
        "--amed-batch", type=int, default=16, help="trajectories of one batch of AMED's training"
    )
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--name", default="peers")
    main(parser.parse_args())
