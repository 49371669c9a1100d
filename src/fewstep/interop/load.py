"""The one way to a model that the user names: a folder of this project, or one of diffusers."""

from pathlib import Path

import torch

from fewstep.diffusion.denoiser import Model
from fewstep.interop.diffusers_model import is_diffusers, load_diffusers
from fewstep.nets import folder


def load_model(path: str | Path, *, device: str | torch.device = "cpu") -> Model:
    """Read a model folder, or a pipeline or network that diffusers has saved.

    Returns:
        A model in evaluation mode whose weights need no gradient.

    Raises:
        DataError: A missing, truncated or foreign file. ConfigError: a model of diffusers that cannot be sampled here.
    """
    return (load_diffusers if is_diffusers(path) else folder.load_model)(path, device=device)
