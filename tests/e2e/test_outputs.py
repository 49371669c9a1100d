"""What commands that write folders must not do to what is there, and what interrupted work must not mix."""

import json
import shutil

from e2e.shell import made, refused

from fewstep.pipeline.samples import read_samples
from fewstep.pipeline.stage.spec import SCHEMA

NAME = "ddim.uniform-t.to-zero.nfe4"


def test_what_else_is_in_a_folder_stays_there(study, tmp_path):
    """Other plans, notes, the whole of a repository: nothing is lost to an --out that holds them."""
    keep = tmp_path / "keep"
    shutil.copytree(study / "model", keep / ".git")
    (keep / "other.json").write_text("{}")
    (keep / "spec.json").write_text('{"of": "something else"}')
    made("plans", "--model", study / "model", "--nfe", 3, "--out", keep, "--presets", "ddim")
    made("plans", "--model", study / "model", "--nfe", 4, "--out", keep, "--presets", "ddim")
    held = {path.name for path in keep.iterdir()}
    assert {".git", "other.json", "spec.json", "ddim.uniform-t.to-zero.nfe3.json", f"{NAME}.json"} <= held
    assert (keep / ".git/model.safetensors").exists()


def test_results_that_a_command_changed_are_no_longer_those_of_the_run(study, tmp_path):
    (tmp_path / "spec.json").write_text(json.dumps({"schema": SCHEMA}))
    made("plans", "--model", study / "model", "--nfe", 4, "--out", tmp_path, "--presets", "ddim")
    assert (tmp_path / f"{NAME}.json").exists()
    assert not (tmp_path / "spec.json").exists()


def test_a_file_is_no_folder_and_a_folder_no_file(study, tmp_path):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "taken.json").mkdir()
    plans = ("--model", study / "model", "--nfe", 4)
    assert "must be a folder or new" in refused("plans", *plans, "--out", tmp_path / "file")
    for out, must in (
        ("taken.json", f"{tmp_path / 'taken.json'} must be a file or new"),
        ("file/plan.json", f"Writing at {tmp_path / 'file'}"),
    ):
        assert must in refused("plan", "ddim", *plans, "--out", tmp_path / out)
    assert (tmp_path / "file").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken.json"]


def test_inputs_of_one_name_do_not_overwrite_each_other(study, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(study / "samples", tmp_path / name / "run.1", ignore=shutil.ignore_patterns("unipc*"))
    files = [tmp_path / name / "run.1" / f"{NAME}.npz" for name in ("a", "b")]
    measure = (
        "--reference",
        study / "stats.npz",
        "--extractor",
        study / "extractor",
        "--out",
        tmp_path / "e",
    )
    assert f"are both {NAME}" in refused("evaluate", *files, *measure)
    plans = [
        shutil.copytree(study / "plans", tmp_path / name / "plans") / f"{NAME}.json" for name in ("a", "b")
    ]
    assert f"are both {NAME}" in refused(
        "sample", study / "model", *plans, "--seeds", "0-9", "--out", tmp_path / "s"
    )


def test_parts_of_another_network_are_not_gone_on_with(study, tmp_path):
    """The weights are the same; what they predict is not."""
    model = shutil.copytree(study / "model", tmp_path / "model")
    draw = ("sample", model, study / f"plans/{NAME}.json", "--seeds", "0-4099", "--batch-size", 512)
    made(*draw, "--shard", "1/2", "--out", tmp_path / "s.npz")
    config = json.loads((model / "config.json").read_text())
    config["prediction"] = "v" if config["prediction"] == "eps" else "eps"
    (model / "config.json").write_text(json.dumps(config))
    made(*draw, "--out", tmp_path / "s.npz")
    made(*draw, "--out", tmp_path / "once.npz")
    assert read_samples(tmp_path / "s.npz").sha256 == read_samples(tmp_path / "once.npz").sha256
