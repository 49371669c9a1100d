"""Trainings that are kept: what is finished is read, and whoever watched is told again."""

import math

import pytest
from unit.pipeline.gan.test_monitor import Images, pixels

from fewstep.metrics.reference import from_features
from fewstep.pipeline.gan import monitor
from fewstep.pipeline.gan.comparison import Comparison, curves, table
from fewstep.pipeline.gan.monitor import Measure
from fewstep.pipeline.gan.settings import GanSettings

SETTINGS = GanSettings(
    network="resnet", width=2, latent=4, steps=4, batch_size=8, log_every=1, probe_every=2, probe_images=100
)


class Data(Images):
    """Images with what a packed dataset says of them."""

    shape = (1, 4, 4)


@pytest.fixture
def comparison(tmp_path, monkeypatch):
    monkeypatch.setattr(monitor, "GRACE", 1.0)
    extractor = pixels()
    facts = {"name": "toy", "fingerprint": "toy", "split": "train", "heldout_split": None}
    reference = from_features(Data().pixels.flatten(1).float().numpy(), extractor.protocol, dataset=facts)
    measure = Measure(extractor, reference)
    return Comparison(Data(), measure, tmp_path, 100, "cpu", 5, lambda name, *, unit: iter)


def test_a_finished_training_is_read_and_told_again(comparison):
    told, again = [], []
    first = comparison.train("arm", SETTINGS, watch=told.append)
    second = comparison.train("arm", SETTINGS, watch=again.append)
    assert len(told) == 2 and told == again
    assert first.fd == second.fd < math.inf
    assert first.curve.equals(second.curve)


def test_a_training_that_is_ended_from_outside_leaves_no_result(comparison):
    def stop(fd):
        raise KeyError("enough")

    with pytest.raises(KeyError):
        comparison.train("arm", SETTINGS, watch=stop)
    assert not list(comparison.work.glob("*.json"))


def test_a_stopped_training_is_an_outcome_with_its_reason(comparison, monkeypatch):
    monkeypatch.setattr(monitor, "GRACE", 0.0)
    monkeypatch.setattr(monitor, "LEAST_SPREAD", 1e9)
    outcomes = [comparison.train("arm", SETTINGS)]
    frame = table(outcomes)
    assert math.isinf(outcomes[0].fd) and "collapsed" in frame["stopped"][0]
    assert curves(outcomes).empty  # it was stopped before its first measurement was written


def test_curves_and_costs_follow_from_the_rows(comparison):
    one = comparison.train("arm", SETTINGS.model_copy(update={"d_steps": 2}))
    frame = curves([one])
    assert list(frame["step"]) == [2, 4]
    assert list(frame["images"]) == [32, 64] and list(frame["d_updates"]) == [4, 8]
    assert table([one])["minutes"][0] == pytest.approx(frame["minutes"].iloc[-1])
