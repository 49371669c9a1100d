"""How often the interval of a Fréchet distance holds its large-sample value.

Run: calibration.py STATS [--features FOLDER ...] [--sizes 500,1000,2500] [--sets 200]

All features of a statistics file, held-out ones included, are cut into two random halves: one is the reference, sets of
N images are drawn from the other. A folder of features (`fewstep evaluate --features`) is another population, measured
against the same half. The large-sample value is the mean of the distance at N over all sets, and each set has an
interval of its own. Three are compared: ours, that of random halves alone, and that of a bootstrap with replacement.
Writes benchmarks/results/calibration_{NAME}.md.
"""

import argparse
from pathlib import Path

import numpy as np

from fewstep import process
from fewstep.files import atomic_file
from fewstep.metrics.frechet import frechet
from fewstep.metrics.reference import load_reference
from fewstep.metrics.statistics import Statistics
from fewstep.metrics.uncertainty import half_samples, normal_interval, spread, wilson_interval
from fewstep.pipeline.environment import environment
from fewstep.progress import track

RESULTS = Path(__file__).parent / "results"
BOOTSTRAPS, BOOTSTRAP_SETS = 20, 20


def holds(value: float, sd: float, truth: float) -> bool:
    low, high = normal_interval(value, sd)
    return low <= truth <= high


def calibrate(name: str, population: np.ndarray, reference: Statistics, n: int, sets: int, seed: int) -> str:
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(len(population))[:n] for _ in range(sets)]
    values, ours, halves, boots = [], [], [], []
    for k, rows in enumerate(track(f"{name} {n}", unit="set")(drawn)):
        features = population[rows]
        values.append(frechet(Statistics.from_features(features), reference).value)
        replicates = half_samples(features, reference, seed=k)
        ours.append(spread(replicates))
        halves.append(float(replicates.std(ddof=1)))
        if k < BOOTSTRAP_SETS:
            again = [features[rng.integers(0, n, n)] for _ in range(BOOTSTRAPS)]
            boots.append([frechet(Statistics.from_features(one), reference).value for one in again])
    truth, sd = float(np.mean(values)), float(np.std(values, ddof=1))
    share = [
        np.mean([holds(v, s, truth) for v, s in zip(values, sds, strict=True)]) for sds in (ours, halves)
    ]
    low, high = wilson_interval(float(share[0]), sets)
    inside = np.mean([np.quantile(b, 0.025) <= truth <= np.quantile(b, 0.975) for b in boots])
    return (
        f"| {name} | {n:,} | {truth:.1f} | {sd:.2f} | {np.mean(ours):.2f} | **{share[0]:.1%}** [{low:.1%}, {high:.1%}] "
        f"| {np.mean(halves):.2f} | {share[1]:.1%} | {np.mean(boots):.1f} | {inside:.0%} |"
    )


def populations(folders: list[Path]) -> dict[str, np.ndarray]:
    """Features of images by the name of their folder."""
    found = {}
    for folder in folders:
        for place in sorted(path for path in folder.iterdir() if path.is_dir()):
            parts = [np.load(part)["features"] for part in sorted(place.glob("*.npz"))]
            found[place.name.split(".")[0]] = np.concatenate(parts)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("stats", type=Path)
    parser.add_argument("--features", type=Path, nargs="*", default=[])
    parser.add_argument("--sizes", default="500,1000,2500")
    parser.add_argument("--sets", type=int, default=200)
    args = parser.parse_args()
    whole = load_reference(args.stats)
    everything = np.concatenate([whole.statistics.features, whole.heldout])
    order = np.random.default_rng(0).permutation(len(everything))
    one, other = np.array_split(everything[order], 2)
    reference = Statistics.from_features(one)
    name = whole.meta["dataset"]["name"]
    rows = [
        calibrate(which, features, reference, n, args.sets, seed)
        for seed, n in enumerate(map(int, args.sizes.split(",")))
        for which, features in {"real": other, **populations(args.features)}.items()
        if n <= len(features) / 4
    ]
    lines = [
        "# How often an interval of 95 % holds the large-sample value",
        "",
        f"{name}, {whole.meta['extractor']['id']}: {len(one):,} images as the reference, {args.sets} sets of N "
        f"images of each population, 100 replicates an interval, bootstrap on the first {BOOTSTRAP_SETS} sets.",
        "",
        "| images | N | mean FD | true sd | our sd | holds | sd of halves alone | holds | bootstrap's mean | holds |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        ", ".join(f"{key} {value}" for key, value in environment().items()),
    ]
    with atomic_file(RESULTS / f"calibration_{name}.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    process.set_up()
    main()
