"""What a number was made with: versions, code commit, machine."""

import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch

import fewstep

if TYPE_CHECKING:
    from fewstep.data.latents import Latents
    from fewstep.data.packed import Dataset


@cache
def git_commit() -> str | None:
    """The commit of this code, with `+changes` where tracked files differ from it; None outside a checkout."""
    root = Path(__file__).parent
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", str(root.parents[1]))
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def environment() -> dict[str, str | None]:
    """Versions and machine, as certificates and cards state them."""
    return {
        "fewstep": fewstep.__version__,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
    }


def card_facts(dataset: "Dataset | Latents", net: Any) -> dict[str, Any]:
    """What the card of every trained network says: its data, its size, and what it was made with."""
    return {
        "data": {"name": dataset.name, "fingerprint": dataset.fingerprint, "n": len(dataset)},
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "environment": environment(),
    }
