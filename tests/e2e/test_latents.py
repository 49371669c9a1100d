"""A model of latents through the commands: autoencoder, latents, train, sample, evaluate."""

import json
import shutil

import numpy as np
import pytest
import torch
from e2e.shell import made, refused

from fewstep.data.latents import load_latents
from fewstep.data.packed import load_dataset
from fewstep.data.pixels import to_u8, to_unit
from fewstep.interop.autoencoder import load_autoencoder
from fewstep.interop.load import load_model
from fewstep.pipeline.samples import read_samples

AUTOENCODER = ("--steps", 30, "--channels", 8, "--batch-size", 32)
TRAIN = ("--steps", 10, "--warmup", 2, "--channels", 8, "--batch-size", 32, "--schedule", "flow", "--prediction", "u",
         "--class-conditional", "true")  # fmt: skip


@pytest.fixture(scope="module")
def folder(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    made("autoencoder", "--data", study / "data", "--out", "ae", "--checkpoints", "ck", "--factor", 2, *AUTOENCODER,
         cwd=folder)  # fmt: skip
    made("latents", "--data", study / "data", "--autoencoder", "ae", "--out", "latents", cwd=folder)
    train = ("train", "--data", "latents", "--autoencoder", "ae", *TRAIN)
    made(*train, "--out", "model", "--checkpoints", "ck-model", "--label-dropout", 0.1, cwd=folder)
    made(
        *train,
        "--network",
        "transformer",
        "--depth",
        1,
        "--out",
        "dit",
        "--checkpoints",
        "ck-dit",
        cwd=folder,
    )
    made("plan", "ddim", "--model", "model", "--nfe", 3, "--out", "plan.json", cwd=folder)
    return folder


def test_latents_are_those_of_the_images_whatever_the_batch(study, folder, tmp_path):
    latents, dataset = load_latents(folder / "latents", "test"), load_dataset(study / "data", "test")
    assert latents.shape == (4, 4, 4) and np.array_equal(latents.labels, dataset.labels)
    assert latents.of_images == dataset.fingerprint
    autoencoder = load_autoencoder(folder / "ae")
    found = latents.batch(range(40))
    means = autoencoder.encode(to_unit(dataset.batch(range(40))), torch.zeros(40, 4, 4, 4))
    assert (
        0 < float((found - means).square().mean()) < 0.5
    )  # posteriors are narrower than all latents together
    made("latents", "--data", study / "data", "--autoencoder", folder / "ae", "--batch-size", 77, "--out",
         tmp_path / "l")  # fmt: skip
    again = load_latents(tmp_path / "l", "test").batch(range(40))
    assert torch.allclose(again, found, atol=2e-2)  # float16, after sums in another order
    made("latents", "--data", study / "data", "--autoencoder", folder / "ae", "--seed", 5000, "--out",
         tmp_path / "m")  # fmt: skip
    assert not torch.allclose(load_latents(tmp_path / "m", "test").batch(range(40)), found, atol=0.1)


@pytest.mark.parametrize("name", ["model", "dit"])
def test_model_stands_alone_and_samples_images(study, folder, name, tmp_path):
    shutil.copytree(folder / name, tmp_path / "moved")
    made("plan", "ddim", "--model", tmp_path / "moved", "--nfe", 3, "--out", tmp_path / "plan.json")
    out = tmp_path / "samples.npz"
    made("sample", tmp_path / "moved", tmp_path / "plan.json", "--seeds", "0-19", "--out", out)
    assert read_samples(out).images.shape == (20, 8, 8, 1)
    model = load_model(tmp_path / "moved")
    assert model.shape == (4, 4, 4) and model.image_shape == (1, 8, 8) and model.decode is not None
    decoded = to_u8(model.decode(load_latents(folder / "latents", "test").batch(range(50))))
    off = decoded.float() - load_dataset(study / "data", "test").batch(range(50)).float()
    assert float(off.square().mean()) < 0.5 * float(load_dataset(study / "data", "test").images.var())


def test_fingerprint_follows_the_decoder(folder, tmp_path):
    shutil.copytree(folder / "model", tmp_path / "m")
    config = tmp_path / "m" / "autoencoder" / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "scale": 2 * content["scale"]}))
    one, other = load_model(folder / "model"), load_model(tmp_path / "m")
    assert one.fingerprint != other.fingerprint
    config.write_text(json.dumps(content))
    assert load_model(tmp_path / "m").fingerprint == one.fingerprint


def test_guidance_needs_a_null_condition_that_was_trained(folder, tmp_path):
    sample = ("--seeds", "0-3", "--guidance", 2.0, "--out", tmp_path / "s.npz")
    made("plan", "ddim", "--model", folder / "dit", "--nfe", 2, "--out", tmp_path / "plan.json")
    assert "has no null condition" in refused("sample", folder / "dit", tmp_path / "plan.json", *sample)
    made("sample", folder / "model", folder / "plan.json", *sample)


def test_mistakes_are_one_sentence(study, folder, tmp_path):
    new = ("--out", tmp_path / "x", "--checkpoints", tmp_path / "ck")
    latents, autoencoder = ("--data", folder / "latents"), ("--autoencoder", folder / "ae")
    assert "--autoencoder must name the folder of digits-vae2" in refused("train", *latents, *new, *TRAIN)
    made("autoencoder", "--data", study / "data", "--factor", 2, *AUTOENCODER, "--seed", 1, "--out", tmp_path / "other",
         "--checkpoints", tmp_path / "ck-other")  # fmt: skip
    text = refused("train", *latents, "--autoencoder", tmp_path / "other", *new, *TRAIN)
    assert "--autoencoder must be digits-vae2 of fingerprint" in text
    assert "--flip must be false for latents" in refused(
        "train", *latents, *autoencoder, "--flip", "true", *new, *TRAIN
    )
    assert "which are no latents" in refused("train", "--data", study / "data", *autoencoder, *new, *TRAIN)
    assert "a power of two" in refused("autoencoder", "--data", study / "data", "--factor", 3, *new)
    assert "must divide the sides" in refused("autoencoder", "--data", study / "data", "--factor", 16, *new)
    assert "widths" in refused(
        "train", "--data", study / "data", *new, "--network", "transformer", "--widths", "1,0.5"
    )
    # commands of images refuse latents
    assert "fewstep.latents/1" in refused("extractor", *latents, "--out", tmp_path / "e")
