"""The same numbers as torch-fidelity and pytorch-fid, each with its own network of the same random weights.

Run where these packages are; 1e-4 relative throughout: the convolutions sum in another order here.
"""

import warnings

import numpy as np
import pytest
import torch

from fewstep.metrics import extractor as module
from fewstep.metrics import weights
from fewstep.metrics.extractor import extract, load_extractor
from fewstep.metrics.frechet import frechet
from fewstep.metrics.inception_score import inception_score, shuffled_rows
from fewstep.metrics.kid import mmd2
from fewstep.metrics.precision_recall import precision_recall
from fewstep.metrics.statistics import Statistics

pytestmark = pytest.mark.slow
N = 24


@pytest.fixture(scope="module")
def images(smooth_images):
    return smooth_images(1, 0.8, N), smooth_images(2, 1, N)


@pytest.fixture
def ours(inception_weights, images, monkeypatch):
    """Name of an extractor -> features of both sets."""
    monkeypatch.setattr(module.weights, "INCEPTION_2015", weights.INCEPTION_2015._replace(sha256=""))

    def of(name):
        loaded = load_extractor(name, path=inception_weights)
        return loaded, *(extract(part, loaded) for part in images)

    return of


def distance(x, y):
    return frechet(Statistics.from_features(x), Statistics.from_features(y)).value


def test_numbers_of_torch_fidelity(torchvision_operators, inception_weights, images, ours):
    pytest.importorskip("torch_fidelity", exc_type=ImportError)
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    net = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(inception_weights)).eval()
    spatial = []
    net.Mixed_6d.branch1x1.register_forward_hook(lambda _module, _inputs, output: spatial.append(output))
    with torch.inference_mode():
        (fake, logits), (real, _) = (net(part) for part in images)
    loaded, x, y = ours("inception2015")
    np.testing.assert_allclose(x, fake.numpy(), rtol=0, atol=1e-4 * fake.abs().max().item())

    def theirs(*sides):
        both = [metric_fid.fid_features_to_statistics(side) for side in sides]
        return metric_fid.fid_statistics_to_metric(*both, False)["frechet_inception_distance"]

    assert distance(x, y) == pytest.approx(theirs(fake, real), rel=1e-4)
    _, u, v = ours("inception2015-spatial")
    wide = [output.movedim(1, -1)[..., :7].flatten(1) for output in spatial]
    assert distance(u, v) == pytest.approx(theirs(*wide), rel=1e-4)

    kid = metric_kid.kid_features_to_metric(fake, real, kid_subsets=1, kid_subset_size=N, verbose=False)
    found = mmd2(x.astype(np.float64), y.astype(np.float64))
    assert found == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-4)

    order = torch.from_numpy(shuffled_rows(N))
    score = metric_isc.isc_features_to_metric(logits[order], 10, shuffle=False)
    found = inception_score(loaded.head.logits(x))
    assert found.value == pytest.approx(score["inception_score_mean"], rel=1e-4)
    assert found.split_sd == pytest.approx(score["inception_score_std"], rel=1e-3)  # a difference of scores

    overlap = metric_prc.prc_features_to_metric(fake, real, verbose=False)
    found = precision_recall(x, y)
    assert (found.precision, found.recall) == pytest.approx(
        (overlap["precision"], overlap["recall"]),
        abs=1e-6,  # theirs are float32
    )


def test_distance_of_pytorch_fid(torchvision_operators, inception_weights, images, ours, monkeypatch):
    inception = pytest.importorskip("pytorch_fid.inception", exc_type=ImportError)
    from pytorch_fid.fid_score import calculate_frechet_distance

    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: torch.load(inception_weights))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torchvision and SciPy, about what it passes them
        net = inception.InceptionV3([3]).eval()
        with torch.inference_mode():
            sides = [net(part.float() / 255)[0].flatten(1).double().numpy() for part in images]
        # its matrix root is off, or refused, where there are fewer images than features
        few = [rows[:, : N // 2] for rows in sides]
        moments = [moment for rows in few for moment in (rows.mean(0), np.cov(rows, rowvar=False))]
        expected = calculate_frechet_distance(*moments)
    _, x, y = ours("inception2015-halfpixel")
    np.testing.assert_allclose(x, sides[0], rtol=0, atol=1e-4 * sides[0].max())
    np.testing.assert_allclose(y, sides[1], rtol=0, atol=1e-4 * sides[1].max())
    assert distance(x[:, : N // 2], y[:, : N // 2]) == pytest.approx(expected, rel=1e-4)
