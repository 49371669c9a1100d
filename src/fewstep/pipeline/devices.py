"""Which device a command uses, and what to call it."""

import platform
from pathlib import Path

import torch

from fewstep.checks import ConfigError


def chosen_device(name: str, *, local_rank: int = 0, exact: bool = True) -> str:
    """Resolve `auto`: the GPU of this process where there is one, else the CPU.

    Args: exact: whether float32 means float32, as in all that is certified; GPUs otherwise round convolutions to 10
        bits (TF32), which is faster and good enough to train with.
    Raises: ConfigError: no such device here.
    """
    torch.backends.cudnn.allow_tf32 = not exact
    if name == "auto":
        return f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device must be a device of this machine, got {name!r} ({reason}).") from None
    return name


def device_name(device: torch.device) -> str:
    """The name of the chip behind a device, for records of cost."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"
