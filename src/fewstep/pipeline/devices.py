"""Which device a command uses, and what to call it."""

import logging
import os
import platform
import re
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.checks import ConfigError
from fewstep.locks import Lock, take

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_GPU = re.compile(r"GPU \d+:")
_VISIBLE, _DEVICES, _SLOTS = "CUDA_VISIBLE_DEVICES", "FEWSTEP_DEVICES", "FEWSTEP_SLOTS"
_kept: list[Lock] = []  # of this process, until it ends


def present() -> list[str]:
    """The GPUs of this machine that may be used: those of CUDA_VISIBLE_DEVICES, or all that nvidia-smi lists."""
    if _VISIBLE in os.environ:
        return [name for name in os.environ[_VISIBLE].split(",") if name.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(i) for i, line in enumerate(filter(_GPU.match, listed.stdout.splitlines()))]


def slots(jobs: int, folder: Path) -> dict[str, str]:
    """The environment in which jobs of this machine take a GPU each, as many jobs as `jobs` at once, in turns over all.
    Args: folder: of the marks of those that are taken.
    """
    names = present()
    if not names or jobs < 1:
        return {}
    chosen = [names[i % len(names)] for i in range(jobs)]
    return {_DEVICES: ",".join(chosen), _SLOTS: str(folder.absolute())}


def take_slots(count: int = 1) -> list[str]:
    """Make GPUs visible to this process and those that it starts, where the workflow hands them out.

    Returns: the GPUs that are visible: `count` of them, or all where nobody hands them out or there are fewer.
    """
    handed_out, folder = os.environ.pop(_DEVICES, ""), os.environ.pop(_SLOTS, "")
    if not handed_out or "LOCAL_RANK" in os.environ:  # torchrun gives each process its own
        return present()
    places = dict(enumerate(handed_out.split(",")))
    if len(set(places.values())) < count:
        return sorted(set(places.values()))
    taken: dict[str, Lock] = {}
    while True:
        for i, name in places.items():
            if name not in taken and isinstance(lock := take(Path(folder, f"gpu-{i}")), Lock):
                taken[name] = lock
            if len(taken) == count:
                _kept.extend(taken.values())
                os.environ[_VISIBLE] = ",".join(taken)
                log.info("uses GPU %s of this machine", os.environ[_VISIBLE])
                return list(taken)
        time.sleep(1)


def chosen_device(name: str, *, local_rank: int = 0, exact: bool = True) -> str:
    """Resolve `auto`: the GPU of this process where there is one, else the CPU.

    Args: exact: whether float32 means float32, as in all that is certified; GPUs otherwise round convolutions to 10
        bits (TF32), which is faster and good enough to train with.
    Raises: ConfigError: no such device here.
    """
    import torch

    torch.backends.cudnn.allow_tf32 = not exact
    if name == "auto":
        take_slots()
        return f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device must be a device of this machine, got {name!r} ({reason}).") from None
    return name


def device_name(device: "torch.device") -> str:
    """The name of the chip behind a device, for records of cost."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"
