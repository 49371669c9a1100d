"""The commands as a user types them, from digits to a report, and the mistakes that users make."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from e2e.shell import COMMAND, fewstep, made, refused

from fewstep.metrics.certificate import content_sha256
from fewstep.pipeline.samples import read_samples


def test_the_study_ends_in_a_report_and_a_leaderboard(study):
    page = (study / "report/index.html").read_text()
    assert "unipc-2" in page
    assert "ddim" in page
    board = made("leaderboard", "eval", cwd=study)
    assert "unipc-2" in board
    certificate = json.loads(next((study / "eval").glob("ddim*.json")).read_text())
    assert certificate["protocol"]["n"] == 60
    assert certificate["costs"]["network_calls"] == 4


def test_an_image_depends_on_its_seed_alone(study, tmp_path):
    plan = next((study / "plans").glob("unipc-2*.json"))
    made("sample", study / "model", plan, "--seeds", "30-49", "--batch-size", 7, "--out", tmp_path / "s.npz")
    part = read_samples(tmp_path / "s.npz")
    whole = read_samples(study / "samples" / f"{plan.stem}.npz")
    assert part.seeds.tolist() == list(range(30, 50))
    # another batch size may round a value on the border between two levels the other way
    difference = np.abs(part.images.astype(int) - whole.images[30:50].astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_the_same_command_gives_the_same_images(study, tmp_path):
    plan = next((study / "plans").glob("ddim*.json"))
    made("sample", study / "model", plan, "--seeds", "0-59", "--out", tmp_path / "s.npz")
    again, first = read_samples(tmp_path / "s.npz"), read_samples(study / "samples" / f"{plan.stem}.npz")
    assert np.array_equal(again.images, first.images)


def edited(source, target, change, *, signed=False):
    document = json.loads(source.read_text())
    change(document)
    if signed:
        document["sha256"] = content_sha256(document)
    target.write_text(json.dumps(document))
    return target


def _wrong(case, study, tmp):
    """The arguments of a mistaken command, and words that its one sentence must hold."""
    plan = next((study / "plans").glob("ddim*.json"))
    samples = study / "samples" / f"{plan.stem}.npz"
    sample = ("sample", study / "model")
    match case:
        case "missing dataset":
            return ("train", "--data", tmp / "no", "--out", tmp / "m", "--checkpoints", tmp / "c"), (
                "no",
                "must",
            )
        case "truncated dataset":
            shutil.copytree(study / "data", tmp / "data")
            images = (tmp / "data/images.npy").read_bytes()
            (tmp / "data/images.npy").write_bytes(images[: len(images) // 2])
            return ("train", "--data", tmp / "data", "--out", tmp / "m", "--checkpoints", tmp / "c"), (
                "images.npy",
            )
        case "unknown dataset":
            return ("prepare", "cifar11", "--out", tmp / "d"), ("cifar10", "cifar11")
        case "unknown preset":
            return ("plan", "euler", "--model", study / "model", "--nfe", 4, "--out", tmp / "p.json"), (
                "ddim",
                "euler",
            )
        case "impossible nfe":
            return ("plan", "heun", "--model", study / "model", "--nfe", 4, "--out", tmp / "p.json"), (
                "odd",
                "4",
            )
        case "unknown grid":
            return (
                (
                    "plan",
                    "ddim",
                    "--model",
                    study / "model",
                    "--nfe",
                    4,
                    "--grid",
                    "log",
                    "--out",
                    tmp / "p.json",
                ),
                ("uniform-lambda", "log"),
            )
        case "plan of another schedule":
            other = edited(
                plan, tmp / "p.json", lambda d: d.update(noise_schedule={"type": "cosine", "s": 0.008})
            )
            return (*sample, other, "--out", tmp / "s.npz"), ("schedule",)
        case "plan of another model":
            other = edited(plan, tmp / "p.json", lambda d: d["model"].update(fingerprint="ab" * 32))
            return (*sample, other, "--out", tmp / "s.npz"), ("fingerprint", "abab")
        case "plan with a typo":
            other = edited(plan, tmp / "p.json", lambda d: d["nodes"][0].update(tt=1))
            return (*sample, other, "--out", tmp / "s.npz"), ("tt",)
        case "truncated plan":
            (tmp / "p.json").write_text(plan.read_text()[:100])
            return (*sample, tmp / "p.json", "--out", tmp / "s.npz"), ("p.json", "damaged")
        case "bad seeds":
            return (*sample, plan, "--seeds", "9-3", "--out", tmp / "s.npz"), ("--seeds", "9-3")
        case "no model":
            return ("sample", study / "data", plan, "--out", tmp / "s.npz"), ("config.json",)
        case "truncated weights":
            shutil.copytree(study / "model", tmp / "model")
            weights = (tmp / "model/model.safetensors").read_bytes()
            (tmp / "model/model.safetensors").write_bytes(weights[:1000])
            return ("sample", tmp / "model", plan, "--out", tmp / "s.npz"), ("model.safetensors",)
        case "statistics of another extractor":
            return (
                ("evaluate", samples, "--reference", study / "stats.npz", "--extractor", "effnet-lite0-p320",
                 "--out", tmp / "c.json"),
                ("effnet-lite0-p320", "digits-cnn"),
            )  # fmt: skip
        case "images of another shape":
            made("prepare", "digits", "--size", 16, "--out", tmp / "data")
            return ("stats", tmp / "data", "--extractor", study / "extractor", "--out", tmp / "s.npz"), (
                "8",
                "16",
            )
        case "damaged samples":
            (tmp / "s.npz").write_bytes(samples.read_bytes()[:2000])
            return (
                ("evaluate", tmp / "s.npz", "--reference", study / "stats.npz", "--extractor", study / "extractor",
                 "--out", tmp / "c.json"),
                ("s.npz", "damaged"),
            )  # fmt: skip
        case "official weights missing":
            return ("stats", study / "data", "--extractor", "inception2015", "--out", tmp / "s.npz"), (
                "effnet",
            )
        case "foreign certificate":
            (tmp / "c.json").write_text('{"fid": 3}')
            return ("leaderboard", tmp / "c.json"), ("c.json", "certificate")
        case "mixed protocols":
            mine = next((study / "eval").glob("ddim*.json"))
            edited(mine, tmp / "c.json", lambda d: d["protocol"].update(n=61), signed=True)
            return ("leaderboard", tmp / "c.json", next((study / "eval").glob("unipc*.json"))), ("n",)
        case "setting out of range":
            return (
                (
                    "train",
                    "--data",
                    study / "data",
                    "--out",
                    tmp / "m",
                    "--checkpoints",
                    tmp / "c",
                    "--lr",
                    "-1",
                ),
                ("--lr", "-1"),
            )
        case "checkpoint of other settings":
            return (
                (
                    "train",
                    "--data",
                    study / "data",
                    "--out",
                    tmp / "m",
                    "--checkpoints",
                    study / "ck",
                    "--steps",
                    30,
                    "--warmup",
                    5,
                    "--channels",
                    8,
                    "--batch-size",
                    32,
                    "--ema-decay",
                    0.5,
                ),
                ("checkpoint", "steps"),
            )
        case "no such device":
            return (*sample, plan, "--device", "cuda:99", "--out", tmp / "s.npz"), ("cuda:99",)
    raise AssertionError(case)


@pytest.mark.parametrize(
    "case",
    [
        "missing dataset", "truncated dataset", "unknown dataset", "unknown preset", "impossible nfe", "unknown grid",
        "plan of another schedule", "plan of another model", "plan with a typo", "truncated plan", "bad seeds",
        "no model", "truncated weights", "statistics of another extractor", "images of another shape",
        "damaged samples", "official weights missing", "foreign certificate", "mixed protocols",
        "setting out of range", "checkpoint of other settings", "no such device",
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_and_leaves_nothing(case, study, tmp_path):
    arguments, words = _wrong(case, study, tmp_path)
    before = set(tmp_path.rglob("*"))
    sentence = refused(*arguments)
    assert not [word for word in words if word not in sentence], sentence
    assert set(tmp_path.rglob("*")) == before, "something half-written stayed"


def test_diverged_samples_are_refused(study, tmp_path):
    """Weights of infinity: the state is not finite, and no samples file appears."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(study / "model", tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    save_file(
        {name: value * float("inf") for name, value in weights.items()}, tmp_path / "model/model.safetensors"
    )
    plan = next((study / "plans").glob("ddim*.json"))
    done = fewstep("sample", tmp_path / "model", plan, "--out", tmp_path / "s.npz", "--seeds", "0-3")
    assert done.returncode == 2
    assert "finite" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "s.npz").exists()


def test_the_installed_command_answers():
    done = subprocess.run([COMMAND, "plan", "euler"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Missing option '--out'" in done.stderr


def test_every_command_has_help_with_an_example():
    listed = made("--help")
    names = [
        "prepare",
        "train",
        "extractor",
        "plan",
        "plans",
        "sample",
        "stats",
        "evaluate",
        "report",
        "leaderboard",
        "track",
        "teacher",
        "search",
        "export",
        "verify",
        "compare",
        "protocols",
        "detect",
        "zoo",
    ]
    for name in names:
        assert name in listed
        assert f"fewstep {name}" in made(name, "--help")
