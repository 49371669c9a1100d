"""Datasets without a test split."""

import json

import numpy as np
import pytest
from e2e.shell import made, refused
from PIL import Image

from fewstep.metrics.reference import load_reference


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset of train and val, and one of train alone, of 8 x 8 pixels in two classes."""
    folder = tmp_path_factory.mktemp("splits")
    rng = np.random.default_rng(0)
    for split, n in (("train", 12), ("val", 8)):
        for label in ("cat", "dog"):
            place = folder / "raw" / split / label
            place.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(place / f"{i}.png")
    made("prepare", "folder", "--source", "raw", "--workers", 1, "--out", "data", cwd=folder)
    made(
        "prepare",
        "folder",
        "--source",
        "raw/train",
        "--test-fraction",
        0,
        "--workers",
        1,
        "--out",
        "all",
        cwd=folder,
    )
    return folder


def test_valid_serves_where_there_is_no_test(folder):
    said = made(
        "extractor", "--data", "data", "--out", "extractor", "--steps", 2, "--batch-size", 8, cwd=folder
    )
    assert "of the valid images right" in said
    card = json.loads((folder / "extractor" / "card.json").read_text())
    assert 0 <= card["valid_accuracy"] <= 1
    measure = ("stats", "data", "--extractor", "extractor")
    made(*measure, "--out", "stats.npz", cwd=folder)
    reference = load_reference(folder / "stats.npz")
    assert reference.heldout is not None and len(reference.heldout) == 16
    assert reference.meta["dataset"]["heldout_split"] == "valid"
    made(*measure, "--split", "valid", "--out", "valid.npz", cwd=folder)
    reference = load_reference(folder / "valid.npz")
    assert reference.meta["n"] == 16 and reference.meta["dataset"]["heldout_split"] == "train"
    assert "must be one of train, valid in data, got 'test'" in refused(
        *measure, "--split", "test", "--out", "test.npz", cwd=folder
    )


def test_an_extractor_without_images_to_judge_it_by_is_refused_before_training(folder):
    sentence = refused("extractor", "--data", "all", "--out", "never", "--steps", 10**9, cwd=folder)
    assert "all has no test or valid split; prepare it with test_fraction above 0" in sentence
