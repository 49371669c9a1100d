"""Stored conditions through the commands: train, sample, search, measure, verify."""

import json

import numpy as np
import pytest
import torch
from e2e.shell import fewstep, made, refused

from fewstep.data.conditions import save_conditions
from fewstep.data.packed import load_dataset
from fewstep.diffusion.condition import Condition
from fewstep.pipeline.samples import read_samples

TRAIN = (
    "--steps",
    12,
    "--warmup",
    2,
    "--channels",
    8,
    "--batch-size",
    32,
    "--ema-decay",
    0.5,
    "--label-dropout",
    0.1,
)


def of_images(dataset):
    """As context one token of the class, as a map the lower half of the image."""
    images = torch.from_numpy(dataset.images[:, :, :, 0] / 127.5 - 1).float()[:, None]
    images[:, :, :4] = 0
    return Condition({"context": torch.eye(10)[dataset.labels][:, None], "known": images})


@pytest.fixture(scope="module")
def folder(study, tmp_path_factory):
    """A model that is conditioned on rows, rows to search on and rows to report on."""
    folder = tmp_path_factory.mktemp("conditions")
    dataset = load_dataset(study / "data", "train")
    rows = of_images(dataset)
    save_conditions(folder / "train", rows, source={"fingerprint": dataset.fingerprint, "split": "train"})
    save_conditions(folder / "searched", rows[:40])
    save_conditions(folder / "reported", of_images(load_dataset(study / "data", "test"))[:30])
    made("train", "--data", study / "data", "--conditions", "train", "--out", "model", "--checkpoints", "ck", *TRAIN,
         "--start", study / "model", cwd=folder)  # fmt: skip
    made("plan", "ddim", "--model", "model", "--nfe", 3, "--out", "plan.json", cwd=folder)
    made("search", "--model", "model", "--conditions", "searched", "--nfe", 3, "--out", "found", "--trials", 3,
         "--noises", 16, "--trial-noises", 16, "--teacher-nfe", 10, "--polish-iterations", 0, "--guidance", 1.5,
         "--finalist-images", 16, cwd=folder)  # fmt: skip
    return folder


def test_images_and_certificate_name_the_conditions(study, folder, tmp_path):
    made("sample", folder / "model", folder / "plan.json", "--conditions", folder / "reported", "--seeds", "0-59",
         "--out", tmp_path / "s.npz")  # fmt: skip
    samples = read_samples(tmp_path / "s.npz")
    stated = json.loads((folder / "reported" / "manifest.json").read_text())
    assert samples.meta["conditions"] == {"sha256": stated["sha256"], "rows": 30}
    assert samples.meta["files"]["conditions"]["sha256"].keys() == {"conditions.safetensors", "manifest.json"}
    made("evaluate", tmp_path / "s.npz", "--reference", study / "stats.npz", "--extractor", study / "extractor",
         "--out", tmp_path / "c.json", "--resamples", 20)  # fmt: skip
    protocol = json.loads((tmp_path / "c.json").read_text())["protocol"]
    assert protocol["conditions"] == samples.meta["conditions"]
    lines = made("verify", tmp_path / "c.json", "--resample")
    assert "the same, to the byte" in lines and "conditions: conditions.safetensors" in lines
    other = fewstep("verify", tmp_path / "c.json", "--resample", "--conditions", folder / "searched")
    assert other.returncode == 1 and "holds other conditions; nothing was drawn" in other.stdout


def test_the_row_decides_the_image(folder, tmp_path):
    for name in ("reported", "searched"):
        made("sample", folder / "model", folder / "plan.json", "--conditions", folder / name, "--seeds", "0-9",
             "--out", tmp_path / f"{name}.npz")  # fmt: skip
    one, other = (read_samples(tmp_path / f"{name}.npz").images for name in ("reported", "searched"))
    assert not np.array_equal(one, other)


def test_rows_of_the_search_are_refused_for_its_report(folder, tmp_path):
    found = next((folder / "found").glob("searched.*.json"))
    used = json.loads(found.read_text())["provenance"]["conditions"]
    assert used.keys() >= {"trials", "finalists"} and used["trials"]["rows"] != [[0, 39]]
    sample = ("sample", folder / "model", found, "--seeds", "0-39", "--out", tmp_path / "s.npz")
    text = refused(*sample, "--conditions", folder / "searched")
    assert "Conditions to report on must not have been searched on" in text
    made(*sample, "--conditions", folder / "reported")
    # guided: twice the calls, as they were counted
    assert read_samples(tmp_path / "s.npz").meta["costs"]["network_calls"] == 6


def test_align_tells_images_their_conditions(study, folder, tmp_path):
    align = ("align", "--model", folder / "model", "--plan", folder / "plan.json", "--images", study / "data",
             "--objectives", "denoise", "--noises", 16, "--gate-noises", 16, "--choice-images", 16,
             "--refine-iterations", 0, "--magnitude", "false", "--out", tmp_path / "a.json")  # fmt: skip
    made(*align, "--conditions", folder / "train")
    used = json.loads((tmp_path / "a.json").read_text())["provenance"]["conditions"]
    assert used.keys() == {"align-fit", "align-gate", "align-choice"}
    assert "needs the condition of each image" in refused(*align, "--conditions", folder / "searched")


@pytest.mark.parametrize("case", ["none given", "not taken", "other form", "other count", "no map"])
def test_mistakes_are_one_sentence(case, study, folder, tmp_path):
    plan, out = folder / "plan.json", ("--out", tmp_path / "s.npz")
    train = (
        "train",
        "--data",
        study / "data",
        "--out",
        tmp_path / "m",
        "--checkpoints",
        tmp_path / "ck",
        *TRAIN,
    )
    save_conditions(tmp_path / "odd", Condition({"known": torch.zeros(2, 1, 4, 4)}))
    arguments, words = {
        "none given": (("sample", folder / "model", plan, "--seeds", "0-3", *out), "needs --conditions"),
        "not taken": (
            ("sample", study / "model", plan, "--seeds", "0-3", "--conditions", folder / "train", *out),
            "--conditions must be left out for",
        ),
        "other form": (
            ("sample", folder / "model", plan, "--seeds", "0-3", "--conditions", tmp_path / "odd", *out),
            "must have the names context, known; got known",
        ),
        "other count": ((*train, "--conditions", folder / "searched"), "one row for each image of"),
        "no map": ((*train, "--conditions", tmp_path / "odd"), "one row for each image of"),
    }[case]
    assert words in refused(*arguments)
    assert not (tmp_path / "s.npz").exists() and not (tmp_path / "m").exists()
