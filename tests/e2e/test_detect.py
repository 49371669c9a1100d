"""From samples to what a detector can tell of them, and to the section of the report."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from e2e.shell import made, refused

from fewstep.data.packed import load_dataset
from fewstep.methods.multilid.stage.panel import panel
from fewstep.methods.multilid.stage.record import NULL, POOLED, PUBLISHED, read_detection
from fewstep.pipeline.report.results import read_results
from fewstep.pipeline.samples import Samples, files_in, read_samples, write_samples

SMALL = ("--images", 50, "--bank", 20, "--k", 5, "--classifiers", "logistic")


@pytest.fixture(scope="module")
def detected(study, tmp_path_factory):
    """Samples of a model that has hardly been trained, which anybody can tell."""
    out = tmp_path_factory.mktemp("detected") / "detection"
    said = made("detect", study / "samples", "--data", study / "data", "--features", study / "extractor", *SMALL,
                "--out", out)  # fmt: skip
    return out, said


def test_bad_images_stand_out_from_the_null_control(detected):
    out, said = detected
    found = read_detection(out)
    rows = found.headline()
    assert len(rows) == 2
    assert (
        rows["accuracy_minus_null_low"] > 0.1
    ).all()  # 20 steps of training: far above any noise of 100 images
    assert (rows["accuracy"] - rows["null_accuracy"]).tolist() == pytest.approx(
        rows["accuracy_minus_null"].tolist()
    )
    assert all(name in said for name in rows["generator"])
    assert f"{100 * rows['accuracy'].iloc[0]:.1f}" in said


def test_the_record_names_what_numbers_depend_on(detected, study):
    out, _ = detected
    record = json.loads((out / "detection.json").read_text())
    dataset, files = load_dataset(study / "data"), files_in([study / "samples"], ".npz")
    assert record["schema"] == "fewstep.detection/3"
    assert record["data"]["fingerprint"] == dataset.fingerprint
    assert [record["data"][name] for name in ("n_bank", "n_real", "n_null", "levels")] == [20, 50, 50, 17]
    assert [one["images_sha256"] for one in record["generators"]] == [read_samples(f).sha256 for f in files]
    assert [one["equal_to_bank"] for one in record["generators"]] == [0, 0]
    networks = record["protocol"]["networks"]
    assert networks[0]["id"] == record["protocol"]["headline"]["network"]
    assert len(networks[0]["weights_sha256"]) == 64
    assert networks[1]["id"] == "resnet18-random-s0"
    told = record["identification"]
    assert told["chance"] == pytest.approx(1 / 3)
    assert np.allclose(np.sum(told["confusion"], 1), 1)
    names = {one["name"] for one in record["generators"]}
    for which in ("easiest", "hardest"):
        told = record["extremes"][which]
        assert {told["name"], *told["not_distinguishable_from"]} <= names
    trained = len(load_dataset(study / "data", "train")) / len(dataset)
    assert record["data"]["trained_on"] == pytest.approx(trained)
    assert record["transfer"].keys() == {one["name"] for one in record["generators"]}


def test_every_number_has_its_null_control_and_its_baselines(detected):
    table = pd.read_parquet(detected[0] / "detection.parquet")
    keys = ["network", "features", "protocol", "classifier"]
    assert table.groupby(keys)["generator"].apply(lambda names: NULL in set(names)).all()
    assert set(table["features"]) == {"multilid+scale", "multilid", "lid", POOLED}
    assert set(table["classifier"]) == {"logistic"}
    assert set(table["protocol"][table["network"] == "resnet18-random-s0"]) == {"fair", PUBLISHED}
    for name in ("accuracy", "auroc", "tpr"):
        assert (table[f"{name}_low"] <= table[name]).all()
        assert (table[name] <= table[f"{name}_high"]).all()


def test_the_same_command_gives_the_same_bytes(detected, study, tmp_path):
    made("detect", study / "samples", "--data", study / "data", "--features", study / "extractor", *SMALL,
         "--out", tmp_path / "again")  # fmt: skip
    for name in ("detection.json", "detection.parquet"):
        assert (tmp_path / "again" / name).read_bytes() == (detected[0] / name).read_bytes()


def test_only_what_is_wanted_is_measured(study, tmp_path):
    made("detect", study / "samples", "--data", study / "data", "--features", "resnet18-random", *SMALL[:-2],
         "--classifiers", "forest,logistic", "--folds", 2, "--match", "ddim*", "--published", "false", "--scale",
         "false", "--out", tmp_path / "d")  # fmt: skip
    found = read_detection(tmp_path / "d")
    assert [one["sampler"] for one in found.record["generators"]] == ["ddim"]
    assert found.record["data"]["trained_on"] == 0
    assert set(found.table["protocol"]) == {"fair"}
    assert set(found.table["features"]) == {"multilid", "lid", POOLED}
    assert set(found.table["classifier"]) == {"logistic", "forest"}
    assert set(found.headline()["classifier"]) == {"forest"}  # the first counts


def test_images_of_the_bank_among_the_generated_are_counted(study, tmp_path):
    """All real images pretend to be generated: those that the bank holds are found again, and none is refused."""
    real = load_dataset(study / "data")
    samples = read_samples(files_in([study / "samples"], ".npz")[0])
    meta = {**samples.meta, "seeds": "0-849"}
    write_samples(
        tmp_path / "s.npz",
        Samples(np.array(real.images[: 2 * 850 : 2]), np.arange(850, dtype=np.int64), meta),
    )
    made("detect", tmp_path / "s.npz", "--data", study / "data", "--features", study / "extractor", "--images", 840,
         "--bank", 100, "--classifiers", "logistic", "--untrained", "false", "--published", "false",
         "--out", tmp_path / "d")  # fmt: skip
    record = read_detection(tmp_path / "d").record
    # 840 of 1797 images: 46.7 expected of a bank of 100, give or take 5 standard deviations of the draw
    assert 21 < record["generators"][0]["equal_to_bank"] < 72
    assert record["data"]["equal_to_bank"]["real"] == 0


def test_what_cannot_be_measured_is_one_sentence(study, tmp_path):
    given = ("--data", study / "data", "--features", study / "extractor", "--out", tmp_path / "no")
    file = files_in([study / "samples"], ".npz")[0]
    said = refused("detect", file, *given, "--images", 900, "--bank", 100)
    assert "Detection needs 1900 real images" in said
    assert "--images to at most 848" in said
    assert "has 60" in refused("detect", file, *given, "--images", 61, "--bank", 20)
    assert "must be less than bank and images" in refused("detect", file, *given, "--k", 100)
    assert "--match must fit" in refused("detect", file, *given, *SMALL, "--match", "heun*")
    shutil.copy(file, tmp_path / "copy.npz")
    assert "--folds must be at most images, 20; got 25" in refused(
        "detect", file, *given, "--images", 20, "--bank", 20, "--k", 5, "--folds", 25
    )
    assert "must differ in name" in refused("detect", file, tmp_path / "copy.npz", *given, *SMALL)
    samples = read_samples(file)
    meta = {**samples.meta, "seeds": "1-60", "plan_name": "later"}
    write_samples(tmp_path / "later.npz", Samples(np.array(samples.images), samples.seeds + 1, meta))
    said = refused("detect", file, tmp_path / "later.npz", *given, *SMALL)
    assert "same seeds" in said and "of later with 1" in said
    write_samples(
        tmp_path / "wide.npz", Samples(np.repeat(samples.images, 2, 2), samples.seeds, samples.meta)
    )
    assert "must have one form" in refused("detect", tmp_path / "wide.npz", *given, *SMALL)
    assert not (tmp_path / "no").exists()


def test_a_detection_becomes_a_section_of_the_report(detected, study):
    results = read_results(files_in([study / "eval"], ".json"))
    found = read_detection(detected[0])
    shown = panel([detected[0]], results)
    assert set(shown.figures) == {"distance", "confusion"}
    for hash_ in results.frame["plan_hash"]:
        assert f"point-accuracy-{hash_}" in shown.html
    assert all(one["name"] in shown.html for one in found.record["generators"])
    assert "images of the bank among others</dt><dd>none" in shown.html
    assert "trained on 80.2 % of all images of digits" in shown.html
