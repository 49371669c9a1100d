"""fewstep: the best sampler for a diffusion model and a step budget, and how sure we are."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Public names and where they live; loaded on first use, so that reading settings does not import torch.
_PUBLIC = {
    "Model": "diffusion.denoiser",
    "Denoiser": "diffusion.denoiser",
    "Condition": "diffusion.condition",
    "Classes": "diffusion.condition",
    "Stored": "diffusion.condition",
    "GaussianMixture": "diffusion.mixture",
    "VPLinear": "diffusion.schedule",
    "DDPMTable": "diffusion.schedule",
    "Cosine": "diffusion.schedule",
    "EDM": "diffusion.schedule",
    "Flow": "diffusion.schedule",
    "load_model": "interop.load",
    "load_dataset": "data.packed",
    "load_conditions": "data.conditions",
    "Plan": "sampling.plan",
    "load_plan": "sampling.plan",
    "with_integers": "sampling.quantised",
    "sample": "sampling.sample",
    "solve": "sampling.sample",
}

__all__ = ["__version__", "presets", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name == "presets":
        return import_module("fewstep.sampling.presets")
    if name in _PUBLIC:
        return getattr(import_module(f"fewstep.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'fewstep' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
