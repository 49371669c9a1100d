"""What a generator is judged by on the way, and what stops its training."""

import numpy as np
import pytest
import torch
from torch import nn

from fewstep.checks import ConfigError
from fewstep.metrics.extractor import Extractor, Head
from fewstep.metrics.reference import from_features
from fewstep.nets.generator import Generator
from fewstep.pipeline.gan.monitor import Measure, Monitor, images_of, require_no_collapse
from fewstep.pipeline.gan.settings import GanSettings
from fewstep.pipeline.gan.training import recipe_of, train_pair, untrained
from fewstep.rng import generator
from fewstep.train.ema import Ema
from fewstep.train.loop import Diverged, State


class Images:
    """300 random images of 4 x 4 pixels."""

    fingerprint = "toy"
    labels = None
    pixels = torch.randint(0, 256, (300, 1, 4, 4), generator=generator(5), dtype=torch.uint8)

    def __len__(self):
        return len(self.pixels)

    def batch(self, indices):
        return self.pixels[torch.as_tensor(indices)]


class Noise(Generator):
    """Its images are the noise, times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__((1, 4, 4), 16)
        self.factor = nn.Parameter(torch.tensor(factor))

    def images(self, z):
        return self.factor * z.unflatten(1, self.shape)

    def config(self):
        return {}


class Sum(nn.Module):
    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 1)
        nn.init.constant_(self.layer.weight, factor)

    def forward(self, x):
        return self.layer(x.flatten(1)).square().squeeze(1)


def state(factor=0.5, gap=1.0, step=100):
    noise = Noise(factor)
    return State({"g": noise, "d": Sum(gap)}, {}, {"g": Ema(noise, decay=0.0)}, step=step)


def pixels() -> Extractor:
    """Features that are the pixels, and a classifier that sees whether the first one is dark."""
    weight = np.zeros((2, 16), np.float32)
    weight[0, 0] = 1.0
    return Extractor(
        id="pixels",
        dim=16,
        resize="none",
        weights_sha256="0" * 64,
        forward=lambda images: images.float().flatten(1),
        head=Head(weight, np.array([0.0, 127.5], np.float32)),
    )


def monitor(**changes):
    return Monitor(**{"real": Images(), "steps": 100, "seeds": range(400), **changes})


def test_images_of_seeds_do_not_depend_on_the_others():
    net = Noise(0.5)
    assert torch.equal(images_of(net, range(300))[270:], images_of(net, range(270, 300)))


def test_distance_shares_and_spread_are_those_of_the_images(tmp_path):
    extractor = pixels()
    real = Images().pixels.flatten(1).float().numpy()
    reference = from_features(
        real,
        extractor.protocol,
        dataset={"name": "toy", "fingerprint": "toy", "split": "train", "heldout_split": None},
    )
    found = monitor(measure=Measure(extractor, reference), pictures=tmp_path)(state())
    # bytes are uniform, with standard deviation 2 / sqrt(12) in [-1, 1]; those of the generator have 0.5
    assert found["spread"] == pytest.approx(0.5 / 12**-0.5 / 2, rel=0.1)
    # of 16 independent pixels: (74 - 64)^2 each, and about 2000 that 300 and 400 images leave to chance
    assert 1600 < found["fd"] < 6000
    assert found["share_min"] == pytest.approx(1 - found["share_max"])
    assert 0.5 <= found["share_max"] < 0.6
    assert found["sigma"] == pytest.approx(4.0)  # of a weight of 16 ones
    (picture,) = tmp_path.iterdir()
    assert picture.name == "00000100.npy"
    assert np.load(picture).shape == (16, 4, 4, 1)


@pytest.mark.parametrize(
    "values, message",
    [
        (
            {"factor": 0.01},
            r"collapsed: at step 100 its images vary by 0.01\d+ of what real ones do, less than 0.1",
        ),
        ({"gap": 30.0}, r"at step 100 the discriminator's logits .* apart, more than 100"),
    ],
)
def test_a_training_without_hope_is_stopped(values, message):
    with pytest.raises(Diverged, match=message):
        monitor()(state(**values))


def test_one_class_for_all_images_is_a_collapse():
    found = {"spread": 1.0, "probe_gap": 0.0, "share_max": 0.96}
    with pytest.raises(Diverged, match="one class has 96.0% of its images"):
        require_no_collapse(found, 10)


def test_the_start_is_forgiven():
    assert monitor()(state(factor=0.01, step=20))["spread"] < 0.1


# settings


@pytest.mark.parametrize("network", ["dcgan", "resnet", "vitgan"])
def test_every_network_trains_as_the_settings_say(network, tmp_path):
    settings = GanSettings(
        network=network,
        width=8,
        latent=8,
        depth=1,
        heads=2,
        steps=2,
        batch_size=4,
        log_every=1,
        probe_every=2,
    )
    pair = untrained(settings, (1, 4, 4))
    again = untrained(settings, (1, 4, 4))
    assert all(
        torch.equal(a, b)
        for a, b in zip(pair.generator.parameters(), again.generator.parameters(), strict=True)
    )
    probe = monitor(seeds=range(20), pictures=tmp_path).probe(2)
    trained = train_pair(pair, Images(), settings, measure=probe)
    assert (trained.step, trained.images_seen) == (2, 8)
    assert [path.name for path in tmp_path.iterdir()] == ["00000002.npy"]


@pytest.mark.parametrize(
    "values, message",
    [
        ({"probe_every": 15}, "probe_every: must be a multiple of log_every, 10; got 15"),
        ({"network": "dcgan", "gp": 10.0}, "gp: must be 0 with dcgan"),
        ({"network": "resnet", "batch_size": 1}, "batch_size: must be 2 or more with resnet"),
        ({"bcr": 1.0}, "bcr: needs augment"),
        ({"knee": 100, "warmup": 10}, "knee: must be null"),
        ({"network": "vitgan", "width": 30}, "width: must be a multiple of heads, 4; got 30"),
        ({"augment": ["colour", "colour"]}, "augment: must not repeat"),
        ({"betas_g": [0.5]}, "betas_g"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        GanSettings(**values)


def test_images_that_a_network_cannot_make_are_refused():
    with pytest.raises(ConfigError, match="multiple of the patch"):
        untrained(GanSettings(network="vitgan", patch=3, width=8, heads=2, latent=8), (1, 8, 8))


def test_a_recipe_has_the_rates_of_both_sides():
    recipe = recipe_of(GanSettings(network="dcgan", lr_g=1e-4, lr_d=3e-4, d_steps=5, betas_d=[0.0, 0.9]))
    assert (recipe.rates.lr_g, recipe.rates.lr_d, recipe.rates.d_steps) == (1e-4, 3e-4, 5)
    assert recipe.rates.betas_d == (0.0, 0.9)
