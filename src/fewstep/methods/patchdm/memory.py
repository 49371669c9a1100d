"""What a training step keeps in memory, counted."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fewstep.diffusion.schedule import DDPMTable
from fewstep.methods.patchdm.objective import Patches
from fewstep.nets.patched import PatchedUNet
from fewstep.nets.unet import UNet
from fewstep.rng import generator, initial_weights
from fewstep.train.losses import denoising_loss, noised


def kept_bytes(loss: Callable[[], Tensor], net: nn.Module) -> int:
    """Bytes that a loss keeps for its step backwards, each storage once, without the weights of the network."""
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = tensor  # held, so that its address is not given away again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def training_bytes(net: PatchedUNet, side: int, *, images: int = 4) -> tuple[int, int]:
    """Bytes that a training step keeps on images of a side: with the network of patches, and with a U-Net of all.

    The U-Net has the same widths, blocks and attention on the same levels.
    """
    values = net.net.config()
    levels = [values["image_size"] // values["patch"] >> i for i in range(len(values["multipliers"]))]
    attention = [side // values["patch"] >> i for i, s in enumerate(levels) if s in values["attention"]]
    with initial_weights(0):
        whole = UNet(**values | {"image_size": side, "attention": attention}).requires_grad_()
        own = PatchedUNet(**net.config()).requires_grad_()
    rng = generator(0, "memory")
    x0, eps = torch.randn(2, images, values["in_channels"], side, side, generator=rng).unbind()
    t = torch.full((images,), 0.5, dtype=torch.float64)
    batch = noised(x0, eps, t, schedule=DDPMTable.linear(), prediction="eps")
    of_patches = Patches(net.tile)(rng, images)
    return (
        kept_bytes(lambda: of_patches(own, batch, None), own),
        kept_bytes(lambda: denoising_loss(whole, batch), whole),
    )
