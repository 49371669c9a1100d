"""Our models as other programs call them, and other programs' modules as long as they are needed."""

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from fewstep.diffusion.denoiser import Denoiser, Model
from fewstep.nets.unet import UNet
from fewstep.rng import generator

Sampler = Callable[[Tensor], Tensor]
"""x_T, unit normal, to images in [-1, 1]."""

SIGMA_MAX = 80.0
"""Where diff-sampler starts; from the end of a DDPM table, 157, its grids and those that it fits are worse."""


@contextmanager
def program(folder: Path, stubs: Sequence[str] = ()) -> Iterator[None]:
    """Import from another program's folder; its modules, whose names recur in other programs, go at the end.

    `stubs` are modules that it imports without use here and that may be missing; `NAME:ATTRIBUTE` has one name inside.
    """
    before, path = set(sys.modules), list(sys.path)
    sys.path.insert(0, str(folder))
    for stub in stubs:
        name, _, attribute = stub.partition(":")
        sys.modules[name] = ModuleType(name)
        if attribute:
            setattr(sys.modules[name], attribute, None)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path
        home = str(folder.resolve())
        for name in set(sys.modules) - before:
            source = getattr(sys.modules[name], "__file__", None)
            if name in {stub.partition(":")[0] for stub in stubs} or (
                source and str(Path(source).resolve()).startswith(home)
            ):
                del sys.modules[name]


@contextmanager
def global_stream(purpose: str) -> Iterator[int]:
    """Seed the global random streams, from which the programs draw, and put torch's back at the end."""
    seed = generator(0, purpose).initial_seed() % (1 << 31)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield seed


class Opened:
    """The U-Net of a model with what the programs reach into: its middle and its skips.

    Attributes:
        middle: sees the middle's output at 8 x 8 pixels (pixels repeated or averaged) at each call.
        skips: factors of the kept features, in the encoder's order; None for ones.
        calls: images times network calls so far.
    """

    def __init__(self, model: Model) -> None:
        assert isinstance(model.net, UNet)
        self.net, self.schedule = model.net, model.schedule
        self.middle = nn.Identity()
        self.skips: Tensor | None = None
        self.calls = 0
        self.model = replace(model, fn=self)

    @property
    def n_skips(self) -> int:
        return len(self.net.multipliers) * self.net.blocks

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += len(x)
        emb = self.net.embed(self.schedule.time_input(t), like=x)
        h, kept = self.net.encode(x, emb)
        h = self.net.middle(h, emb)
        self.middle(adaptive_avg_pool2d(h, 8))
        if self.skips is not None:
            kept = [factor * features for factor, features in zip(self.skips, kept, strict=True)]
        return self.net.decode(h, kept, emb)


class Precond:
    """net(x, sigma) -> x0_hat in a variance-exploding frame: x = x_t / alpha and sigma = sigma_t / alpha.

    What diff-sampler calls a network: sigma is one for all or one per image, and gradients flow through it.
    """

    label_dim = 0

    def __init__(self, opened: Opened) -> None:
        self.opened, self.enc = opened, {"8x8_block3": opened.middle}
        self.model = self  # `net.model.enc[...]` is where AMED hooks the bottleneck
        self.img_channels, self.img_resolution, _ = opened.model.shape
        schedule = opened.schedule
        ends = schedule.lambda_(torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64))
        self.sigma_min, longest = (-ends).exp().tolist()
        self.sigma_max = min(longest, SIGMA_MAX)

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        schedule = self.opened.schedule
        t = schedule.t_of_lambda(-sigma.double().log()).clamp(schedule.t_min, schedule.t_max)
        t = t.reshape(()) if t.numel() == 1 else t.reshape(-1)
        scale = schedule.alpha(t).reshape(-1, 1, 1, 1).to(x)
        return Denoiser(self.opened.model).x0(scale * x, t).to(x)
