"""Evaluation against torch-fidelity, pytorch-fid and clean-fid: the same images, the same random Inception weights.

Run, in an environment with the three (and a torchvision, which may be of another build):
    OMP_NUM_THREADS=2 python benchmarks/evaluation.py parity --data cifar10        (five minutes)
    OMP_NUM_THREADS=2 python benchmarks/evaluation.py speed --data cifar10         (half an hour)
DATA is a packed dataset. Weights, images and statistics are made in --work, by default /tmp/fewstep-evaluation.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from fewstep import process
from fewstep.data.image_files import ImageFiles
from fewstep.data.packed import load_dataset
from fewstep.files import atomic_file
from fewstep.metrics import weights
from fewstep.metrics.extractor import Extractor, extract, load_extractor
from fewstep.metrics.frechet import frechet
from fewstep.metrics.inception import INPUTS, Inception2015
from fewstep.metrics.inception_score import inception_score, shuffled_rows
from fewstep.metrics.kid import mmd2
from fewstep.metrics.precision_recall import precision_recall
from fewstep.metrics.statistics import Statistics
from fewstep.metrics.uncertainty import half_samples, spread

RESULTS = Path(__file__).parent / "results"
N_REFERENCE, N_PARITY, N_FEW, N_SMALL_NET = 2500, 128, 64, 10_000
TOOLS = ("torch-fidelity", "pytorch-fid", "clean-fid", "fewstep", "fewstep openvino")
TARGET_SHARE, TARGET_AGREEMENT = 0.5, 1e-4


def random_weights(path: Path, images: np.ndarray) -> Path:
    """A file in the public port's format whose norms are calibrated on images: features vary as real ones do."""
    if not path.exists():
        rng = torch.Generator().manual_seed(0)
        net = Inception2015()
        for name, value in net.state_dict().items():
            if value.ndim == 4:
                value.copy_(torch.randn(value.shape, generator=rng) * (2 / value[0].numel()) ** 0.5)
            elif name.startswith("fc"):
                value.copy_(torch.randn(value.shape, generator=rng) * 0.05)
        norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None
        with torch.no_grad():
            net.train()(INPUTS["299/bilinear-tf1"](as_tensor(images).float()))
            for norm in norms:
                norm.weight.copy_(torch.rand(norm.weight.shape, generator=rng) + 0.5)
                norm.bias.copy_(0.2 * torch.randn(norm.bias.shape, generator=rng))
        with atomic_file(path) as temporary:
            torch.save(net.state_dict(), temporary)
    return path


def as_tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), order="C"))


def write_images(folder: Path, images: np.ndarray) -> Path:
    if not folder.exists():
        folder.mkdir(parents=True)
        for i, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{i:06d}.png")
    return folder


def accept_random_weights() -> None:
    weights.INCEPTION_2015 = weights.INCEPTION_2015._replace(sha256="")


def without_torchvision_operators() -> None:
    """A torchvision built for another torch fails at import without two operators, which nobody calls here."""
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor boxes, Tensor scores, float t) -> Tensor")
    warnings.filterwarnings("ignore")  # of the peers, about their own deprecations


# --- the peers, each by its own functions ---


def fidelity_network(path: Path) -> torch.nn.Module:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    return FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(path)).eval()


def pytorch_fid_network(path: Path) -> torch.nn.Module:
    from pytorch_fid import inception

    inception.load_state_dict_from_url = lambda *_, **__: torch.load(path, weights_only=True)
    return inception.InceptionV3([3]).eval()


def clean_fid_network(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """clean-fid's wrapper around a TorchScript file, which is made here of pytorch-fid's blocks."""
    from cleanfid.inception_torchscript import InceptionV3W

    class Base(torch.nn.Module):
        def __init__(self, layers: torch.nn.Module) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)

    script = path.parent / "inception-2015-12-05.pt"
    if not script.exists():
        blocks = torch.nn.Sequential(
            *(layer for block in pytorch_fid_network(path).blocks for layer in block)
        )
        with torch.inference_mode():
            torch.jit.trace(Base(blocks), torch.zeros(2, 3, 299, 299)).save(str(script))
    net = InceptionV3W(str(path.parent), download=False, resize_inside=False)
    return lambda x: net(x)


def run_torch_fidelity(folder: Path, path: Path, mu: np.ndarray, sigma: np.ndarray) -> float:
    from torch_fidelity import metric_fid, utils

    options = {
        "input1": str(folder),
        "cuda": False,
        "cache": False,
        "verbose": False,
        "fid": True,
        "feature_extractor_weights_path": str(path),
    }
    net = utils.create_feature_extractor("inception-v3-compat", ["2048"], **options)
    found = metric_fid.fid_input_id_to_statistics(1, net, "2048", **options)
    given = {"mu": mu.astype(found["mu"].dtype), "sigma": sigma.astype(found["sigma"].dtype)}
    result = metric_fid.fid_statistics_to_metric(found, given, False)
    return float(result["frechet_inception_distance"])


def run_pytorch_fid(folder: Path, path: Path, mu: np.ndarray, sigma: np.ndarray) -> float:
    from pytorch_fid import fid_score

    net = pytorch_fid_network(path)
    found = fid_score.compute_statistics_of_path(str(folder), net, 50, 2048, "cpu", 2)
    return float(fid_score.calculate_frechet_distance(*found, mu, sigma))


def run_clean_fid(folder: Path, path: Path, mu: np.ndarray, sigma: np.ndarray) -> float:
    from cleanfid import fid

    net = clean_fid_network(path)
    features = fid.get_folder_features(
        str(folder), net, num_workers=2, device=torch.device("cpu"), verbose=False
    )
    return float(fid.frechet_distance(features.mean(0), np.cov(features, rowvar=False), mu, sigma))


def run_fewstep(folder: Path, path: Path, mu: np.ndarray, sigma: np.ndarray, backend: str = "torch") -> float:
    extractor = load_extractor("inception2015", path=path, backend=backend)
    features = extract(ImageFiles.in_folder(folder), extractor)
    return frechet(Statistics.from_features(features), Statistics(None, mu, sigma)).value


RUN = {
    "torch-fidelity": run_torch_fidelity,
    "pytorch-fid": run_pytorch_fid,
    "clean-fid": run_clean_fid,
    "fewstep": run_fewstep,
    "fewstep openvino": lambda *arguments: run_fewstep(*arguments, backend="openvino"),
}


# --- speed ---


def worker(tool: str, folder: Path, path: Path, reference: Path) -> None:
    """One measurement in a process of its own; imports are not counted, reading the weights is."""
    accept_random_weights()
    if not tool.startswith("fewstep"):
        without_torchvision_operators()
        __import__(
            {"torch-fidelity": "torch_fidelity", "clean-fid": "cleanfid.fid"}.get(
                tool, "pytorch_fid.fid_score"
            )
        )
    with np.load(reference) as file:
        mu, sigma = file["mu"], file["sigma"]
    torch.inference_mode().__enter__()
    before, start = cpu_seconds(), time.perf_counter()
    value = RUN[tool](folder, path, mu, sigma)
    wall = time.perf_counter() - start
    kilobytes = [
        resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    spent = {"wall": wall, "cpu": cpu_seconds() - before, "value": value}
    print(json.dumps({**spent, "memory": kilobytes[0] / 1024, "memory_helpers": kilobytes[1] / 1024}))


def cpu_seconds() -> float:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def speed(args: argparse.Namespace) -> str:
    images = load_dataset(args.data, "train").images
    path = random_weights(args.work / "inception-random.pth", images[:64])
    folder = write_images(args.work / f"png-{args.images}", images[N_REFERENCE : N_REFERENCE + args.images])
    accept_random_weights()
    extractor = load_extractor("inception2015", path=path, backend="openvino")
    reference = args.work / f"reference-{N_REFERENCE}.npz"
    if not reference.exists():
        found = Statistics.from_features(extract(images[:N_REFERENCE], extractor))
        np.savez(reference, mu=found.mu, sigma=found.cov, features=found.features)
    runs: dict[str, list[dict[str, float]]] = {tool: [] for tool in TOOLS}
    for _ in range(args.repeats):
        for tool in TOOLS:
            command = [sys.executable, __file__, "worker", tool, str(folder), str(path), str(reference)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs[tool].append({**json.loads(output.splitlines()[-1]), "load": os.getloadavg()[0]})
            print(tool, runs[tool][-1], flush=True)
    with np.load(reference) as file:
        statistics = Statistics.from_features(file["features"])
    features = extract(ImageFiles.in_folder(folder), extractor)
    half = 1.96 * spread(half_samples(features, statistics))
    return speed_report(args.images, runs, half) + small_net_report(images, args)


def speed_report(n: int, runs: dict[str, list[dict[str, float]]], half: float) -> str:
    middle = {tool: {key: median(run[key] for run in rows) for key in rows[0]} for tool, rows in runs.items()}
    lines = [
        "# Evaluation: fewstep against torch-fidelity, pytorch-fid and clean-fid",
        "",
        f"{n} PNG files of 32 x 32 pixels to a Fréchet distance in 2048 features, against given statistics;",
        f"one random Inception in all. Median of {len(runs['fewstep'])} interleaved runs, each in a fresh process,",
        f"imports not counted, weights and compilation counted; {os.environ.get('OMP_NUM_THREADS', '?')} threads on "
        f"{machine()}.",
        "CPU time includes helper processes; load is the machine's average, of other work, too.",
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        + ", ".join(
            f"{name} {version(name)}" for name in ("torch-fidelity", "pytorch-fid", "clean-fid", "openvino")
        )
        + ". Made by `python benchmarks/evaluation.py speed`.",
        "",
        "| tool | wall | CPU | images per CPU second | peak memory | of a helper | load | distance |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for tool, row in middle.items():
        lines.append(
            f"| {tool} | {row['wall']:.1f} s | {row['cpu']:.1f} s | {n / row['cpu']:.2f} | "
            f"{row['memory']:.0f} MiB | {row['memory_helpers']:.0f} MiB | {row['load']:.1f} | {row['value']:.4f} |"
        )
    peers = [middle[tool] for tool in TOOLS if not tool.startswith("fewstep")]
    exact = middle["torch-fidelity"]["value"]
    lines += [
        "",
        "pytorch-fid and clean-fid resize in other ways: their distances to these statistics are other numbers.",
        "",
    ]
    for tool in ("fewstep", "fewstep openvino"):
        row = middle[tool]
        share = {key: row[key] / min(peer[key] for peer in peers) for key in ("wall", "cpu")}
        met = "met" if max(share.values()) <= TARGET_SHARE else "missed"
        lines.append(
            f"- {tool}: {share['wall']:.2f} of the wall time and {share['cpu']:.2f} of the CPU time of the fastest "
            f"other tool (target {TARGET_SHARE}, {met}); distance shifted by {row['value'] - exact:+.1e} from "
            f"torch-fidelity's, where the 95 % interval is -+ {half:.2f}"
        )
    return "\n".join(lines) + "\n"


def small_net_report(images: np.ndarray, args: argparse.Namespace) -> str:
    files = ImageFiles.in_folder(write_images(args.work / f"small-{N_SMALL_NET}", images[:N_SMALL_NET]))
    reference = Statistics.from_features(extract(images[-5000:], load_extractor("effnet-lite0-p320")))
    lines = [
        "",
        f"## {N_SMALL_NET} files with the extractor effnet-lite0-p320",
        "",
        "| backend | wall | images per second | CPU | images per CPU second | distance |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    values = []
    for backend in ("torch", "openvino"):
        extractor = load_extractor("effnet-lite0-p320", backend=backend)
        before, start = cpu_seconds(), time.perf_counter()
        found = Statistics.from_features(extract(files, extractor))
        values.append(frechet(found, reference).value)
        wall, cpu = time.perf_counter() - start, cpu_seconds() - before
        lines.append(
            f"| {backend} | {wall:.1f} s | {len(files) / wall:.0f} | {cpu:.1f} s | {len(files) / cpu:.0f} | "
            f"{values[-1]:.5f} |"
        )
    half = 1.96 * spread(half_samples(found.features, reference))
    lines += ["", f"Shift {values[1] - values[0]:+.1e}; the 95 % interval is -+ {half:.2f}."]
    return "\n".join(lines) + "\n"


# --- parity ---


def parity(args: argparse.Namespace) -> str:
    without_torchvision_operators()
    accept_random_weights()
    images = load_dataset(args.data, "train").images
    path = random_weights(args.work / "inception-random.pth", images[:64])
    fake = as_tensor(images[:N_PARITY])
    fake = (
        (fake.float() * 0.9 + 10).round().to(torch.uint8)
    )  # another contrast: a distance well above the baseline
    real = as_tensor(images[N_PARITY : 2 * N_PARITY])
    rows = [*fidelity_rows(path, fake, real), *resize_rows(path, fake, real)]
    lines = [
        "# The same numbers as other programs",
        "",
        f"{N_PARITY} images against {N_PARITY}, CIFAR-10, one random Inception in all; each program extracts",
        "by itself. KID over all pairs, score in ten equal splits of one order, precision and recall with k = 3,",
        f"density and coverage with k = 5. Target: {TARGET_AGREEMENT:g} relative.",
        "Made by `python benchmarks/evaluation.py parity`.",
        "",
        "| metric | program | theirs | fewstep | relative difference | |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for metric, program, theirs, ours in rows:
        relative = abs(ours - theirs) / max(abs(theirs), 1e-12)
        met = "met" if relative <= TARGET_AGREEMENT else "missed"
        lines.append(f"| {metric} | {program} | {theirs:.8g} | {ours:.8g} | {relative:.1e} | {met} |")
    return "\n".join(lines) + "\n"


Row = tuple[str, str, float, float]


def fidelity_rows(path: Path, fake: torch.Tensor, real: torch.Tensor) -> list[Row]:
    from prdc import compute_prdc
    from torch_fidelity import metric_isc, metric_kid, metric_prc

    net = fidelity_network(path)
    spatial: list[torch.Tensor] = []
    net.Mixed_6d.branch1x1.register_forward_hook(
        lambda _module, _inputs, output: spatial.append(output.movedim(1, -1)[..., :7].flatten(1))
    )
    with torch.inference_mode():
        found = [[net(part) for part in images.split(32)] for images in (fake, real)]
    pool = [torch.cat([part[0] for part in parts]) for parts in found]
    logits = torch.cat([part[1] for part in found[0]])
    wide = torch.cat(spatial).split(len(fake))
    ours = load_extractor("inception2015", path=path)
    x, y = features(ours, fake, real)
    u, v = features(load_extractor("inception2015-spatial", path=path), fake, real)

    options = {"kid_subsets": 1, "kid_subset_size": len(fake), "verbose": False}
    kid = metric_kid.kid_features_to_metric(*pool, **options)["kernel_inception_distance_mean"]
    order = torch.from_numpy(shuffled_rows(len(fake)))
    score = metric_isc.isc_features_to_metric(logits[order], 10, shuffle=False)
    overlap = metric_prc.prc_features_to_metric(*pool, verbose=False)
    assert ours.head is not None
    our_score, our_overlap = inception_score(ours.head.logits(x)), precision_recall(x, y)
    by_prdc = compute_prdc(pool[1].double().numpy(), pool[0].double().numpy(), nearest_k=5)
    name = "torch-fidelity"
    return [
        ("FID", name, fidelity_distance(pool), distance(x, y)),
        ("sFID", f"{name}'s network, hooked", fidelity_distance(list(wide)), distance(u, v)),
        ("KID", name, kid, mmd2(x.astype(np.float64), y.astype(np.float64))),
        ("IS", name, score["inception_score_mean"], our_score.value),
        ("IS, deviation", name, score["inception_score_std"], our_score.split_sd),
        ("precision", name, overlap["precision"], our_overlap.precision),
        ("recall", name, overlap["recall"], our_overlap.recall),
        ("density", "prdc, torch-fidelity's features", by_prdc["density"], our_overlap.density),
        ("coverage", "prdc, torch-fidelity's features", by_prdc["coverage"], our_overlap.coverage),
    ]


def resize_rows(path: Path, fake: torch.Tensor, real: torch.Tensor) -> list[Row]:
    """pytorch-fid and clean-fid, by their own resize, network and distance."""
    from cleanfid.fid import frechet_distance
    from cleanfid.resize import build_resizer
    from pytorch_fid.fid_score import calculate_frechet_distance

    half, scripted, resize = pytorch_fid_network(path), clean_fid_network(path), build_resizer("clean")

    def by_clean(images: torch.Tensor) -> torch.Tensor:
        resized = [resize(image.permute(1, 2, 0).numpy()).transpose(2, 0, 1) for image in images]
        return scripted(torch.from_numpy(np.stack(resized)))

    with torch.inference_mode():
        halves = [
            torch.cat([half(part.float() / 255)[0].flatten(1) for part in images.split(32)]).numpy()
            for images in (fake, real)
        ]
        cleans = [torch.cat([by_clean(part) for part in images.split(32)]).numpy() for images in (fake, real)]
    rows = []
    for metric, name, program, theirs in (
        ("FID-pytorchfid", "halfpixel", "pytorch-fid", halves),
        ("cleanFID", "clean", "clean-fid", cleans),
    ):
        ours = features(load_extractor(f"inception2015-{name}", path=path), fake, real)
        # Their matrix root of fewer images than features is off, or has an imaginary part and is refused: the
        # distance of all features is torch-fidelity's, their own is asked of as many as the images determine.
        whole = fidelity_distance([torch.from_numpy(side) for side in theirs])
        rows.append((metric, f"{program}'s features, torch-fidelity's distance", whole, distance(*ours)))
        few = [side[:, :N_FEW].astype(np.float64) for side in theirs]
        moments = [moment for side in few for moment in (side.mean(0), np.cov(side, rowvar=False))]
        own = float((frechet_distance if program == "clean-fid" else calculate_frechet_distance)(*moments))
        rows.append(
            (f"{metric}, first {N_FEW} features", program, own, distance(*(x[:, :N_FEW] for x in ours)))
        )
    return rows


def fidelity_distance(sides: list[torch.Tensor]) -> float:
    from torch_fidelity import metric_fid

    both = [metric_fid.fid_features_to_statistics(side) for side in sides]
    return float(metric_fid.fid_statistics_to_metric(*both, False)["frechet_inception_distance"])


def features(extractor: Extractor, *sets: torch.Tensor) -> list[np.ndarray]:
    return [extract(images, extractor) for images in sets]


def distance(x: np.ndarray, y: np.ndarray) -> float:
    return frechet(Statistics.from_features(x), Statistics.from_features(y)).value


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    if sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2], *map(Path, sys.argv[3:6]))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["parity", "speed"])
    parser.add_argument("--data", type=Path, required=True, help="packed dataset of colour images")
    parser.add_argument("--work", type=Path, default=Path("/tmp/fewstep-evaluation"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, default=1000, help="files of the speed comparison")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    name, text = ("evaluation_parity", parity(args)) if args.what == "parity" else ("evaluation", speed(args))
    with atomic_file(RESULTS / f"{name}.md") as path:
        path.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    process.set_up()
    main()
