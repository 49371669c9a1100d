"""Several processes that train one network: found in torchrun's environment, absent otherwise."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fewstep.checks import ConfigError


@dataclass(frozen=True)
class World:
    """This process's place among the `size` processes; `World()` is a process of its own."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and reports progress."""
        return self.rank == 0

    def add_up(self, parameters: Iterable[Tensor]) -> None:
        """Replace every gradient by its sum over the processes, in one message."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a scalar over the processes."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.size
        return value

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        raised = torch.tensor(float(flag), device=device)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return bool(raised.item())

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.size > 1:
            dist.barrier()

    def copy_from_leader(self, nets: Iterable[nn.Module]) -> None:
        """Give every process the leader's weights."""
        if self.size > 1:
            for net in nets:
                for tensor in net.state_dict().values():
                    dist.broadcast(tensor, src=0)


@contextmanager
def joined(patience: timedelta | None = None) -> Iterator[World]:
    """The world that torchrun describes in the environment, connected for the length of the block.

    nccl connects processes with a GPU each, gloo processes on CPUs. Without torchrun it is a world of one.

    Args:
        patience: How long processes wait for each other; None: some minutes, as training should.

    Raises:
        ConfigError: A broken environment: some but not all of torchrun's variables.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    present = [name for name in names if name in os.environ]
    if "WORLD_SIZE" not in present:
        yield World()
        return
    if missing := [name for name in names if name not in present]:
        raise ConfigError(
            f"WORLD_SIZE is set but {', '.join(missing)} is not; start with torchrun or unset it."
        )
    world = World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"]))
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=patience)
    try:
        yield world
    finally:
        dist.destroy_process_group()
