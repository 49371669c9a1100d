import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from fewstep.checks import ConfigError, DataError
from fewstep.metrics import evaluate as module
from fewstep.metrics.baseline import SEED, real_baseline
from fewstep.metrics.evaluate import (
    METRICS,
    evaluate_samples,
    metric_name,
    require_measurable,
)
from fewstep.metrics.extractor import Extractor, Head
from fewstep.metrics.frechet import frechet
from fewstep.metrics.inception_score import inception_score
from fewstep.metrics.precision_recall import precision_recall
from fewstep.metrics.reference import Reference, from_features
from fewstep.metrics.statistics import Statistics
from fewstep.metrics.uncertainty import extrapolate
from fewstep.rng import generator

D = 16
DATASET = {"name": "toy", "fingerprint": "f" * 64, "split": "train", "heldout_split": "test"}


def extractor(name="toy-net", resize="none", dtype="float32"):
    return Extractor(name, D, resize, "a" * 64, lambda x: x.float().flatten(1)[:, :D], dtype=dtype)


def draw(n, seed, gain=1.0):
    return (gain * np.random.default_rng(seed).standard_normal((n, D))).astype(np.float32)


@pytest.fixture(scope="module")
def reference():
    return from_features(draw(600, 0), extractor().protocol, dataset=DATASET, heldout=draw(450, 1))


@pytest.mark.parametrize(
    "metric, name, resize, dtype, n, expected",
    [
        ("FD", "effnet-lite0-p320", "128/bicubic-aa", "float32", 5000,
         "FD-effnet-lite0-p320@128/bicubic-aa#5k"),
        ("KID", "effnet-lite0-p320", "128/bicubic-aa", "bfloat16", 2500,
         "KID-effnet-lite0-p320@128/bicubic-aa/bfloat16#2.5k"),
        ("FD", "digits-cnn-01234567", "none", "float32", 1000, "FD-digits-cnn-01234567#1k"),
        ("FD", "inception2015", "299/bilinear-tf1", "float32", 50_000, "FID-inception2015#50k"),
        ("FD", "inception2015", "299/bilinear-tf1", "float32", 1000, "FD-inception2015@299/bilinear-tf1#1k"),
        ("FD", "inception2015", "299/bilinear-tf1", "float32/openvino", 50_000,
         "FID-inception2015/float32/openvino#50k"),
        ("FDinf", "inception2015", "299/bilinear-tf1", "float32", 50_000, "FIDinf-inception2015#50k"),
        ("FDinf", "toy", "none", "float32", 500, "FDinf-toy#500"),
        ("FD", "inception2015-spatial", "299/bilinear-tf1", "float32", 50_000, "sFID-inception2015#50k"),
        ("FD", "inception2015-clean", "299/bicubic-aa", "float32", 10_000, "cleanFID#10k"),
        ("FDinf", "inception2015-clean", "299/bicubic-aa", "float32", 10_000, "cleanFIDinf#10k"),
        ("FD", "inception2015-halfpixel", "299/bilinear", "float32", 10_000, "FID-pytorchfid#10k"),
        ("FD", "inception2015-halfpixel", "299/bilinear", "float32", 4095,
         "FD-inception2015-halfpixel@299/bilinear#4095"),
        ("IS", "inception2015", "299/bilinear-tf1", "float32", 50_000,
         "IS-inception2015@299/bilinear-tf1#50k"),
        ("IS", "digits-cnn-01234567", "none", "float32", 1000, "ES-digits-cnn-01234567#1k"),
        ("memorisation", "toy", "none", "float32", 64, "memorisation-toy#64"),
        ("FD", "toy", "none", "float32", 64, "FD-toy#64"),
        ("FD", "toy", "none", "float32", 2048, "FD-toy#2048"),
    ],
)  # fmt: skip
def test_names(metric, name, resize, dtype, n, expected):
    assert metric_name(metric, extractor(name, resize, dtype), n) == expected


def test_results_of_features(reference):
    fake = draw(200, 2, 1.2)
    results = evaluate_samples(fake, reference, extractor())
    assert list(results) == [
        "FD-toy-net#200",
        "KID-toy-net#200",
        "precision-toy-net#200",
        "recall-toy-net#200",
    ]
    found = results["FD-toy-net#200"]
    assert found["value"] == frechet(Statistics.from_features(fake), reference.statistics).value
    assert found["value"] == pytest.approx(found["mean_term"] + found["trace_term"])
    for record in results.values():
        assert record["interval"][0] <= record["value"] <= record["interval"][1]
        assert record["level"] == 0.95
    assert found["baseline"] < found["value"]
    assert json.loads(json.dumps(results)) == results


def test_images_and_their_features_give_the_same(reference):
    images = torch.randint(
        0, 256, (60, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    features = images.float().flatten(1).numpy()
    nhwc = images.permute(0, 2, 3, 1).numpy()
    expected = evaluate_samples(features, reference, extractor())
    assert evaluate_samples(images, reference, extractor()) == expected
    assert evaluate_samples(nhwc, reference, extractor()) == expected


def test_chosen_metrics_level_and_resamples(reference):
    fake = draw(100, 3)
    results = evaluate_samples(fake, reference, extractor(), metrics=["fd"], level=0.5, resamples=12, seed=4)
    (found,) = results.values()
    assert len(found["replicates"]) == 12 and found["resample_seed"] == 4
    wide = evaluate_samples(fake, reference, extractor(), metrics=["fd"], level=0.99, resamples=12, seed=4)
    (other,) = wide.values()
    assert other["interval"][0] <= found["interval"][0] < found["interval"][1] < other["interval"][1]


def test_what_cannot_be_is_refused(reference):
    fake = draw(100, 3)
    with pytest.raises(ConfigError, match="lpips"):
        evaluate_samples(fake, reference, extractor(), metrics=["fd", "lpips"])
    with pytest.raises(ConfigError, match="none"):
        evaluate_samples(fake, reference, extractor(), metrics=[])
    with pytest.raises(ConfigError, match="extractor with logits"):
        evaluate_samples(fake, reference, extractor(), metrics=["is"])
    with pytest.raises(DataError, match="more than 64 images"):
        evaluate_samples(draw(64, 3), reference, extractor(), metrics=["inf"])
    without = Reference(reference.statistics, None, reference.meta)
    with pytest.raises(ConfigError, match="held-out images"):
        evaluate_samples(fake, without, extractor(), metrics=["mem"])
    with pytest.raises(ConfigError, match="toy-net.*other"):
        evaluate_samples(fake, reference, extractor("other"))
    with pytest.raises(DataError, match="row 7"):
        evaluate_samples(np.where(np.arange(100)[:, None] == 7, np.nan, fake), reference, extractor())
    bare = Reference(Statistics(600, reference.statistics.mu, reference.statistics.cov), None, reference.meta)
    for name in ("kid", "pr", "dc", "mem"):
        with pytest.raises(ConfigError, match="keeps its features"):
            evaluate_samples(fake, bare, extractor(), metrics=[name])
    (found,) = evaluate_samples(fake, bare, extractor(), metrics=["fd"]).values()
    assert found["baseline"] is None


def test_baseline_of_enough_held_out_images(reference):
    found = real_baseline(reference, 100)
    assert found.source == "4 sets of 100 images of the test split"
    direct = [
        frechet(Statistics.from_features(draw(100, seed)), reference.statistics).value
        for seed in range(50, 70)
    ]
    assert found.value == pytest.approx(np.mean(direct), rel=0.2)
    assert real_baseline(reference, 100) is found, "kept for the next set of samples"


def test_baseline_of_halves_predicts_that_of_fresh_images():
    """Neither 500 held-out nor 1000 reference images: halves of 600, scaled; 15 % for the draws."""
    scarce = from_features(draw(600, 0), extractor().protocol, dataset=DATASET, heldout=draw(20, 1))
    found = real_baseline(scarce, 500)
    assert found.source.startswith("300 against 300 images of the train split, scaled by 0.5")
    fresh = [
        frechet(
            Statistics.from_features(draw(500, seed)), Statistics.from_features(draw(600, 100 + seed))
        ).value
        for seed in range(50, 70)
    ]
    assert found.value == pytest.approx(np.mean(fresh), rel=0.15)


def test_neighbourhoods_have_equal_sizes(reference, monkeypatch):
    sizes = []

    def spy(fake, real):
        sizes.append((len(fake), len(real)))
        return module_precision_recall(fake, real)

    module_precision_recall = module.precision_recall
    monkeypatch.setattr(module, "precision_recall", spy)
    evaluate_samples(draw(100, 3), reference, extractor(), metrics=["pr"])
    evaluate_samples(draw(700, 3), reference, extractor(), metrics=["pr"])
    monkeypatch.setattr(module, "_LARGEST_NEIGHBOURHOOD", 50)
    results = evaluate_samples(draw(700, 3), reference, extractor(), metrics=["pr"])
    assert sizes == [(100, 100), (600, 600), (50, 50)]
    assert results["precision-toy-net#700"]["n"] == 50


def test_kid_does_not_depend_on_the_unit_of_the_features():
    def value(unit):
        reference = from_features(unit * draw(300, 0), extractor().protocol, dataset=DATASET)
        (found,) = evaluate_samples(
            unit * draw(100, 1, 1.5), reference, extractor(), metrics=["kid"]
        ).values()
        return found["value"]

    assert value(100.0) == pytest.approx(value(1.0), rel=1e-3)


def with_head():
    rng = np.random.default_rng(7)
    head = Head(rng.standard_normal((5, D)).astype(np.float32), rng.standard_normal(5).astype(np.float32))
    return replace(extractor(), head=head)


def test_every_metric_has_its_record(reference):
    """All at once, each by its own function on the same features."""
    fake, judge = draw(200, 2, 1.2), with_head()
    results = evaluate_samples(fake, reference, judge, metrics=[m for m in METRICS if m != "cmmd"])  # of CLIP
    found = {name.partition("-toy-net#200")[0]: record for name, record in results.items()}
    assert list(found) == [
        "FD", "KID", "precision", "recall", "density", "coverage", "ES", "FDinf", "memorisation",
    ]  # fmt: skip
    overlap = precision_recall(fake, reference.statistics.features[real_rows(200)])
    assert (found["density"]["value"], found["coverage"]["value"]) == (overlap.density, overlap.coverage)
    score = inception_score(judge.head.logits(fake))
    assert (found["ES"]["value"], found["ES"]["split_sd"]) == (score.value, score.split_sd)
    at_infinity = extrapolate(fake, reference.statistics)
    assert found["FDinf"]["value"] == at_infinity.value < found["FD"]["value"]
    assert (found["FDinf"]["slope"], found["FDinf"]["r2"]) == (at_infinity.slope, at_infinity.r2)
    assert np.std(found["KID"]["replicates"], ddof=1) == pytest.approx(
        (found["KID"]["interval"][1] - found["KID"]["value"]) / 1.959964, rel=1e-6
    )
    for record in results.values():
        assert record["interval"][0] <= record["value"] <= record["interval"][1]
        assert record["level"] == 0.95 and record["interval_method"]
    assert json.loads(json.dumps(results)) == results


def real_rows(n):
    """The rows of the reference that are compared, as `evaluate` draws them."""
    order = torch.randperm(600, generator=generator(SEED, "real", 600))
    return np.sort(order[:n].numpy())


def test_copies_of_training_images_are_reported(reference):
    """As many as are held out are looked among: 450 of 600, so that three in four copies are seen."""
    copies = reference.statistics.features[:400]
    (record,) = evaluate_samples(copies, reference, extractor(), metrics=["mem"]).values()
    # the other quarter is even: .75 + .25 / 2, four standard deviations of the draw of 450
    assert record["value"] == pytest.approx(0.875, abs=4 * (0.75 * 0.25 / 400) ** 0.5)
    assert record["n"] == 450 and record["median_ratio"] < 1e-3
    (record,) = evaluate_samples(draw(400, 9), reference, extractor(), metrics=["mem"]).values()
    assert record["interval"][0] < 0.5 < record["interval"][1]


def test_training_images_are_those_of_the_training_split_whichever_is_the_reference(reference):
    copies = reference.statistics.features[:400]
    (usual,) = evaluate_samples(copies, reference, extractor(), metrics=["mem"]).values()
    swapped = from_features(
        reference.heldout,
        extractor().protocol,
        dataset={**DATASET, "split": "test", "heldout_split": "train"},
        heldout=reference.statistics.features,
    )
    (found,) = evaluate_samples(copies, swapped, extractor(), metrics=["mem"]).values()
    # the same 450 held-out images, and another draw of 450 of the 600: four standard deviations of either
    assert found["value"] == pytest.approx(usual["value"], abs=8 * (0.75 * 0.25 / 400) ** 0.5)
    assert found["value"] > 0.75


def test_what_cannot_be_measured_is_said_before_the_work(reference):
    require_measurable(["fd", "inf"], reference, extractor(), 4 * extractor().dim + 4)
    with pytest.raises(DataError, match="infinitely many"):
        require_measurable(["fd", "inf"], reference, extractor(), 4 * extractor().dim)


def test_metrics_that_are_left_out_cost_nothing(reference, monkeypatch):
    for name in ("half_samples", "precision_recall", "kid", "frechet"):
        monkeypatch.setattr(module, name, None)
    (name,) = evaluate_samples(draw(200, 2), reference, with_head(), metrics=["is"])
    assert name == "ES-toy-net#200"
