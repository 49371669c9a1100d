"""The one way to a model that the user names: of the zoo, a folder of this project, or one of diffusers."""

from pathlib import Path

import torch

from fewstep.diffusion.denoiser import Model
from fewstep.interop.diffusers_model import is_diffusers, load_diffusers
from fewstep.interop.zoo import find, verify
from fewstep.nets import folder


def load_model(path: str | Path, *, device: str | torch.device = "cpu") -> Model:
    """Read a model folder, or a pipeline or network that diffusers has saved.

    Args:
        path: Of the folder; NAME and zoo/NAME are models of the zoo. Where checksums stand beside the files, the files
            must keep to them.
        device: Where the weights will be.

    Returns:
        A model in evaluation mode whose weights need no gradient.

    Raises:
        DataError: A missing, truncated, changed or foreign file. ConfigError: a model of diffusers that cannot be
            sampled here.
    """
    found = find(path)
    verify(found)
    return (load_diffusers if is_diffusers(found) else folder.load_model)(found, device=device)
