"""Fréchet distances at 2048 features: fewstep against pytorch-fid, in one process, one thread, interleaved.

Run: OMP_NUM_THREADS=1 python benchmarks/frechet.py   (needs pytorch-fid 0.3.0 and SciPy; about ten minutes)
"""

import os
import platform
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import scipy
import torch

from fewstep import process
from fewstep.files import atomic_file
from fewstep.metrics.frechet import frechet
from fewstep.metrics.statistics import Statistics

DIM, REPEATS = 2048, 3
OUT = Path(__file__).parent / "results" / "frechet.md"
CASES = ((50_000, 50_000), (10_000, 10_000), (1000, 10_000), (1000, 1000), (500, 500))
TARGETS = {"cold": 4, "cached": 8, "deficient": 30}


def pytorch_fid_distance() -> Callable[..., float]:
    """pytorch-fid's function. Its network and its reading of images, which need torchvision, are left out."""
    for name in ("torchvision", "torchvision.transforms", "pytorch_fid.inception"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
    sys.modules["pytorch_fid.inception"].InceptionV3 = types.SimpleNamespace(BLOCK_INDEX_BY_DIM={2048: 3})
    from pytorch_fid.fid_score import calculate_frechet_distance

    warnings.filterwarnings("ignore", message=".*disp.*", category=DeprecationWarning)
    return calculate_frechet_distance


def features(n: int, seed: int, gain: float, basis: np.ndarray) -> np.ndarray:
    """Rectified correlated Gaussians with a power-law spectrum, which resemble pool3 features."""
    rng = np.random.default_rng(seed)
    scales = np.arange(1, DIM + 1) ** -0.7 * gain
    return np.maximum(rng.standard_normal((n, DIM)) * scales @ basis, 0).astype(np.float32)


def moments_of(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance as pytorch-fid computes them, from the float64 array that it collects."""
    rows = x.astype(np.float64)
    return rows.mean(0), np.cov(rows, rowvar=False)


def exact(x: np.ndarray, y: np.ndarray) -> float:
    """Mean term, traces and nuclear norm straight from the features."""
    a, b = x.astype(np.float64), y.astype(np.float64)
    shift = a.mean(0) - b.mean(0)
    a, b = (a - a.mean(0)) / np.sqrt(len(a) - 1), (b - b.mean(0)) / np.sqrt(len(b) - 1)
    nuclear = torch.linalg.svdvals(torch.from_numpy(a @ b.T)).sum().item()
    return float(shift @ shift + np.square(a).sum() + np.square(b).sum() - 2 * nuclear)


def cpu_seconds(call: Callable[[], object]) -> tuple[float, object]:
    start = time.process_time()
    value = call()
    return time.process_time() - start, value


def measure(n: int, m: int, distance: Callable[..., float], basis: np.ndarray) -> dict[str, object]:
    """One case. A reference is given as statistics where m > 1000, as features where m <= 1000."""
    x, y = features(n, 1, 1.05, basis), features(m, 2, 1.0, basis)
    moments = (*moments_of(x), *moments_of(y))
    reference = Statistics.from_features(y)
    cov = reference.cov
    reference.factor  # noqa: B018 - the factor that a statistics file carries
    full = n > DIM
    sample_cov = Statistics.from_features(x).cov if full else None

    def cold() -> float:
        if full:
            return frechet(Statistics(n, moments[0], sample_cov), Statistics(m, moments[2], cov)).value
        other = Statistics.from_features(y) if m <= 1000 else Statistics(m, reference.mu, cov)
        return frechet(Statistics.from_features(x), other).value

    def cached() -> float:
        return frechet(Statistics(n, moments[0], sample_cov), reference).value

    calls = {"pytorch-fid": lambda: distance(*moments), "cold": cold, **({"cached": cached} if full else {})}
    calls["pytorch-fid, with moments"] = lambda: distance(*moments_of(x), *moments[2:])
    calls["cold, with moments"] = lambda: frechet(Statistics.from_features(x), reference).value
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    values: dict[str, float] = {}
    for _ in range(REPEATS):
        for name, call in calls.items():
            spent, values[name] = cpu_seconds(call)
            seconds[name].append(spent)
    return {
        "n": n,
        "m": m,
        "seconds": {name: median(spent) for name, spent in seconds.items()},
        "values": values,
        "exact": values["pytorch-fid"] if min(n, m) > DIM else exact(x, y),
    }


def main() -> None:
    torch.set_num_threads(1)
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((DIM, DIM)))[0]
    distance = pytorch_fid_distance()
    rows = []
    for n, m in CASES:
        rows.append(measure(n, m, distance, basis))
        print(rows[-1], flush=True)
    OUT.parent.mkdir(exist_ok=True)
    with atomic_file(OUT) as path:
        path.write_text(report(rows), encoding="utf-8")


def report(rows: list[dict[str, object]]) -> str:
    lines = [
        "# Fréchet distance: fewstep against pytorch-fid 0.3.0",
        "",
        f"{DIM} features, synthetic, power-law spectrum. CPU seconds, median of {REPEATS} interleaved runs,",
        f"{os.environ.get('OMP_NUM_THREADS', '?')} thread, {machine()}.",
        f"Python {platform.python_version()}, NumPy {np.__version__}, SciPy {scipy.__version__}, torch "
        f"{torch.__version__}.",
        "Made by `OMP_NUM_THREADS=1 python benchmarks/frechet.py`.",
        "",
        "## Distance alone",
        "",
        "Full rank: both sides are given as mean and covariance. Fewer images than features: the samples are",
        "given as features, and the time includes mean and centring; pytorch-fid gets mean and covariance.",
        "",
        "| images | reference | pytorch-fid | fewstep | faster | factor cached | faster |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        s = row["seconds"]
        fast = s.get("cached")
        extra = f"{fast:.2f} s | {s['pytorch-fid'] / fast:.1f}x" if fast else "not needed | "
        lines.append(
            f"| {row['n']} | {row['m']} | {s['pytorch-fid']:.2f} s | {s['cold']:.3f} s | "
            f"{s['pytorch-fid'] / s['cold']:.1f}x | {extra} |"
        )
    lines += [
        "",
        "## From the samples' features, reference at hand",
        "",
        "Mean and covariance of the samples included on both sides.",
        "",
        "| images | reference | pytorch-fid | fewstep | faster |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        s = row["seconds"]
        a, b = s["pytorch-fid, with moments"], s["cold, with moments"]
        lines.append(f"| {row['n']} | {row['m']} | {a:.2f} s | {b:.2f} s | {a / b:.1f}x |")
    lines += [
        "",
        "## Agreement",
        "",
        "Exact at fewer images than features is the nuclear norm of the features' cross product; at",
        "full rank it is pytorch-fid's own.",
        "",
        "| images | reference | exact | relative error of pytorch-fid | relative error of fewstep |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        v, e = row["values"], row["exact"]
        names = [name for name in v if not name.startswith("pytorch-fid")]
        ours = max(abs(v[name] / e - 1) for name in names)
        lines.append(
            f"| {row['n']} | {row['m']} | {e:.8f} | {abs(v['pytorch-fid'] / e - 1):.1e} | {ours:.1e} |"
        )
    lines += ["", "## Targets", ""]
    for name, got in speedups(rows).items():
        met = "met" if got >= TARGETS[name] else "missed"
        lines.append(f"- {name}: at least {TARGETS[name]}x, measured {got:.1f}x, {met}")
    return "\n".join(lines) + "\n"


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def speedups(rows: list[dict[str, object]]) -> dict[str, float]:
    """The smallest speed-up of each kind."""
    full = [row["seconds"] for row in rows if row["n"] > DIM]
    small = [row["seconds"] for row in rows if row["n"] <= DIM]
    return {
        "cold": min(s["pytorch-fid"] / s["cold"] for s in full),
        "cached": min(s["pytorch-fid"] / s["cached"] for s in full),
        "deficient": min(s["pytorch-fid"] / s["cold"] for s in small),
    }


if __name__ == "__main__":
    process.set_up()
    main()
