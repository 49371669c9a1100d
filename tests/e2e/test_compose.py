"""From a model to several widths, to narrower and aligned plans, to the one that wins."""

import json

from e2e.shell import made, refused

from fewstep.app.stages.compose.record import read_composition
from fewstep.interop.load import load_model
from fewstep.nets.folder import WEIGHTS
from fewstep.sampling.document import save_plan
from fewstep.sampling.plan import load_plan


def test_a_model_learns_to_be_narrow_and_its_plans_are_compared(study, tmp_path):
    made("train", "--data", study / "data", "--out", "slim", "--checkpoints", "ck", "--start", study / "model",
         "--widths", "1,0.5", "--distil", 0.5, "--steps", 6, "--warmup", 2, "--channels", 8, "--batch-size", 16,
         "--ema-decay", 0.5, cwd=tmp_path)  # fmt: skip
    card = json.loads((tmp_path / "slim" / "card.json").read_text())
    assert card["started_from"] == load_model(study / "model").fingerprint
    assert load_model(tmp_path / "slim").widths == (1.0, 0.5)
    assert (tmp_path / "slim" / WEIGHTS).stat().st_size == (study / "model" / WEIGHTS).stat().st_size

    measured = ("--reference", study / "stats.npz", "--extractor", study / "extractor")
    made("plan", "unipc-2", "--model", "slim", "--nfe", 3, "--to-zero", "--out", "base.json", cwd=tmp_path)
    made("stepaware", "--model", "slim", "--plan", "base.json", *measured, "--noises", 16, "--population", 4,
         "--generations", 2, "--choice-images", 40, "--out", "narrow", cwd=tmp_path)  # fmt: skip
    made("align", "--model", "slim", "--plan", "narrow", *measured, "--images", study / "data", "--objectives",
         "trajectory", "--noises", 16, "--gate-noises", 16, "--teacher-substeps", 2, "--choice-images", 40,
         "--out", "aligned", cwd=tmp_path)  # fmt: skip
    compose = ("compose", "--model", "slim", "--plan", "base.json", "--plan", "narrow", "--plan", "aligned", *measured,
               "--images", 40, "--target-nfe", 4, "--rounds", 2)  # fmt: skip
    for out, margin in (("strict", 1e-9), ("composed", 1.0)):
        line = made(*compose, "--margin", margin, "--out", out, cwd=tmp_path)
        composition = read_composition(tmp_path / out)
        shown = composition.table["non_inferior"].iloc[1:]
        assert (composition.chosen is not None) == shown.any()
        if composition.chosen is None:
            assert "no plan was shown to be as good as" in line and composition.best["plan"] in line
        else:
            assert f"{composition.chosen['plan']} is chosen of {shown.sum()} shown to be as good as" in line
        assert composition.protocol.margin == margin
        assert composition.protocol.machine.cores >= 1 and composition.protocol.machine.used > 0
    assert (
        composition.chosen is not None
    )  # no more than twice as far, with a few images of an untrained network
    for file in (tmp_path / "composed" / "plans").glob("unipc*.w*.json"):
        plan = load_plan(file)
        assert plan.fingerprint == load_model(tmp_path / "slim").fingerprint
        assert plan.provenance["parents"]
        made("sample", "slim", file, "--seeds", "0-3", "--out", "few.npz", cwd=tmp_path)
        seeds = plan.provenance["seeds"]["compose"]
        said = refused(
            "sample", "slim", file, "--seeds", f"{seeds[0]}-{seeds[0]}", "--out", "no.npz", cwd=tmp_path
        )
        assert "must not have been searched on" in said


def test_weights_of_another_architecture_are_no_start(study, tmp_path):
    said = refused("train", "--data", study / "data", "--out", "m", "--checkpoints", "c", "--start", study / "model",
                   "--channels", 16, "--steps", 5, "--warmup", 1, cwd=tmp_path)  # fmt: skip
    assert "does not fit the architecture" in said
    assert not (tmp_path / "m").exists()


def test_widths_of_another_model_are_refused(study, tmp_path):
    made("plan", "ddim", "--model", study / "model", "--nfe", 3, "--out", "base.json", cwd=tmp_path)
    said = refused("stepaware", "--model", study / "model", "--plan", "base.json", "--out", "n", cwd=tmp_path)
    assert "width" in said
    plan = load_plan(tmp_path / "base.json").with_node(1, width=1)
    save_plan(plan, tmp_path / "narrow.json")
    said = refused(
        "sample", study / "model", "narrow.json", "--seeds", "0-3", "--out", "no.npz", cwd=tmp_path
    )
    assert "index into the model's widths" in said
