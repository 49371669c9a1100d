"""fewstep: the best sampler for a diffusion model and a step budget, and how sure we are."""

import ctypes
import os
import sys
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Read by OpenMP when torch is loaded. By default its threads wait for each other spinning, which on a machine that
# is shared keeps the very thread from running that is waited for: small networks become twenty times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _keep_freed_memory() -> None:
    """Let the C library of Linux hand freed tensors of up to 1 GiB out again.

    By default each tensor of more than 128 KiB to 32 MiB is mapped, cleared page by page and given back: with small
    networks of 32 x 32 on a CPU about an eighth of the time of sampling and training. Whoever sets the allocator
    decides.
    """
    asked = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"} & os.environ.keys()
    if sys.platform != "linux" or asked:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        mallopt(trim_threshold, 1 << 30)
        mallopt(mmap_threshold, 1 << 30)


_keep_freed_memory()

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
