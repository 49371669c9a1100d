"""Each job of the GPU queue runs on a CPU at a tiny size, by the very code that runs on a GPU, with the core alone."""

import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.checks import ConfigError
from fewstep.data.packed import load_dataset
from fewstep.interop.load import load_model
from fewstep.nets.classifier import Classifier
from fewstep.nets.folder import save_classifier
from fewstep.sampling.plan import load_plan
from fewstep.train.classifier import train_classifier

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "benchmarks/gpu"
JOBS = ("train", "generator", "measure", "search", "core_tests", "speed")
EXTRAS = [
    "pydantic",
    "optuna",
    "pandas",
    "typer",
    "snakemake",
    "dvc",
    "mlflow",
    "rich",
    "ruamel",
    "grimp",
    "matplotlib",
    "jinja2",
    "diffusers",
    "transformers",
    "sklearn",
    "lmdb",
    "openvino",
    "onnx",
    "yaml",
]
SECONDS = 1.5


@pytest.fixture(scope="module")
def jobs():
    """The scripts, imported as when they are started."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        yield {name: importlib.import_module(name) for name in JOBS}
    finally:
        sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def place(tmp_path_factory, jobs):
    """An archive of 120 coloured images of 8 x 8 in two classes, a classifier of them, and what `train` makes."""
    place = tmp_path_factory.mktemp("gpu")
    rng = np.random.default_rng(0)
    with tarfile.open(place / "images.tar.xz", "w:xz") as archive:
        for split, n in (("train", 100), ("test", 20)):
            for i in range(n):
                pixels = rng.integers(0, 80, (8, 8, 3)) + np.array([170, 40, 0] if i % 2 else [0, 60, 150])
                file = io.BytesIO()
                Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
                member = tarfile.TarInfo(f"{split}/{'red' if i % 2 else 'blue'}/{i:04d}.png")
                member.size = file.tell()
                archive.addfile(member, io.BytesIO(file.getvalue()))
    eager = ("--trial-seconds", 0)  # compiling takes longer than all the rest: see the slow test
    run(
        jobs["train"],
        place,
        "first",
        "--model",
        "tiny",
        "--batches",
        16,
        32,
        "--images",
        200,
        *eager,
        *data(place),
    )
    return place


def data(place):
    """Of jobs that measure images. The classifier is trained once the data is packed."""
    folder = place / "extractor"
    if not folder.exists():
        from common import Lease, packed, parser, with_data

        source = [
            "--out",
            str(place / "x"),
            "--work",
            str(place / "work"),
            "--data",
            str(place / "images.tar.xz"),
        ]
        options = with_data(parser("")).parse_args([*source, "--name", "toy", "--device", "cpu"])
        images = load_dataset(packed(Lease.of(options, exact=True), options), "train")
        net = Classifier(3, 8, 2)
        state = train_classifier(images, net, steps=12, batch_size=32, lr=3e-3, seed=0)
        save_classifier(folder, state.nets["net"], shape=images.shape, name="toy", card={})
    return ("--data", place / "images.tar.xz", "--name", "toy", "--extractor", folder)


def run(job, place, out, *arguments, seconds=SECONDS):
    """What a job writes, by name; never more than comes back from a lease."""
    common = ("--seconds", seconds, "--device", "cpu", "--work", place / "work", "--out", place / out)
    job.main([str(argument) for argument in (*common, *arguments)])
    files = {file.name: file for file in (place / out).iterdir()}
    assert all(file.is_file() for file in files.values())
    assert len(files) <= 8 and all(file.stat().st_size <= 2**24 for file in files.values())
    return files


def came_back(out, name):
    """A model folder, unpacked from its pieces."""
    with tarfile.open(
        fileobj=io.BytesIO(b"".join(p.read_bytes() for p in sorted(out.glob(f"{name}.tar*"))))
    ) as archive:
        archive.extractall(out.parent / "back", filter="data")
    return out.parent / "back" / name


def test_training_makes_a_model_that_loads_and_says_how_it_was_made(place):
    folder = place / "first"
    assert {file.name for file in folder.iterdir()} == {"tiny.tar", "samples.png", "measured.json"}
    model = came_back(folder, "tiny")
    card = json.loads((model / "card.json").read_text())
    assert card["steps"] >= 1 and card["images_seen"] == card["steps"] * card["settings"]["batch_size"]
    assert {row["batch"] for row in card["trial"]} == {16, 32} and card["settings"]["precision"] == "bf16"
    assert all(row["difference"] < 0.03 for row in card["trial"] if "difference" in row)
    assert load_model(model).prediction == "v"
    with Image.open(folder / "samples.png") as grid:
        assert grid.size == (64, 64)
    (result,) = json.loads((folder / "measured.json").read_text())["results"].values()
    assert result["interval"][0] < result["value"] < result["interval"][1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_training_compiled_where_that_is_faster(place, jobs, tmp_path):
    shutil.copytree(place / "work/data", tmp_path / "work/data")
    files = run(jobs["train"], tmp_path, "out", "--model", "tiny", "--batches", 16, *data(place), seconds=90)
    assert "tiny.tar" in files
    rows = json.loads((came_back(tmp_path / "out", "tiny") / "card.json").read_text())["trial"]
    assert [row["compiled"] for row in rows] == [False, True]
    assert rows[1]["difference"] < 0.03 and rows[1]["images_per_second"] > 0


def test_training_goes_on_where_it_was_ended(place, jobs, tmp_path, monkeypatch):
    shutil.copytree(place / "work/data", tmp_path / "work/data")
    arguments = (
        "--model",
        "tiny-slim-cond",
        "--batches",
        8,
        "--images",
        32,
        "--trial-seconds",
        0,
        *data(place),
    )

    def interrupted(*_, **__):
        def steps(numbers):
            for number in numbers:
                if number == 0:
                    os.kill(os.getpid(), signal.SIGINT)
                yield number

        return steps

    monkeypatch.setattr(jobs["train"], "track", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(jobs["train"], tmp_path, "out", *arguments)
    monkeypatch.undo()
    way = json.loads((tmp_path / "work/tiny-slim-cond.way.json").read_text())
    assert (tmp_path / "work/tiny-slim-cond.checkpoints/step-00000001").is_dir()
    begun = []
    monkeypatch.setattr(
        jobs["train"], "track", lambda *_, **__: lambda steps: (begun.append(k) or k for k in steps)
    )
    run(jobs["train"], tmp_path, "out", *arguments)
    model = came_back(tmp_path / "out", "tiny-slim-cond")
    card = json.loads((model / "card.json").read_text())
    assert json.loads((tmp_path / "work/tiny-slim-cond.way.json").read_text()) == way
    assert [row["compiled"] for row in card["trial"]] == [False]  # the trial was not made again
    loaded = load_model(model)
    assert len(loaded.widths) == 2 and loaded.conditions is not None
    assert begun[0] == 1 and card["steps"] in (len(begun), 1 + len(begun))  # the last may come too late


def test_flows_on_latents_hold_their_autoencoder(place, jobs, tmp_path):
    shutil.copytree(place / "work/data", tmp_path / "work/data")
    arguments = ("--model", "tiny-lfm", "--batches", 16, "--images", 32, "--trial-seconds", 0, *data(place))
    run(jobs["train"], tmp_path, "out", *arguments)
    model = load_model(came_back(tmp_path / "out", "tiny-lfm"))
    assert model.shape == (4, 4, 4) and model.image_shape == (3, 8, 8) and model.prediction == "u"


def test_objectives_of_papers_train_a_model_of_theirs(place, jobs, tmp_path):
    shutil.copytree(place / "work/data", tmp_path / "work/data")
    arguments = ("--batches", 16, "--images", 32, "--trial-seconds", 0, *data(place))
    of_tiny = ("--start", place / "work/tiny")
    run(jobs["train"], tmp_path, "filled", "--model", "tiny-rad", *of_tiny, *arguments)
    assert load_model(came_back(tmp_path / "filled", "tiny-rad")).pixel_times
    run(jobs["train"], tmp_path, "patches", "--model", "tiny-patches", *arguments)
    assert load_model(came_back(tmp_path / "patches", "tiny-patches")).net.tile == 4
    with pytest.raises(ConfigError, match="--start must be the folder of tiny"):
        run(jobs["train"], tmp_path, "none", "--model", "tiny-rad", *arguments)


def test_a_generator_is_a_model_of_one_call(place, jobs, tmp_path):
    shutil.copytree(place / "work/data", tmp_path / "work/data")
    arguments = ("--model", "tiny", "--batch", 8, "--images", 40, *data(place))
    files = run(jobs["generator"], tmp_path, "out", *arguments)
    assert load_model(came_back(tmp_path / "out", "tiny")).most_calls == 1
    assert load_plan(files["vitgan.nfe1.json"]).nfe == 1
    (result,) = json.loads(files["measured.json"].read_text())["results"].values()
    assert result["value"] > 0


def test_all_samplers_are_measured_and_none_twice(place, jobs):
    few = ("--presets", "ddim", "unipc-2", "ddpm", "--nfe", 3, 5, "--images", 60, "--batch", 32)
    arguments = ("--model", place / "work/tiny", *few, *data(place), "--dtype", "bfloat16")
    files = run(jobs["measure"], place, "measured", *arguments, seconds=20)
    rows = json.loads(files["measured.json"].read_text())["rows"]
    assert len(rows) == 10  # ddpm's own grid is uniform-t
    assert {row["nfe"] for row in rows} == {3, 5} and len({row["hash"] for row in rows}) == len(rows)
    before = (place / "work/measured.jsonl").read_bytes()
    run(jobs["measure"], place, "measured", *arguments, seconds=20)
    assert (place / "work/measured.jsonl").read_bytes() == before


def test_a_search_is_not_worse_than_where_it_starts_and_resumes(place, jobs):
    sizes = ("--images", 24, "--gradient-images", 24, "--noises", 16, "--teacher-nfe", 12, "--batch", 24)

    def searched(*nfe):
        arguments = ("--model", place / "work/tiny", "--nfe", *nfe, *sizes, *data(place))
        return run(jobs["search"], place, "searched", *arguments)

    (first,) = json.loads(searched(3)["search.json"].read_text())["searches"]
    names = {finalist["name"] for finalist in first["finalists"]}
    assert first["ratio_to_known"] <= 1 and {"polished.trajectory", "polished.frechet"} <= names
    assert first["finalists"][0]["fd"] == min(finalist["fd"] for finalist in first["finalists"])
    files = searched(3, 4)
    assert json.loads(files["search.json"].read_text())["searches"][0] == first
    plans = [load_plan(files[f"searched.nfe{nfe}.json"]) for nfe in (3, 4)]
    assert [plan.nfe for plan in plans] == [3, 4]
    assert {plan.fingerprint for plan in plans} == {load_model(place / "work/tiny").fingerprint}


SPEED = ("--model", "tiny", "--batch", 4, "--steps", 2, "--heun-steps", 3, "--repeats", 2, "--images", 80)


def test_speeds_are_of_the_same_results(place, jobs):
    few = ("--eager", "--no-diffusers")
    files = run(jobs["speed"], place, "speed", *SPEED, *few, "--extractor", data(place)[-1], seconds=60)
    found = json.loads(files["speed.json"].read_text())
    assert found["not_measured"] == [] and found["peers_left_out"] == ["diffusers"]
    for name in ("loop alone", "with the network"):
        # float32 against EDM's float64
        assert found["sampling"][name]["difference"] < 1e-4 and found["sampling"][name]["ratio"] > 0
    distances = found["evaluation"]["distances"]
    assert distances["ours"] == pytest.approx(distances["edm"], rel=1e-3)
    assert 0 < found["training"]["ours"][0]["mfu"] < 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of diffusers, about numpy 2
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_speeds_beside_diffusers_and_compiled(place, jobs, tmp_path):
    pytest.importorskip("diffusers")
    files = run(jobs["speed"], tmp_path, "speed", *SPEED, "--extractor", data(place)[-1], seconds=300)
    found = json.loads(files["speed.json"].read_text())
    assert found["sampling"]["diffusers"]["difference"] < 1e-4
    assert found["training"]["ours"][2]["images_per_second"] > 0
    assert found["training"]["diffusers"]["theirs"] > 0


def test_the_tests_of_the_core_are_run_and_counted(place, jobs):
    files = run(jobs["core_tests"], place, "tests", "--only", "tests/unit/test_rng.py", seconds=60)
    found = json.loads(files["core-tests.json"].read_text())
    assert found["status"] == 0 and found["tests"] > 0 and found["failures"] == found["errors"] == 0
    assert all((ROOT / path).exists() for path in jobs["core_tests"].core_tests())


def test_the_core_is_enough():
    blocked = (
        "import sys, importlib.abc\n"
        "class Blocked(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name.split('.')[0] in {EXTRAS!r}: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        f"sys.path.insert(0, {str(SCRIPTS)!r})\n"
        f"import {', '.join(JOBS)}\n"
    )
    source = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, env=source)
    assert done.returncode == 0, done.stderr


def test_the_user_is_told_in_one_sentence(tmp_path, jobs, monkeypatch, capsys):
    import common

    arguments = ("--out", tmp_path / "out", "--work", tmp_path / "work", "--device", "cpu")
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        common.run(jobs["train"].main)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("train.py: --data must name an archive")


def test_large_files_come_back_in_pieces(tmp_path, jobs, monkeypatch):
    import common

    monkeypatch.setattr(common, "MOST_BYTES", 10)
    (tmp_path / "big").write_bytes(bytes(range(25)))
    lease = common.Lease(1.0, "cpu", tmp_path, tmp_path / "out")
    lease.out.mkdir()
    common.bring_back(lease, [tmp_path / "big"])
    pieces = sorted(lease.out.iterdir())
    assert [len(piece.read_bytes()) for piece in pieces] == [10, 10, 5]
    assert b"".join(piece.read_bytes() for piece in pieces) == bytes(range(25))


def test_a_grid_of_images(tmp_path, jobs):
    import common

    images = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 3, 2, 2) * 60
    common.save_grid(tmp_path / "grid.png", images)
    with Image.open(tmp_path / "grid.png") as grid:
        assert (
            grid.size == (4, 4)
            and grid.getpixel((3, 0)) == (60, 60, 60)
            and grid.getpixel((0, 3)) == (120,) * 3
        )
