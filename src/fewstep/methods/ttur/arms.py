"""The arms of the paper's experiments, at the size of the images at hand."""

from typing import Any

NETWORKS: dict[str, dict[str, Any]] = {
    # DCGAN with the non-saturating loss
    "dcgan": {"betas_g": [0.5, 0.999], "betas_d": [0.5, 0.999], "loss": "non-saturating", "latent": 64},
    # WGAN-GP with the residual networks
    "resnet": {"betas_g": [0.0, 0.9], "betas_d": [0.0, 0.9], "loss": "wasserstein", "gp": 10.0, "latent": 64},
}
"""Settings that all trainings of a network share [heusel2017ttur, App. A5]."""

PUBLISHED: dict[str, dict[str, Any]] = {
    "dcgan": {"lr_g": 5e-4, "lr_d": 1e-4, "d_steps": 1},
    "resnet": {"lr_g": 1e-4, "lr_d": 3e-4, "d_steps": 1},
}
"""The paper's pairs of rates, for CIFAR-10 and for WGAN-GP on images."""

SINGLE_RATES = (1e-4, 2e-4, 5e-4, 1e-3)
"""Rates that both sides share in the trainings that the rule is compared with."""
CRITIC_STEPS = (1, 5)

LEAST_RATE, LARGEST_RATE = 1e-5, 2e-3
LEAST_RATIO, LARGEST_RATIO = 1 / 50, 10.0
"""Bounds of the search: the generator's rate, and the discriminator's over it."""


def single_rates() -> dict[str, dict[str, Any]]:
    """Name -> rates of the trainings in which both sides have one rate, with one and with five critic steps."""
    return {
        f"single {rate:g} x{steps}": {"lr_g": rate, "lr_d": rate, "d_steps": steps}
        for steps in CRITIC_STEPS
        for rate in SINGLE_RATES
    }


def is_single(rates: dict[str, Any]) -> bool:
    """Whether both sides have one rate."""
    return bool(rates["lr_g"] == rates["lr_d"])


def steps_within(images: int, batch_size: int, d_steps: int) -> int:
    """Generator steps for which a budget of real images lasts."""
    return max(1, images // (batch_size * d_steps))
