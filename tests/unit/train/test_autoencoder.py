import pytest
import torch

from fewstep.checks import ConfigError
from fewstep.nets.autoencoder import VAE
from fewstep.rng import generator, initial_weights
from fewstep.train.autoencoder import measured_scale, reconstruction_error, train_autoencoder


class Gradients:
    """40 images of 8 x 8 that are planes: three numbers each, which latents can hold."""

    fingerprint, labels = "planes", None

    def __init__(self) -> None:
        slopes = torch.rand(40, 3, 1, 1, 1, generator=generator(5))
        x = torch.linspace(0, 1, 8)
        planes = slopes[:, 0] + slopes[:, 1] * x[:, None] + slopes[:, 2] * x
        self.pixels = (85 * planes).to(torch.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices):
        return self.pixels[torch.as_tensor(indices)]


def trained(steps: int, **changes) -> VAE:
    with initial_weights(0):
        net = VAE(1, 8, 2, 4)
    settings = {"steps": steps, "batch_size": 16, "lr": 5e-3, "seed": 0, "kl_weight": 1e-2, **changes}
    train_autoencoder(Gradients(), net, **settings)
    return net.eval().requires_grad_(False)


def test_training_rebuilds_images_and_is_repeatable():
    net, again = trained(60), trained(60)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    variance = float((Gradients().pixels / 127.5).var())
    assert reconstruction_error(net, Gradients()) < 0.2 * variance


def test_divergence_weighs_as_much_as_it_is_told():
    def kl(weight: float) -> float:
        net = trained(40, kl_weight=weight)
        return float(net.posterior(Gradients().pixels / 127.5 - 1).kl().mean())

    assert kl(10.0) < 0.2 * kl(1e-3)


def test_scale_gives_latents_unit_variance():
    net = trained(20)
    scale, posterior = measured_scale(net, Gradients()), net.posterior(Gradients().pixels / 127.5 - 1)
    rng = generator(1)
    draws = [
        posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=rng) for _ in range(50)
    ]
    assert scale * float(torch.cat(draws).std()) == pytest.approx(1, rel=0.02)  # 16,000 draws


def test_bad_weight_is_refused():
    with pytest.raises(ConfigError, match="kl_weight must be at least 0"):
        trained(1, kl_weight=-1.0)
