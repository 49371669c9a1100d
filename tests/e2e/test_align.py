"""`fewstep align` as a user types it: plans and what they say, and the mistakes."""

import shutil

import pytest
from e2e.shell import fewstep, made, refused

from fewstep.interop.load import load_model
from fewstep.pipeline.samples import read_samples
from fewstep.sampling.plan import load_plan

SMALL = ("--noises", 48, "--gate-noises", 48, "--teacher-substeps", 4, "--choice-images", 64,
         "--refine-iterations", 2, "--refine-images", 48)  # fmt: skip


@pytest.fixture(scope="module")
def aligned(study, tmp_path_factory):
    """Both plans of the study, by its reference, and what was said."""
    out = tmp_path_factory.mktemp("aligned") / "plans"
    done = fewstep(
        "align", "--model", "model", "--plan", "plans", "--images", "data", "--reference", "stats.npz",
        "--extractor", "extractor", "--out", out, *SMALL, cwd=study,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_a_folder_of_plans_is_aligned(study, aligned):
    out, said = aligned
    fingerprint = load_model(study / "model").fingerprint
    parents = {plan.name: plan for plan in map(load_plan, (study / "plans").glob("*nfe4.json"))}
    found = [load_plan(path) for path in sorted(out.glob("*.json"))]
    assert len(found) == len(parents) == len(said.splitlines()) == 2
    for plan in found:
        parent = parents[plan.name.removesuffix(".aligned")]
        record = plan.provenance["align"]
        assert plan.nfe == parent.nfe and record["measure"] == "fd" and len(record["candidates"]) == 5
        if plan.name.endswith(".aligned"):
            assert plan.fingerprint == fingerprint and plan.provenance["parents"] == [parent.hash]
            assert f"{plan.name}: {record['chosen']}" in said and "FD " in said
        else:
            assert plan.hash == parent.hash and f"{plan.name}: stays as it is" in said


def test_one_plan_is_aligned_to_a_file_and_sampled(study, tmp_path):
    plan = next((study / "plans").glob("ddim*.json"))
    arguments = ("--model", "model", "--plan", plan, "--objectives", "trajectory")
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    said = made("align", *arguments, "--out", first, *SMALL, cwd=study)
    made("align", *arguments, "--out", second, *SMALL, cwd=study)
    found = load_plan(first)
    assert found.hash == load_plan(second).hash
    assert said.startswith(f"{found.name}: ") and "distance to fine solutions" in said
    # a network of 20 steps of training is smooth: following its fine path more closely is easy
    assert found.name.endswith(".aligned") and found.provenance["align"]["measure"] == "error"
    made("sample", "model", first, "--seeds", "0-3", "--out", tmp_path / "s.npz", cwd=study)
    assert read_samples(tmp_path / "s.npz").meta["plan_hash"] == found.hash
    seen, _ = found.provenance["seeds"]["align-choice"]
    sentence = refused("sample", "model", first, "--seeds", f"{seen}", "--out", tmp_path / "t.npz", cwd=study)
    assert "align-choice" in sentence and not (tmp_path / "t.npz").exists()
    again = refused("align", "--model", "model", "--plan", first, "--out", second, *SMALL, cwd=study)
    assert "must not have been searched on" in again
    made("align", "--model", "model", "--plan", first, "--seed", 7, "--out", second, *SMALL, cwd=study)


def test_objectives_without_images_are_left_out_aloud(study, tmp_path):
    plan = next((study / "plans").glob("ddim*.json"))
    done = fewstep(
        "align", "--model", "model", "--plan", plan, "--out", tmp_path / "a.json", *SMALL, cwd=study
    )
    assert done.returncode == 0
    assert "left out: paper: The objective paper needs images (N, 1, 8, 8); got none" in done.stderr


def test_mistakes_are_one_sentence(study, tmp_path):
    plans = study / "plans"
    ddim, other = sorted(plans.glob("*nfe4.json"))
    base = ("align", "--model", study / "model", "--out", tmp_path / "a.json")
    assert "--out must be a folder for 2 plans" in refused(*base, "--plan", plans)
    shutil.copy(ddim, tmp_path / "same.json")
    twice = ("align", "--model", study / "model", "--out", tmp_path / "a", "--plan", ddim)
    assert "Plans must differ in name" in refused(*twice, "--plan", tmp_path / "same.json")
    assert "No objective can be used" in refused(*base, "--plan", ddim, "--objectives", "paper")
    assert "--objectives" in refused(*base, "--plan", ddim, "--objectives", "fid")
    made("prepare", "digits", "--size", 16, "--out", tmp_path / "data")
    assert "--images must have the model's shape" in refused(
        *base, "--plan", ddim, "--images", tmp_path / "data"
    )
    many = ("--noises", 1000, "--gate-noises", 1000)
    assert "There must be an image for each of the 1000 noises" in refused(
        *base, "--plan", ddim, "--images", study / "data", "--objectives", "paper", *many
    )
    assert not (tmp_path / "a.json").exists() and other.exists()
