"""A generator from its training to a row of the leaderboard, and what its commands refuse."""

import json

import pytest
from e2e.shell import made, refused

from fewstep.files import read_json

SMALL = ("--network", "resnet", "--width", 4, "--latent", 8, "--batch-size", 16, "--lr-g", "0.01", "--log-every", 2,
         "--probe-every", 4, "--probe-images", 100)  # fmt: skip


@pytest.fixture(scope="module")
def trained(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gan")
    made("gan", *SMALL, "--steps", 8, "--data", study / "data", "--reference", study / "stats.npz", "--extractor",
         study / "extractor", "--out", folder / "gan", "--checkpoints", folder / "ck")  # fmt: skip
    made("onecall", "--model", folder / "gan", "--out", folder / "plans")
    made("sample", folder / "gan", folder / "plans", "--seeds", "0-59", "--out", folder / "samples")
    made("evaluate", folder / "samples", "--reference", study / "stats.npz", "--extractor", study / "extractor",
         "--out", folder / "eval", "--resamples", 20)  # fmt: skip
    return folder


def test_a_generator_is_a_row_beside_the_plans_of_a_model(study, trained):
    shown = made("leaderboard", study / "eval", trained / "eval", "--top", 0)
    (row,) = (line for line in shown.splitlines() if "resnet-gan" in line)
    assert row.split()[0] == "1"  # network call
    (certificate,) = (trained / "eval").glob("*.json")
    costs = read_json(certificate)["costs"]
    assert (costs["nfe"], costs["network_calls"]) == (1, 1)
    assert costs["network_ms_per_image"] > 0


def test_the_report_shows_the_training_and_the_images_of_the_generator(study, trained):
    out = trained / "report"
    made("report", study / "eval", trained / "eval", "--samples", study / "samples", "--samples", trained / "samples",
         "--panel", f"gan={trained / 'gan'}", "--model", study / "model", "--run", "tiny", "--out", out)  # fmt: skip
    page = (out / "index.html").read_text()
    assert "The generator of one call" in page and "The same seeds during training" in page
    for name in ("distance", "losses", "samples"):
        assert list((out / "figures" / "gan").glob(f"{name}.*"))


def test_the_curve_has_the_distance_of_the_samples(trained):
    rows = [json.loads(line) for line in (trained / "gan" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "fd" in row] == [4, 8]
    assert {"loss_d", "loss_g", "gap", "lr_d", "lr_g", "spread"} <= rows[-1].keys()


def test_generators_are_detected_as_a_class_of_their_own(study, trained, tmp_path):
    said = made("detect", study / "samples", trained / "samples", "--data", study / "data", "--features",
                study / "extractor", "--out", tmp_path / "detection", "--images", 50, "--bank", 20, "--k", 5,
                "--untrained", "false", "--published", "false", "--classifiers", "logistic")  # fmt: skip
    record = read_json(tmp_path / "detection" / "detection.json")
    assert "3 generators" in said
    assert {one["sampler"] for one in record["generators"]} == {"resnet-gan", "ddim", "unipc-2"}


@pytest.mark.parametrize(
    "words, sentence",
    [
        (("gan", "--steps", 8), "--network must name a generator"),
        (
            ("gan", *SMALL, "--steps", 8, "--probe-every", 5),
            "--probe-every must be a multiple of log_every, 2; got 5",
        ),
        (("gan", *SMALL, "--steps", 8, "--latent", 65), "must have 1 to 64 numbers"),
        (("gan", *SMALL, "--steps", 8, "--bcr", 1), "--bcr needs augment"),
        (("gan", "--network", "vitgan", "--patch", 3), "multiple of the patch; got 8 and 3"),
        (("gan", *SMALL, "--extractor", "effnet-lite0-p320"), "must be given together"),
    ],
)
def test_bad_settings_are_one_sentence_before_any_work(study, tmp_path, words, sentence):
    more = ("--data", study / "data", "--out", tmp_path / "gan", "--checkpoints", tmp_path / "ck")
    assert sentence in refused(*words, *more)
    assert not list(tmp_path.rglob("*"))


def test_the_plan_of_one_call_is_for_generators(study, tmp_path):
    assert "must be a generator" in refused(
        "onecall", "--model", study / "model", "--out", tmp_path / "plans"
    )
    assert not list(tmp_path.iterdir())
