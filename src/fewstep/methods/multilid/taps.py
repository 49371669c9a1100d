"""Networks with several layers to look at: whole feature maps, not their means."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from fewstep.checks import ConfigError, DataError
from fewstep.data.pixels import to_unit
from fewstep.methods.multilid.resnet import CHANNELS, UntrainedResNet18
from fewstep.metrics import efficientnet, weights
from fewstep.metrics.extractor import DEFAULT_COLOUR, Extractor, load_extractor
from fewstep.metrics.resize import bicubic_aa, to_rgb

EFFNET_SIDE = 64


@dataclass(frozen=True)
class Taps:
    """Maps uint8 images (B, C, H, W) to float32 maps (B, D), flattened, one per layer.

    Attributes: pooled: features of the same network with one vector per image, to compare with; its device is that
        of the taps.
    """

    id: str
    layers: tuple[str, ...]
    resize: str
    weights_sha256: str
    forward: Callable[[Tensor], list[Tensor]] = field(repr=False)
    pooled: Extractor

    @property
    def protocol(self) -> dict[str, object]:
        """What must agree before two results may be compared."""
        return {
            "id": self.id,
            "layers": list(self.layers),
            "resize": self.resize,
            "weights_sha256": self.weights_sha256,
            "pooled": self.pooled.protocol,
        }

    def require(self, shape: tuple[int, ...]) -> None:
        """Refuse images (C, H, W) that the network does not take.
        Raises: DataError: the network is for another shape.
        """
        if self.pooled.shape not in (None, shape) or shape[0] not in (1, 3):
            wanted = self.pooled.shape or "of 1 or 3 channels"
            raise DataError(
                f"{self.id} takes images (C, H, W) {wanted}, got {shape}; use another network with --features."
            )

    def __call__(self, images_u8: Tensor) -> list[Tensor]:
        """The maps of a batch, on the device of the network."""
        with torch.inference_mode():
            return [map_.flatten(1).float() for map_ in self.forward(images_u8.to(self.pooled.device))]


def load_taps(name: str | Path, *, seed: int = 0, device: str | torch.device = "cpu") -> Taps:
    """A network by its name in TAPS, or a trained classifier by its model folder.

    Args: seed: of weights that were never trained.
    Raises: ConfigError: no such network, or its weights are not on this machine.
    """
    if str(name) in TAPS:
        return TAPS[str(name)](seed, device)
    if Path(name).is_dir():
        return _classifier(Path(name), device)
    raise ConfigError(
        f"--features must be one of {', '.join(TAPS)} or the folder of a trained classifier; got {name}."
    )


def tapped(
    net: nn.Module, modules: Mapping[str, nn.Module], prepare: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], list[Tensor]]:
    """A function from bytes to the outputs of some modules within a network, in that order.

    Args: prepare: from bytes to what the network takes.
    """
    found: dict[str, Tensor] = {}
    for name, module in modules.items():
        module.register_forward_hook(lambda _, __, out, name=name: found.__setitem__(name, out))

    def forward(images_u8: Tensor) -> list[Tensor]:
        net(prepare(images_u8))
        outputs = [found[name] for name in modules]
        found.clear()
        return outputs

    return forward


def _untrained(seed: int, device: str | torch.device) -> Taps:
    """Differs: inputs are scaled to [-1, 1], where the published code has a table of means for some datasets."""
    net = UntrainedResNet18(seed)
    digest = hashlib.sha256()
    for weight in net.state_dict().values():
        digest.update(weight.numpy().tobytes())
    net.to(device)

    def prepare(images_u8: Tensor) -> Tensor:
        return to_unit(to_rgb(images_u8))

    pooled = Extractor(
        f"resnet18-random-s{seed}",
        CHANNELS[-1],
        "none",
        digest.hexdigest(),
        lambda images_u8: net(prepare(images_u8)).mean((2, 3)),
        device=device,
    )
    taps = net.taps()
    return Taps(pooled.id, tuple(taps), "none", pooled.weights_sha256, tapped(net, taps, prepare), pooled)


def _efficientnet(_: int, device: str | torch.device) -> Taps:
    """The seven stages at 64 pixels; pooled are the features that distances are measured in, at theirs."""
    pooled = load_extractor(DEFAULT_COLOUR, device=device)
    file, digest = weights.find_weights(
        weights.EFFICIENTNET_LITE0, otherwise="use the features resnet18-random or a trained classifier"
    )
    net = efficientnet.from_state(weights.read_weights(file), "p320").to(device)
    modules, last = {}, -1
    for i, stage in enumerate(efficientnet.STAGES):
        last += stage.repeats
        modules[f"stage{i + 1}"] = net.blocks[last]

    def prepare(images_u8: Tensor) -> Tensor:
        return bicubic_aa(to_rgb(images_u8).float(), EFFNET_SIDE)

    return Taps(
        f"effnet-lite0@{EFFNET_SIDE}",
        tuple(modules),
        f"{EFFNET_SIDE}/bicubic-aa",
        digest,
        tapped(net, modules, prepare),
        pooled,
    )


def _classifier(folder: Path, device: str | torch.device) -> Taps:
    from fewstep.nets.folder import load_classifier

    pooled, net = load_extractor(folder, device=device), load_classifier(folder, device=device).net
    modules = {name: module for name, module in net.named_children() if name != "to_logits"}
    return Taps(
        pooled.id, tuple(modules), "none", pooled.weights_sha256, tapped(net, modules, to_unit), pooled
    )


TAPS: dict[str, Callable[[int, str | torch.device], Taps]] = {
    "effnet-lite0": _efficientnet,
    "resnet18-random": _untrained,
}
"""Name -> loader(seed, device)."""
