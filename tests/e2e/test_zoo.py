"""Models and statistics that are named: the commands of the zoo, and others that take its names."""

import shutil

import numpy as np
import pytest
from e2e.shell import made, refused

from fewstep.interop.zoo import write_checksums, zoo_folder
from fewstep.metrics.certificate import read_certificate
from fewstep.metrics.reference import load_reference
from fewstep.pipeline.samples import read_samples
from fewstep.sampling.plan import load_plan

TINY = "cifar10-32-tiny"


@pytest.fixture(autouse=True)
def no_other_zoo(monkeypatch):
    monkeypatch.delenv("FEWSTEP_ZOO", raising=False)


def test_the_zoo_is_listed(tmp_path):
    lines = made("zoo", cwd=tmp_path).splitlines()
    (row,) = (line for line in lines if line.startswith(TINY))
    assert row.split()[1:4] == ["cifar10-jpeg", "992,643", "2,134,080"]
    assert "--reference cifar10-jpeg.effnet-lite0-p320" in lines


@pytest.mark.parametrize("name", [TINY, f"zoo/{TINY}"])
def test_a_model_tells_its_facts(name, tmp_path):
    told = dict(line.split(": ", 1) for line in made("zoo", name, cwd=tmp_path).splitlines())
    assert told["data"] == "cifar10-jpeg, 50,000 images"
    assert "model.safetensors" in told["checksums"] and "Apache-2.0" in told["licence"]


def test_an_unknown_or_damaged_model_is_one_sentence(tmp_path, monkeypatch):
    assert TINY in refused("zoo", "nope", cwd=tmp_path)
    own = shutil.copytree(zoo_folder(), tmp_path / "own")
    monkeypatch.setenv("FEWSTEP_ZOO", str(own))
    (own / TINY / "config.json").write_text((own / TINY / "config.json").read_text().replace("v", "w", 1))
    for arguments in (("zoo", TINY), ("plan", "ddim", "--model", TINY, "--nfe", 2, "--out", "p.json")):
        assert "config.json must have the sha256" in refused(*arguments, cwd=tmp_path)
    assert not (tmp_path / "p.json").exists()


def test_what_is_wrong_with_a_zoo_is_one_sentence(tmp_path, monkeypatch):
    for option in ("--out", "--statistics"):
        assert "need a NAME" in refused("zoo", option, "zz", cwd=tmp_path)
    own = shutil.copytree(zoo_folder(), tmp_path / "own")
    monkeypatch.setenv("FEWSTEP_ZOO", str(own))
    (own / TINY / "metrics.jsonl").unlink()
    write_checksums(own / TINY, licence="none")
    assert "must hold metrics.jsonl to be copied" in refused("zoo", TINY, "--out", "zz", cwd=tmp_path)
    (own / TINY / "card.json").write_text('{"data": null, "parameters": "many"}')
    assert "a number as 'parameters'" in refused("zoo", cwd=tmp_path)
    (own / TINY / "card.json").write_text('{"data": null}')
    assert TINY in made("zoo", cwd=tmp_path)
    write_checksums(own / TINY, licence="none")
    assert "data: " not in made("zoo", TINY, cwd=tmp_path)
    monkeypatch.setenv("FEWSTEP_ZOO", "gone")
    assert "$FEWSTEP_ZOO must be a folder" in refused("zoo", cwd=tmp_path)
    assert not (tmp_path / "zz").exists()


def test_training_does_not_start_from_damaged_weights(study, tmp_path, monkeypatch):
    own = shutil.copytree(zoo_folder(), tmp_path / "own")
    monkeypatch.setenv("FEWSTEP_ZOO", str(own))
    (own / TINY / "model.safetensors").write_bytes(b"")
    start = (
        "train",
        "--data",
        study / "data",
        "--out",
        "m",
        "--checkpoints",
        "c",
        "--channels",
        8,
        "--start",
    )
    for named in (TINY, own / TINY):
        assert "model.safetensors must have the sha256" in refused(*start, named, cwd=tmp_path)


def test_named_models_are_sampled_and_recorded_where_they_stand(tmp_path):
    made("plan", "ddim", "--model", TINY, "--nfe", 2, "--out", "plan.json", cwd=tmp_path)
    made("sample", TINY, "plan.json", "--seeds", "0-1", "--out", "named.npz", cwd=tmp_path)
    made("sample", zoo_folder() / TINY, "plan.json", "--seeds", "0-1", "--out", "path.npz", cwd=tmp_path)
    named, path = read_samples(tmp_path / "named.npz"), read_samples(tmp_path / "path.npz")
    assert np.array_equal(named.images, path.images)
    assert named.meta["files"]["model"] == path.meta["files"]["model"]
    model = named.meta["files"]["model"]
    assert (tmp_path / model["path"]).samefile(zoo_folder() / TINY)
    assert set(model["sha256"]) == {"model.safetensors", "config.json"}, (
        "checksums, cards and plans are no inputs"
    )


def test_a_name_goes_wherever_a_model_goes(tmp_path):
    """Past the model: each command stops at what comes after it."""
    plan = ("--plan", "plan.json", "--out", "out")
    made("plan", "ddim", "--model", TINY, "--nfe", 2, "--out", "plan.json", cwd=tmp_path)
    made("plans", "--model", TINY, "--nfe", 2, "--presets", "ddim", "--out", "plans", cwd=tmp_path)
    assert "takes no condition" in refused(
        "teacher", "--model", TINY, "--guidance", 2, "--out", "t.npz", cwd=tmp_path
    )
    assert "width" in refused("stepaware", "--model", TINY, *plan, cwd=tmp_path)
    for command in (
        ("align", "--model", TINY, *plan),
        ("search", "--model", TINY, "--nfe", 2, "--out", "out"),
    ):
        sentence = refused(*command, "--reference", "imagenet", cwd=tmp_path)
        assert "imagenet must exist" in sentence and "cifar10-jpeg.effnet-lite0-p320" in sentence


def test_plans_that_a_model_brings_go_where_the_known_ones_go(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_ZOO", str(shutil.copytree(zoo_folder(), tmp_path / "own")))
    made("zoo", TINY, "--out", "model", cwd=tmp_path)
    ours = {file.name: load_plan(file).nfe for file in (tmp_path / "model" / "plans").glob("*.json")}
    assert ours and "plans: " in made("zoo", TINY, cwd=tmp_path)
    name, nfe = next(iter(ours.items()))
    write = ("plans", "--nfe", nfe, "--presets", "ddim", "--grids", "uniform-t", "--out", "plans")
    for model in (TINY, "model"):
        made(*write, "--model", model, cwd=tmp_path)
        written = {file.name for file in (tmp_path / "plans").iterdir()}
        assert written == {f"ddim.uniform-t.to-zero.nfe{nfe}.json"} | {n for n, k in ours.items() if k == nfe}
    other = tmp_path / "model" / "plans" / name
    other.write_text(other.read_text().replace(load_plan(other).fingerprint, "0" * 64))
    assert "for the model with fingerprint 0000" in refused(*write, "--model", "model", cwd=tmp_path)


def test_compact_statistics_measure_distances(study, tmp_path):
    samples = next((study / "samples").glob("ddim*.npz"))
    made("stats", study / "data", "--extractor", study / "extractor", "--compact",
         "--out", tmp_path / "small.npz")  # fmt: skip
    small, full = tmp_path / "small.npz", study / "stats.npz"
    assert small.stat().st_size < full.stat().st_size / 10
    assert set(load_reference(small).baselines) == {500, 1000, 2000, 5000, 10_000, 50_000}
    evaluate = ("evaluate", samples, "--extractor", study / "extractor", "--resamples", 20)
    sentence = refused(*evaluate, "--reference", small, "--out", tmp_path / "c.json")
    assert "features" in sentence
    values = []
    for reference in (small, full):
        made(*evaluate, "--metrics", "fd", "--reference", reference, "--out", tmp_path / "c.json")
        values.append(next(iter(read_certificate(tmp_path / "c.json")["results"].values()))["value"])
    # moments in float32 are off by 6e-8 of themselves
    assert values[0] == pytest.approx(values[1], rel=1e-5)
