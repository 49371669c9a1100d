"""The one way to an autoencoder that the user names: a folder of this project, or an AutoencoderKL of diffusers."""

from pathlib import Path

import torch
from torch import Tensor

from fewstep.files import object_or_empty
from fewstep.interop.diffusers_model import fingerprint_of, is_diffusers, load_part
from fewstep.nets import CONFIG, folder
from fewstep.nets.autoencoder import Autoencoder, Posterior, require_scale


def load_autoencoder(path: str | Path, *, device: str | torch.device = "cpu") -> Autoencoder:
    """Read a frozen autoencoder.

    Raises:
        DataError: a missing or damaged file, or no scale of the latents. ConfigError: another class of diffusers.
    """
    found = Path(path)
    return (
        _of_diffusers(found, device) if is_diffusers(found) else folder.load_autoencoder(found, device=device)
    )


def _of_diffusers(path: Path, device: str | torch.device) -> Autoencoder:
    require_scale(object_or_empty(path / CONFIG).get("scaling_factor"), str(path))
    net = load_part(path, {"AutoencoderKL": "AutoencoderKL"}).to(device)
    config = net.config

    def encoder(images: Tensor) -> Posterior:
        found = net.encode(images).latent_dist
        return Posterior(found.mean, found.std)

    def decoder(latents: Tensor) -> Tensor:
        images: Tensor = net.decode(latents, return_dict=False)[0]
        return images

    return Autoencoder(
        encoder,
        decoder,
        in_channels=config.in_channels,
        latent_channels=config.latent_channels,
        factor=2 ** (len(config.block_out_channels) - 1),
        scale=float(config.scaling_factor),
        shift=float(config.get("shift_factor") or 0.0),
        name=path.resolve().name,
        fingerprint=fingerprint_of(path),
    )
