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

from fewstep import process
from fewstep.data.packed import load_dataset
from fewstep.data.prepare import prepare

OURS = """
import sys
from fewstep import process
from fewstep.data.prepare import prepare
process.set_up()
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
    runs: dict[str, list[tuple[float, float]]] = {"fewstep": [], "fewstep, 1 process": [], "edm": []}
    for repeat in range(options.repeats):
        for workers, tool in ((options.workers, "fewstep"), (1, "fewstep, 1 process")):
            ours = folder / f"ours-{case.side}-{repeat}-{workers}"
            runs[tool].append(timed([sys.executable, "-c", OURS, source, ours, case.size, workers]))
        theirs = folder / f"edm-{case.side}-{repeat}.zip"
        command = [sys.executable, options.peer / "dataset_tool.py", "--source", source, "--dest", theirs]
        if case.size:
            command += ["--transform=center-crop", f"--resolution={case.size}x{case.size}"]
        runs["edm"].append(timed(command))
    wall = {tool: min(seconds for seconds, _ in pairs) for tool, pairs in runs.items()}
    cpu = {tool: min(seconds for _, seconds in pairs) for tool, pairs in runs.items()}
    return {
        "case": case.name,
        "n": case.n,
        "runs": runs,
        "rates": {tool: case.n / seconds for tool, seconds in wall.items()},
        "ratio": wall["edm"] / wall["fewstep"],
        "cpu": {tool: 1000 * cpu[tool] / case.n for tool in ("fewstep, 1 process", "edm")},
        "differing": count_differing(ours, theirs),
    }


def write_jpegs(packed: Path, folder: Path, case: Case) -> None:
    data = load_dataset(packed)
    for i in range(case.n):
        row = i * len(data) // case.n
        path = folder / f"class-{data.labels[row] if data.labels is not None else 0:03d}" / f"{row:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(data.images[row])
        image.resize((case.side, case.side), Image.Resampling.BICUBIC).save(path, quality=90)


def timed(command: list[object]) -> tuple[float, float]:
    """Wall and CPU seconds; the latter without the pool, whose processes outlive the call by a moment."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return wall, usage.ru_utime + usage.ru_stime


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
        "| case | images | fewstep, images/s | EDM, images/s | ratio "
        "| fewstep, CPU ms/image | EDM, CPU ms/image | images that differ |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rates, cpu = row["rates"], row["cpu"]
        lines.append(
            f"| {row['case']} | {row['n']} | {rates['fewstep']:,.0f} | {rates['edm']:,.0f} | "
            f"{row['ratio']:.2f} | {cpu['fewstep, 1 process']:.2f} | {cpu['edm']:.2f} | {row['differing']} |"
        )
    lines += [
        "",
        "CPU time is that of one process on either side; it depends little on what else runs.",
        "",
        "Wall and CPU seconds of every run:",
        "",
        "```json",
        json.dumps({row["case"]: row["runs"] for row in rows}),
        "```",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    process.set_up()
    main()
