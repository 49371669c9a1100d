import json
from dataclasses import replace

import pytest
import torch

from fewstep.checks import ConfigError, DataError
from fewstep.files import write_json
from fewstep.nets.autoencoder import VAE, Posterior, as_autoencoder, require_unit
from fewstep.nets.folder import build, load_autoencoder, save_autoencoder
from fewstep.rng import generator


def small(**changes: int) -> VAE:
    net = build({"type": "vae", "in_channels": 1, "channels": 4, **changes})
    assert isinstance(net, VAE)
    return net.eval().requires_grad_(False)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator(2))


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_shapes(factor):
    net, images = small(factor=factor, latent_channels=3, blocks=2), drawn(2, 1, 16, 8)
    posterior = net.posterior(images)
    assert posterior.mean.shape == posterior.std.shape == (2, 3, 16 // factor, 8 // factor)
    assert net.images(posterior.mean).shape == images.shape
    assert as_autoencoder(net, scale=1.0).latent_shape((1, 16, 8)) == (3, 16 // factor, 8 // factor)


def test_divergence_is_that_of_torch():
    posterior = Posterior(drawn(3, 2, 2, 2), drawn(3, 2, 2, 2).exp())
    own, unit = torch.distributions.Normal(*posterior), torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(own, unit).flatten(1).sum(1)
    assert torch.allclose(posterior.kl(), expected, rtol=1e-5)
    assert not Posterior(torch.zeros(1, 1), torch.ones(1, 1)).kl().any()


def test_scale_and_shift_are_undone():
    autoencoder = replace(as_autoencoder(small(), scale=0.3), shift=0.7)
    images, noise = drawn(2, 1, 8, 8), torch.zeros(2, 4, 4, 4)
    mean = small().posterior(images).mean
    latents = autoencoder.encode(images, noise)
    assert torch.allclose(latents, 0.3 * (mean - 0.7), atol=1e-6)
    assert torch.allclose(autoencoder.decode(latents), small().images(mean), atol=1e-5)


def test_latents_are_draws_from_the_posterior():
    autoencoder, images = as_autoencoder(small(), scale=2.0), drawn(1, 1, 8, 8)
    posterior = small().posterior(images)
    noise = drawn(4000, 4, 4, 4)
    latents = autoencoder.encode(images.expand(4000, -1, -1, -1), noise)
    # the standard error of 4000 draws is 1.6 % of a standard deviation
    assert torch.allclose(latents.mean(0), 2 * posterior.mean[0], atol=0.2 * float(posterior.std.max()))
    assert torch.allclose(latents.std(0), 2 * posterior.std[0], rtol=0.1)


def test_folder_holds_weights_and_scale(tmp_path):
    net, images = small(factor=4), drawn(2, 1, 8, 8)
    save_autoencoder(tmp_path / "a", net, scale=0.4, name="tiny", card={"steps": 1})
    loaded = load_autoencoder(tmp_path / "a")
    assert (loaded.scale, loaded.name, loaded.factor, loaded.latent_channels) == (0.4, "tiny", 4, 4)
    assert torch.allclose(loaded.encoder(images).mean, net.posterior(images).mean, atol=1e-5)


@pytest.mark.parametrize("scale", [None, 0, -1.0, True, "0.2"])
def test_missing_scale_is_one_sentence(scale, tmp_path):
    save_autoencoder(tmp_path / "a", small(), scale=1.0, name="tiny", card={})
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    write_json(tmp_path / "a" / "config.json", {**config, "scale": scale})
    with pytest.raises(DataError, match="tiny must state a scale above 0 for its latents, got"):
        load_autoencoder(tmp_path / "a")


def test_bad_values_and_images_are_refused():
    for changes in ({"factor": 3}, {"factor": 1}, {"latent_channels": 0}):
        with pytest.raises(ConfigError, match="a factor that is a power of two; got"):
            small(**changes)
    autoencoder = as_autoencoder(small(), scale=1.0, name="tiny")
    with pytest.raises(ConfigError, match="multiples of 2 for the autoencoder tiny, got 9 x 8"):
        autoencoder.latent_shape((1, 9, 8))
    with pytest.raises(ConfigError, match="takes images of 1 channels, got 3"):
        autoencoder.latent_shape((3, 8, 8))


@pytest.mark.parametrize("factor", [0.1, 10.0, float("nan")])
def test_latents_far_from_unit_variance_are_refused(factor):
    require_unit(drawn(50, 4, 4, 4), "tiny")
    with pytest.raises(DataError, match="must have a standard deviation near 1, but those of tiny have"):
        require_unit(factor * drawn(50, 4, 4, 4), "tiny")
