"""A generator from its training to a row of the leaderboard, and what its commands refuse."""

import json
from importlib import import_module

import pytest
from e2e.shell import made, refused

from fewstep.app.stages import STAGES
from fewstep.files import read_json
from fewstep.methods.ttur.stage.rates import measures as ttur_measures
from fewstep.methods.vitgan.stage import measures as vitgan_measures
from fewstep.pipeline.gan import monitor
from fewstep.pipeline.gan.comparison import read_table
from fewstep.pipeline.gan.settings import GanSettings
from fewstep.pipeline.report.results import read_results

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


# the search of two learning rates


@pytest.fixture(scope="module")
def searched(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ttur")
    words = ("ttur", "--network", "resnet", "--width", 2, "--budget", 320, "--batch-size", 16, "--trials", 10,
             "--probes", 2, "--images", 100, "--seeds", 2, "--data", study / "data", "--reference", study / "stats.npz",
             "--extractor", study / "extractor", "--out", folder / "out")  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitor, "GRACE", 1.0)  # of twenty steps nothing is to be expected
        made(*words)
    return folder, words


def test_the_best_pair_is_compared_on_fresh_seeds_and_exported(searched):
    folder, _ = searched
    record, frame = read_json(folder / "out" / "ttur.json"), read_table(folder / "out" / "trainings.csv")
    assert set(frame["arm"]) == set(record["arms"])
    assert sorted(set(frame["seed"])) == [1, 2]  # the search has seed 0
    exported = GanSettings.model_validate(json.loads((folder / "out" / "gan.json").read_text()))
    assert exported.network == "resnet"
    (folder / "ttur").symlink_to(folder / "out")
    (found,) = ttur_measures.fd_ratio(folder, of="two rates, published", to=["single rate, 1 critic step"])
    assert found.low <= found.value <= found.high


def test_the_report_shows_the_comparison_of_rates(study, searched):
    shown = import_module(STAGES["ttur"].panel).panel([searched[0] / "out"], read_results([study / "eval"]))
    assert "single rate, 5 critic steps" in shown.html
    assert set(shown.figures) == {"curves", "rates"}


def test_a_search_that_is_started_again_changes_nothing(searched):
    folder, words = searched
    before = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    made(*words)
    after = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    assert before == after


def test_a_search_without_a_network_is_refused(study, tmp_path):
    sentence = refused("ttur", "--data", study / "data", "--reference", study / "stats.npz", "--extractor",
                       study / "extractor", "--out", tmp_path / "out")  # fmt: skip
    assert "--network must name a generator" in sentence
    assert not list(tmp_path.iterdir())


# variants of a generator of transformers

VARIANTS = ("vitgan", "--network", "vitgan", "--width", 4, "--latent", 4, "--heads", 2, "--depth", 1, "--batch-size", 8,
         "--log-every", 1, "--probe-every", 2, "--lr-g", "0.001")  # fmt: skip


def test_variants_are_trained_and_measured(study, tmp_path, monkeypatch):
    monkeypatch.setattr(monitor, "GRACE", 1.0)  # of two steps nothing is to be expected
    made(*VARIANTS, "--variants", "full,relativistic", "--variant-steps", 2, "--variant-seeds", 2,
         "--variant-images", 100, "--data", study / "data", "--reference", study / "stats.npz",
         "--extractor", study / "extractor", "--out", tmp_path / "vitgan")  # fmt: skip
    (ratio,) = vitgan_measures.fd_ratio(tmp_path, of="relativistic", to=["full"])
    assert ratio.low < ratio.value < ratio.high
    shown = import_module(STAGES["vitgan"].panel).panel([tmp_path / "vitgan"], read_results([study / "eval"]))
    assert "relativistic" in shown.html
    assert set(shown.figures) == {"curves", "jacobian"}
    (growth,) = vitgan_measures.jacobian_growth(tmp_path, kind="dot")
    assert growth.low > 100


def test_variants_of_another_network_are_refused(study, tmp_path):
    sentence = refused("vitgan", "--network", "dcgan", "--variants", "full", "--data", study / "data", "--reference",
                       study / "stats.npz", "--extractor", study / "extractor", "--out", tmp_path / "out")  # fmt: skip
    assert "--network must be vitgan" in sentence
    assert not list(tmp_path.iterdir())
