import json

import pytest
import torch

pytest.importorskip("diffusers")

from unit.interop.tiny import vae

from fewstep.checks import ConfigError, DataError
from fewstep.interop.autoencoder import load_autoencoder
from fewstep.nets.autoencoder import VAE
from fewstep.nets.folder import save_autoencoder
from fewstep.rng import generator

IMAGES = torch.rand(2, 3, 8, 8, generator=generator(0)) * 2 - 1


@pytest.fixture
def folder(tmp_path):
    vae(scaling_factor=0.3).save_pretrained(tmp_path / "kl")
    return tmp_path / "kl"


def test_an_autoencoder_of_diffusers_is_taken_as_it_is(folder):
    own, net = load_autoencoder(folder), vae(scaling_factor=0.3)
    shape = own.latent_shape((3, 8, 8))
    assert (own.scale, own.factor, own.in_channels, shape) == (0.3, 2, 3, (4, 4, 4))
    noise = torch.randn(2, *shape, generator=generator(1))
    with torch.no_grad():
        posterior = net.encode(IMAGES).latent_dist
        expected = 0.3 * (posterior.mean + posterior.std * noise)
        latents = own.encode(IMAGES, noise)
        assert torch.allclose(latents, expected, atol=1e-5)
        assert torch.allclose(own.decode(latents), net.decode(expected / 0.3).sample, atol=1e-4)


def test_a_missing_scale_is_one_sentence(folder):
    config = folder / "config.json"
    content = json.loads(config.read_text())
    del content["scaling_factor"]
    config.write_text(json.dumps(content))
    with pytest.raises(DataError, match="must state a scale above 0 for its latents, got None"):
        load_autoencoder(folder)


def test_own_folders_and_others(folder, tmp_path):
    save_autoencoder(tmp_path / "own", VAE(1, 4), scale=2.0, name="own", card={})
    assert load_autoencoder(tmp_path / "own").name == "own"
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "_class_name": "UNet2DModel"}))
    with pytest.raises(ConfigError, match="must be of one of AutoencoderKL; got 'UNet2DModel'"):
        load_autoencoder(folder)
