"""Images per second of `fewstep.data.prepare` against EDM's dataset_tool.py, on the same files, in one run.

    git clone https://github.com/NVlabs/edm /somewhere/edm     # code under CC BY-NC-SA 4.0: never copied here
    python benchmarks/data_preparation.py --peer /somewhere/edm --images /data/cifar10-jpeg.tar.xz

The images come from any archive or folder that `fewstep prepare folder` reads. They are written once as JPEG
files, at their own size and enlarged to 256 x 256; both tools then read these very files, in turn, each in a
fresh process whose start counts. What they wrote is compared pixel by pixel. The table goes to --out.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from fewstep.data import prepare
from fewstep.data.packed import load_dataset

OURS = """
import sys
from fewstep.data import prepare
source, out, size, workers = sys.argv[1:]
prepare("folder", out, source=source, size=int(size) or None, test_fraction=0.0, workers=int(workers))
"""


@dataclass(frozen=True)
class Case:
    name: str
    n: int
    side: int  # of the JPEG files
    size: int  # asked of both tools, 0 for own size


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", type=Path, required=True, help="a checkout of github.com/NVlabs/edm")
    parser.add_argument("--images", type=Path, required=True, help="archive or folder of images")
    parser.add_argument("--n", type=int, default=10_000, help="images of the small case; half of it enlarged")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "data_preparation.md")
    options = parser.parse_args()
    if not (options.peer / "dataset_tool.py").is_file():
        parser.error(f"{options.peer} has no dataset_tool.py; git clone https://github.com/NVlabs/edm there")
    with tempfile.TemporaryDirectory() as folder:
        rows = run(options, Path(folder))
    text = table(rows, options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)
    print(text)


def run(options: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    manifest = prepare(
        "folder", folder / "packed", source=options.images, limit=options.n, workers=options.workers
    )
    own = manifest["shape"][0]
    cases = [
        Case(f"{own}x{own} JPEG, own size", options.n, own, 0),
        Case("256x256 JPEG, centre crop + Lanczos to 64", options.n // 2, 256, 64),
    ]
    return [measure(case, options, folder) for case in cases]


def measure(case: Case, options: argparse.Namespace, folder: Path) -> dict[str, object]:
    source = folder / f"jpeg-{case.side}"
    write_jpegs(folder / "packed", source, case)
    seconds: dict[str, list[float]] = {"fewstep": [], "edm": []}
    for repeat in range(options.repeats):
        ours, theirs = folder / f"ours-{case.side}-{repeat}", folder / f"edm-{case.side}-{repeat}.zip"
        command = [sys.executable, "-c", OURS, source, ours, str(case.size), str(options.workers)]
        seconds["fewstep"].append(timed(command))
        command = [sys.executable, options.peer / "dataset_tool.py", "--source", source, "--dest", theirs]
        if case.size:
            command += ["--transform=center-crop", f"--resolution={case.size}x{case.size}"]
        seconds["edm"].append(timed(command))
    differing = count_differing(ours, theirs)
    rates = {tool: case.n / min(times) for tool, times in seconds.items()}
    return {
        "case": case.name,
        "n": case.n,
        "seconds": seconds,
        "rates": rates,
        "ratio": rates["fewstep"] / rates["edm"],
        "differing": differing,
    }


def write_jpegs(packed: Path, folder: Path, case: Case) -> None:
    data = load_dataset(packed)
    for i in range(case.n):
        row = i * len(data) // case.n
        path = folder / f"class-{data.labels[row] if data.labels is not None else 0:03d}" / f"{row:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(data.images[row])
        image.resize((case.side, case.side), Image.Resampling.BICUBIC).save(path, quality=90)


def timed(command: list[object]) -> float:
    start = time.perf_counter()
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    return time.perf_counter() - start


def count_differing(ours: Path, theirs: Path) -> int:
    """Images whose pixels or labels are not the same in both outputs."""
    data = load_dataset(ours)
    differing = 0
    with zipfile.ZipFile(theirs) as archive:
        labels = json.loads(archive.read("dataset.json"))["labels"]
        assert len(labels) == len(data)
        for row, (name, label) in enumerate(labels):
            same = np.array_equal(np.asarray(Image.open(archive.open(name))), data.images[row])
            differing += not (same and label == data.labels[row])
    return differing


def table(rows: list[dict[str, object]], options: argparse.Namespace) -> str:
    commit = subprocess.run(["git", "-C", options.peer, "rev-parse", "HEAD"], capture_output=True, text=True)
    lines = [
        "# Data preparation: fewstep against EDM's dataset_tool.py",
        "",
        f"Same files for both, alternating, fastest of {options.repeats} runs, start included; fewstep",
        f"with {options.workers} workers, EDM {commit.stdout[:12]} as published (one process). Python",
        f"{platform.python_version()}, Pillow {PIL.__version__}, {os.cpu_count()} CPU cores; "
        f"load average of the machine {os.getloadavg()[2]:.1f}.",
        "",
        "| case | images | fewstep, images/s | EDM, images/s | ratio | images that differ |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        rates = row["rates"]
        lines.append(
            f"| {row['case']} | {row['n']} | {rates['fewstep']:,.0f} | {rates['edm']:,.0f} | "
            f"{row['ratio']:.2f} | {row['differing']} |"
        )
    seconds = {row["case"]: row["seconds"] for row in rows}
    lines += ["", "Seconds of every run:", "", "```json", json.dumps(seconds, indent=1), "```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
