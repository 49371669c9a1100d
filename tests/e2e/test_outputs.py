"""What commands that write folders must not do to what is there, and what interrupted work must not mix."""

import json
import shutil

from e2e.shell import made, refused

from fewstep.pipeline.samples import read_samples

NAME = "ddim.uniform-t.to-zero.nfe4"


def test_a_folder_of_other_things_survives_a_mistaken_out(study, tmp_path):
    shutil.copytree(study / "model", tmp_path / "keep" / "model")
    measure = (
        "--reference",
        study / "stats.npz",
        "--extractor",
        study / "extractor",
        "--out",
        tmp_path / "keep",
    )
    said = refused("evaluate", study / f"samples/{NAME}.npz", *measure)
    assert "holds model, which would be deleted" in said
    assert "would be deleted" in refused(
        "sample", study / "model", study / "plans", "--seeds", "0-9", "--out", tmp_path / "keep"
    )
    assert (tmp_path / "keep/model/model.safetensors").exists()
    assert not list(tmp_path.glob(".keep*")), "and it is said before any work"


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
