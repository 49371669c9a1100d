"""Images as conditions through the commands: encode, pairs, train, variations of a user's own pictures."""

import json
import shutil

import numpy as np
import pytest
from e2e.shell import made, refused
from PIL import Image

from fewstep.data.conditions import load_conditions, read_conditions_manifest
from fewstep.data.packed import load_dataset
from fewstep.data.pairs import load_pairs
from fewstep.methods.semantica.stage import measures
from fewstep.methods.semantica.stage.panel import panel
from fewstep.methods.semantica.stage.run import read_record
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


@pytest.fixture(scope="module")
def folder(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("semantica")
    made("encode", "--data", study / "data", "--encoder", "classifier", "--heldout-classes", "8,9", "--steps", 20,
         "--out", "tokens", cwd=folder)  # fmt: skip
    for mode in ("class", "neighbours", "image"):
        made("pairs", "--data", study / "data", "--tokens", "tokens/train", "--mode", mode, "--quantiles", "0.2,0.95",
             "--out", f"by-{mode}", cwd=folder)  # fmt: skip
    made("train", "--data", study / "data", "--conditions", "tokens/train", "--pairs", "by-class", "--encoder",
         "tokens/encoder", "--out", "model", "--checkpoints", "ck", *TRAIN, cwd=folder)  # fmt: skip
    made("plan", "ddim", "--model", "model", "--nfe", 3, "--out", "plan.json", cwd=folder)
    return folder


def test_tokens_are_of_rows_that_search_and_report_do_not_share(study, folder):
    rows = {part: load_conditions(folder / "tokens" / part) for part in ("train", "search", "report")}
    assert rows["train"].values["context"].shape == (len(load_dataset(study / "data", "train")), 16, 64)
    source = {part: read_conditions_manifest(folder / "tokens" / part)["source"]["rows"] for part in rows}
    assert source["search"][1] + 1 == source["report"][0]
    assert source["report"][1] + 1 == len(load_dataset(study / "data", "test"))


@pytest.mark.parametrize("mode", ["class", "neighbours", "image"])
def test_pairs_are_audited(study, folder, mode):
    table = load_pairs(folder / f"by-{mode}")
    audit = json.loads((folder / f"by-{mode}" / "audit.json").read_text())
    labels = load_dataset(study / "data", "train").labels
    assert not set(labels[table.cond_id]) & {8, 9} and not set(labels[table.target_id]) & {8, 9}
    assert (table.cond_id == table.target_id).all() == (mode == "image")
    assert audit["same_class"] == pytest.approx((labels[table.cond_id] == labels[table.target_id]).mean())
    assert audit["pairs"] == len(table) and audit["sha256"] == table.sha256
    with Image.open(folder / f"by-{mode}" / "examples.png") as picture:
        assert picture.size == (16 * 8, 2 * 8)
    if mode == "neighbours":
        low, high = audit["similarity"]["0.0"], audit["similarity"]["1.0"]
        assert low == pytest.approx(table.similarity.min(), abs=1e-5)
        assert high == pytest.approx(table.similarity.max(), abs=1e-5) and high < 1


def test_a_users_own_pictures_are_varied(study, folder, tmp_path):
    dataset = load_dataset(study / "data", "test")
    (tmp_path / "mine").mkdir()
    for i in range(3):
        Image.fromarray(dataset.images[i, :, :, 0]).convert("RGB").resize((40 + 8 * i, 56)).save(
            tmp_path / "mine" / f"{i}.png"
        )
    shutil.copytree(folder / "model", tmp_path / "moved")  # it stands alone
    sample = ("sample", tmp_path / "moved", folder / "plan.json", "--seeds", "0-5", "--guidance", 2.0)
    made(*sample, "--conditions", tmp_path / "mine", "--out", tmp_path / "a.npz")
    found = read_samples(tmp_path / "a.npz")
    assert found.images.shape == (6, 8, 8, 1) and found.meta["conditions"]["rows"] == 3
    shutil.copy(tmp_path / "mine" / "0.png", tmp_path / "mine" / "1.png")
    made(*sample, "--conditions", tmp_path / "mine", "--out", tmp_path / "b.npz")
    same = (read_samples(tmp_path / "b.npz").images == found.images).all((1, 2, 3))
    # after 12 steps a picture moves bytes little, but those of other pictures not at all
    assert same[[0, 2, 3, 5]].all() and not same[[1, 4]].all(), "image i is of picture i modulo 3"
    (tmp_path / "none").mkdir()
    assert "must hold images" in refused(
        *sample, "--conditions", tmp_path / "none", "--out", tmp_path / "c.npz"
    )
    (tmp_path / "none" / "x.png").write_bytes(b"no image")
    assert "must be an image" in refused(
        *sample, "--conditions", tmp_path / "none", "--out", tmp_path / "c.npz"
    )


def test_variations_are_measured_and_shown(study, folder, tmp_path):
    made("semantica", "--model", folder / "model", "--data", study / "data", "--conditions",
         folder / "tokens" / "report", "--extractor", study / "extractor", "--images", 30, "--variations", 4, "--nfe",
         3, "--mixtures", 20, "--pairs", folder / "by-class", "--out", tmp_path / "semantica")  # fmt: skip
    record = read_record(tmp_path / "semantica")
    assert [(row["group"], row["guidance"]) for row in record["results"]] == [
        ("seen", 1.0),
        ("held out", 1.0),
        ("seen", 2.0),
        ("held out", 2.0),
    ]
    for row in record["results"]:
        assert 0 <= row["class_match"]["value"] <= 1 and row["diversity"]["value"] > 0
    assert record["results"][0]["images"] == 24 and record["results"][1]["images"] == 6
    shown = panel([tmp_path / "semantica"], None)
    assert "held out classes" in shown.html and "of one class" in shown.html
    (match,) = measures.class_match(tmp_path, guidance=2.0)
    assert match.low <= match.value <= match.high and match.n == 24
    assert measures.diversity(tmp_path, guidance=1.0, group="held out")[0].value > 0
    assert 0 <= measures.mixture(tmp_path, guidance=1.0)[0].value <= 1
    with Image.open(tmp_path / "semantica" / "guidance1.png") as picture:
        assert picture.size == (12 * 8, 5 * 8)


def test_mistakes_are_one_sentence(study, folder, tmp_path):
    pairs = (
        "pairs",
        "--data",
        study / "data",
        "--tokens",
        folder / "tokens" / "train",
        "--out",
        tmp_path / "p",
    )
    assert "--mode must be class" in refused(*pairs)
    table = tmp_path / "mine.csv"
    labels = load_dataset(study / "data", "train").labels
    table.write_text("cond_id,target_id\n3,3\n")
    assert "must not be its own condition" in refused(*pairs, "--mode", "table", "--source", table)
    eight = int(np.flatnonzero(labels == 8)[0])
    table.write_text(f"cond_id,target_id\n{eight},3\n")
    assert "classes that are held out" in refused(*pairs, "--mode", "table", "--source", table)
    assert "must name a table for mode table" in refused(*pairs, "--mode", "table")
    assert "below the number of images" in refused(*pairs, "--mode", "neighbours", "--neighbours", 5000)
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
    assert "--encoder must be the one that made --conditions, None" in refused(
        *train, "--encoder", folder / "tokens" / "encoder"
    )
    assert "pairs need conditions" in refused(*train, "--pairs", folder / "by-class")
    encode = ("encode", "--data", study / "data", "--out", tmp_path / "e")
    assert "--heldout-classes must be below 10" in refused(
        *encode, "--encoder", "classifier", "--heldout-classes", 12
    )
    assert "must be effnet-lite0" in refused(*encode, "--encoder", "vit")
