"""The roles of the layers in networks of diffusers, class by class: see `fewstep.nets.roles`."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fewstep.nets.roles import Role

_ATTENTION: dict[str, Role] = dict.fromkeys(("to_q", "to_k", "to_v", "to_out.0"), "attn")
ROLES: Mapping[str, Mapping[str, Role]] = {
    "UNet2DModel": {"conv_in": "first", "conv_out": "last"},
    "ResnetBlock2D": {
        "conv1": "body",
        "time_emb_proj": "time_proj",
        "conv2": "body",
        "conv_shortcut": "shortcut",
    },
    "Downsample2D": {"conv": "resample"},
    "Upsample2D": {"conv": "resample"},
    "Attention": _ATTENTION,
    "TimestepEmbedding": {"linear_1": "time_mlp", "linear_2": "time_mlp"},
    # the last modulation sees the first block's embedding once more
    "DiTTransformer2DModel": {"proj_out_1": "time_proj", "proj_out_2": "last"},
    "PatchEmbed": {"proj": "first"},
    "AdaLayerNormZero": {"linear": "time_proj"},
    "FeedForward": {"net.0.proj": "body", "net.2": "body"},
}
"""Class -> layer in it -> role; layers that a module lacks are passed over."""

UNITS = {
    "UNet2DModel": ("ResnetBlock2D", "Attention"),
    "DiTTransformer2DModel": ("BasicTransformerBlock",),
}
"""Class of a network -> classes of what is reconstructed as a whole."""


def roles(net: nn.Module) -> dict[str, Role]:
    """The role of every layer that the tables know, by name."""
    found: dict[str, Role] = {}
    for name, module in net.named_modules():
        for layer, role in ROLES.get(type(module).__name__, {}).items():
            path = f"{name}.{layer}" if name else layer
            if isinstance(_submodule(module, layer), nn.Module):
                found[path] = role
    return found


def units(net: nn.Module) -> tuple[str, ...]:
    """The blocks, by name."""
    kinds = UNITS.get(type(net).__name__, ())
    return tuple(name for name, module in net.named_modules() if type(module).__name__ in kinds)


def temporal(net: Any, time: Tensor, label: Tensor | None) -> list[Tensor]:
    """What the layers of role time_proj give for some times and labels, (B, D_i) each, in the order of the modules."""
    if type(net).__name__ == "DiTTransformer2DModel":
        norms = [block.norm1 for block in net.transformer_blocks]
        dtype = net.pos_embed.proj.weight.dtype
        embs = [norm.silu(norm.emb(time, label, hidden_dtype=dtype)) for norm in norms]
        return [net.proj_out_1(embs[0]), *(norm.linear(emb) for norm, emb in zip(norms, embs, strict=True))]
    emb = net.time_embedding(net.time_proj(time).to(net.conv_in.weight.dtype))
    blocks = [module for module in net.modules() if type(module).__name__ == "ResnetBlock2D"]
    return [block.time_emb_proj(emb if block.skip_time_act else block.nonlinearity(emb)) for block in blocks]


def _submodule(module: nn.Module, layer: str) -> nn.Module | None:
    try:
        return module.get_submodule(layer)
    except AttributeError:
        return None
