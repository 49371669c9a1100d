"""Does the offline extractor rank samplers as FID does? Spearman's correlation over the samples of a leaderboard.

Run: python benchmarks/rank_correlation.py SAMPLES.npz... --data cifar10 [--weights FILE]
SAMPLES are files of `fewstep sample`, at least five; DATA is the packed training set. The official Inception weights
are found or downloaded as `fewstep evaluate --extractor inception2015` does; on a CPU an hour per 20,000 images.
"""

import argparse
from pathlib import Path
from statistics import NormalDist

import numpy as np

from fewstep.checks import ConfigError
from fewstep.files import atomic_file
from fewstep.metrics.evaluate import metric_name
from fewstep.metrics.extractor import DEFAULT_COLOUR, Extractor, extract, load_extractor
from fewstep.metrics.frechet import frechet
from fewstep.metrics.reference import Reference, build_reference, load_reference, save_reference
from fewstep.metrics.statistics import Statistics
from fewstep.pipeline.samples import read_samples
from fewstep.progress import track

FEWEST = 5


def ranks(values: np.ndarray) -> np.ndarray:
    """From 1; equal values share the mean of their ranks."""
    below = (values[:, None] > values).sum(1)
    equal = (values[:, None] == values).sum(1)
    return below + (equal + 1) / 2


def spearman(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Correlation of the ranks and its 95 % interval by Fisher's transform, whose sd is 1.03 / sqrt(n - 3)."""
    rho = float(np.corrcoef(ranks(x), ranks(y))[0, 1])
    half = NormalDist().inv_cdf(0.975) * 1.03 / (len(x) - 3) ** 0.5
    # Perfect agreement is told from the next best only to half a step of rho, 12 / (n (n^2 - 1)).
    most = 1 - 6 / (len(x) * (len(x) ** 2 - 1))
    centre = np.arctanh(np.clip(rho, -most, most))
    return rho, min(rho, float(np.tanh(centre - half))), max(rho, float(np.tanh(centre + half)))


def reference_of(data: Path, extractor: Extractor, kept: Path | None) -> Reference:
    """Statistics of the training images; kept beside each other, for they take longest."""
    path = None if kept is None else kept / f"{extractor.id}.npz"
    if path is not None and path.exists():
        return load_reference(path, extractor=extractor)
    reference = build_reference(data, extractor, heldout=None, progress=track(extractor.id, unit="batch"))
    if path is not None:
        kept.mkdir(parents=True, exist_ok=True)
        save_reference(path, reference)
    return reference


def report(args: argparse.Namespace) -> str:
    if len(args.samples) < FEWEST:
        raise ConfigError(
            f"A rank correlation needs at least {FEWEST} files of samples, got {len(args.samples)}."
        )
    columns, names = [], []
    for name, path in ((args.offline, None), ("inception2015", args.weights)):
        extractor = load_extractor(name, path=path, backend=args.backend)
        reference = reference_of(args.data, extractor, args.keep)
        found, sizes = [], set()
        for file in args.samples:
            images = read_samples(file).images
            sizes.add(len(images))
            features = Statistics.from_features(
                extract(images, extractor, progress=track(file.stem, unit="batch"))
            )
            found.append(frechet(features, reference.statistics).value)
        if len(sizes) > 1:
            raise ConfigError(
                f"All files must hold equally many images, got {sorted(sizes)}: distances fall with it."
            )
        columns.append(np.array(found))
        names.append(metric_name("FD", extractor, sizes.pop()))
    lines = [f"| samples | {names[0]} | {names[1]} |", "| --- | ---: | ---: |"]
    order = np.argsort(columns[1])
    lines += [f"| {args.samples[i].stem} | {columns[0][i]:.4g} | {columns[1][i]:.4g} |" for i in order]
    rho, low, high = spearman(*columns)
    lines += [
        "",
        f"Spearman's rank correlation over {len(order)} sets of samples: {rho:.3f} (95 % {low:.3f} to {high:.3f})",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("samples", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True, help="packed dataset")
    parser.add_argument("--offline", default=DEFAULT_COLOUR, help="the extractor that is put to the test")
    parser.add_argument("--weights", type=Path, help="file of the official Inception weights")
    parser.add_argument("--backend", default="torch", help="torch or openvino")
    parser.add_argument("--keep", type=Path, help="folder for the statistics of the training images")
    parser.add_argument("--out", type=Path, help="also write the table here")
    args = parser.parse_args()
    text = report(args)
    print(text)
    if args.out is not None:
        with atomic_file(args.out) as path:
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
