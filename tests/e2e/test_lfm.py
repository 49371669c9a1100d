"""Masks and maps through the commands, and what is measured of models of latents."""

import json

import numpy as np
import pytest
import torch
from e2e.shell import made, refused
from e2e.test_latents import AUTOENCODER
from PIL import Image

from fewstep.data.conditions import load_conditions
from fewstep.data.packed import load_dataset
from fewstep.methods.lfm.stage import measures
from fewstep.methods.lfm.stage.panel import panel
from fewstep.methods.lfm.stage.run import read_record

TRAIN = ("--steps", 12, "--warmup", 2, "--channels", 8, "--batch-size", 32, "--schedule", "flow", "--prediction", "u",
         "--ema-decay", 0.5, "--label-dropout", 0.1)  # fmt: skip
SMALL = ("--images", 24, "--nfe", "1,3", "--guided-nfe", 3, "--guidances", "1,2", "--resamples", 10,
         "--dopri5", "false")  # fmt: skip


@pytest.fixture(scope="module")
def folder(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lfm")
    made("autoencoder", "--data", study / "data", "--out", "ae", "--checkpoints", "ck", "--factor", 2, *AUTOENCODER,
         cwd=folder)  # fmt: skip
    made("latents", "--data", study / "data", "--autoencoder", "ae", "--out", "latents", cwd=folder)
    for kind in ("mask", "map"):
        made("maps", "--data", study / "data", "--autoencoder", "ae", "--kind", kind, "--per-image", 2, "--out", kind,
             cwd=folder)  # fmt: skip
        made("train", "--data", "latents", "--autoencoder", "ae", "--conditions", f"{kind}/train", "--out",
             f"of-{kind}", "--checkpoints", f"ck-{kind}", *TRAIN, cwd=folder)  # fmt: skip
    made("train", "--data", "latents", "--autoencoder", "ae", "--class-conditional", "true", "--out", "of-class",
         "--checkpoints", "ck-class", *TRAIN, cwd=folder)  # fmt: skip
    return folder


def measured(study, folder, model, out, *more):
    made("lfm", "--model", folder / model, "--data", study / "data", "--reference", study / "stats.npz", "--extractor",
         study / "extractor", "--out", out, *SMALL, *more)  # fmt: skip
    return read_record(out)


def test_rows_of_training_are_blocks_of_its_images(study, folder):
    data = load_dataset(study / "data", "train")
    rows = {part: load_conditions(folder / "mask" / part) for part in ("train", "search", "report")}
    assert len(rows["train"]) == 2 * len(data)
    assert len(rows["search"]) + len(rows["report"]) == len(load_dataset(study / "data", "test"))
    assert {name: tuple(value.shape[1:]) for name, value in rows["train"].values.items()} == {
        "known": (4, 4, 4),
        "mask": (1, 4, 4),
    }
    with np.load(folder / "mask" / "train.npz") as archive:
        images, masks = archive["image"], archive["pixels"]
    assert images[: len(data)].tolist() == images[len(data) :].tolist() == list(range(len(data)))
    assert not np.array_equal(masks[: len(data)], masks[len(data) :]), "each image has several masks"
    small = torch.from_numpy(masks[:, ::2, ::2].astype(np.float32)) * 2 - 1
    assert torch.equal(rows["train"].values["mask"][:, 0].float(), small)


def test_maps_are_of_the_classes_of_their_images(study, folder):
    rows = load_conditions(folder / "map" / "report").values["map"]
    with np.load(folder / "map" / "report.npz") as archive:
        labels = load_dataset(study / "data", "test").labels[archive["image"]]
        assert set(archive["pixels"][0].flatten()) == {0, 1 + labels[0]}
    assert rows.shape[1:] == (11, 4, 4) and torch.allclose(rows.sum(1).float(), torch.ones(len(rows), 4, 4))
    made("maps", "--data", study / "data", "--kind", "map", "--encoder", "frozen", "--out", folder / "frozen")
    frozen = load_conditions(folder / "frozen" / "report").values["map"]
    assert frozen.shape[1:] == (4, 8, 8)


def test_inpainting_keeps_what_is_known(study, folder, tmp_path):
    report = ("--maps", folder / "mask", "--conditions", folder / "mask" / "report")
    record = measured(study, folder, "of-mask", tmp_path / "lfm", *report)
    mask = record["mask"]
    assert mask["real"]["hole_mse"] == 0 and 0 < mask["filled"]["hole_mse"] < 4 and 0 < mask["hole"] < 0.6
    with Image.open(tmp_path / "lfm" / "mask.png") as shown:
        picture = np.array(shown)
    assert picture.shape == (5 * 8, 12 * 8)
    real, fills = picture[:8], picture[16:].reshape(3, 8, 96)
    with np.load(folder / "mask" / "report.npz") as archive:
        first = 1_800_000_000 % len(archive["pixels"])
        known = np.concatenate(list(archive["pixels"][first : first + 12]), axis=1) == 0
    assert all(np.array_equal(fill[known], real[known]) for fill in fills)
    assert not np.array_equal(fills[0], fills[1]) and np.all(picture[8:16][~known] == 128)
    assert "Latent flow matching" in panel([tmp_path / "lfm"], None).title
    assert measures.right_class_of_holes(tmp_path)[0].n == 24


def test_maps_and_classes_are_measured(study, folder, tmp_path):
    report = ("--maps", folder / "map", "--conditions", folder / "map" / "report")
    record = measured(study, folder, "of-map", tmp_path / "maps" / "lfm", *report)
    assert 0 <= record["map"]["overlap"]["value"] <= 1 and record["map"]["accuracy"]["value"] <= 1
    assert [row["nfe"] for row in record["results"]] == [1, 3, 3, 3]
    (overlap,) = measures.overlap_of_maps(tmp_path / "maps")
    assert overlap.low <= overlap.value <= overlap.high
    bound = ("--latents", folder / "latents", "--bound-images", 12, "--batch-size", 12)
    record = measured(study, folder, "of-class", tmp_path / "lfm", *bound)
    pieces = record["bound"]
    assert pieces["bound"] > pieces["wasserstein2"] > 0
    assert pieces["bound"] == pytest.approx(
        pieces["reconstruction"]
        + pieces["decoder"] ** 2 * np.exp(1 + 2 * pieces["velocity"]) * pieces["excess"]
    )
    shown = panel([tmp_path / "lfm"], None)
    assert shown.figures.keys() == {"steps", "guidance"} and "bound on W2" in shown.html
    assert measures.fd_of_steps(tmp_path, nfe=3, to=1)[0].value == pytest.approx(
        record["results"][1]["value"] / record["results"][0]["value"]
    )
    assert measures.fd_of_guidance(tmp_path, guidance=2, to=1) and measures.accuracy(tmp_path, nfe=3)


def test_mistakes_are_one_sentence(study, folder, tmp_path):
    maps = ("maps", "--data", study / "data", "--out", tmp_path / "m")
    assert "--kind must be mask or map" in refused(*maps)
    lfm = ("lfm", "--data", study / "data", "--reference", study / "stats.npz", "--extractor", study / "extractor",
           "--out", tmp_path / "l")  # fmt: skip
    assert "needs --conditions" in refused(*lfm, "--model", folder / "of-mask", *SMALL)
    assert "at least 8" in refused(*lfm, "--model", folder / "of-class", "--images", 4)
    text = refused(*lfm, "--model", folder / "of-class", *SMALL, "--bound-images", 4)
    assert "--bound-images must be 0" in text
    (tmp_path / "l").mkdir()
    (tmp_path / "l" / "lfm.json").write_text(json.dumps({"schema": "other"}))
    with pytest.raises(ValueError, match="make it again"):
        read_record(tmp_path / "l")
