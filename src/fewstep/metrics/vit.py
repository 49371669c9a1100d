"""Vision transformers whose class token is a feature space: DINOv2 [oquab2024dinov2] and CLIP [radford2021clip].

Built from the files of weights that their authors publish, which the user has; the sizes follow from the tensors.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS = 16  # of the large models
DINOV2_SIZE, CLIP_SIZE = 224, 336
DINOV2_FEATURES, CLIP_FEATURES = 1024, 768


class Normalisation(NamedTuple):
    """Mean and standard deviation of the channels of images in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = Normalisation((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


class Block(nn.Module):
    """Attention and two linear layers, each after a norm, and in DINOv2 scaled channel by channel."""

    def __init__(self, dim: int, hidden: int, heads: int, eps: float, *, quick: bool) -> None:
        super().__init__()
        self.heads, self.quick = heads, quick
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.scale1, self.scale2 = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> the same."""
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d)
        x = x + self.scale1 * self.proj(mixed)
        h = self.fc1(self.norm2(x))
        h = h * torch.sigmoid(1.702 * h) if self.quick else F.gelu(h)
        out: Tensor = x + self.scale2 * self.fc2(h)
        return out


class VisionTransformer(nn.Module):
    """Images in [0, 255] to the class token after the last norm, in CLIP projected and of unit length."""

    def __init__(
        self, patches: nn.Conv2d, position: Tensor, blocks: list[Block], norms: tuple[nn.Module, nn.Module]
    ) -> None:
        super().__init__()
        self.patches, self.blocks = patches, nn.ModuleList(blocks)
        self.before, self.after = norms
        self.token = nn.Parameter(torch.zeros(position.shape[1]))
        self.position = nn.Parameter(position)
        self.projection: nn.Linear | None = None
        self.normalisation = IMAGENET

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 255], S a multiple of the patch's side, -> (B, D)."""
        mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in self.normalisation)
        maps = self.patches((images / 255 - mean) / std)
        x = maps.flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), 1, -1), x], 1) + self._positions(maps.shape[-1])
        x = self.before(x)
        for block in self.blocks:
            x = block(x)
        features: Tensor = self.after(x[:, 0])
        return features if self.projection is None else F.normalize(self.projection(features), dim=-1)

    def _positions(self, side: int) -> Tensor:
        """Of the patches, for another number of them resized as DINOv2's code does: bicubic, by (side + 0.1) / own."""
        own = round((len(self.position) - 1) ** 0.5)
        if own == side:
            return self.position
        grid = self.position[1:].T.reshape(1, -1, own, own)
        scale = (side + 0.1) / own
        moved = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
        return torch.cat([self.position[:1], moved[0].flatten(1).T])


def dinov2(state: Mapping[str, Tensor], *, heads: int = HEADS) -> VisionTransformer:
    """From the file that its repository publishes, such as dinov2_vitl14_pretrain.pth.
    Raises: KeyError, RuntimeError: a tensor is missing or has another shape.
    """
    weight = state["patch_embed.proj.weight"]
    dim, depth = len(weight), _depth(state, "blocks.")
    blocks = []
    for i in range(depth):
        block = Block(dim, len(state[f"blocks.{i}.mlp.fc1.weight"]), heads, 1e-6, quick=False)
        names = {"norm1": "norm1", "norm2": "norm2", "qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1",
                 "fc2": "mlp.fc2"}  # fmt: skip
        tensors = {
            f"{ours}.{kind}": state[f"blocks.{i}.{theirs}.{kind}"]
            for ours, theirs in names.items()
            for kind in ("weight", "bias")
        }
        scales = {f"scale{k}": state[f"blocks.{i}.ls{k}.gamma"] for k in (1, 2)}
        block.load_state_dict(tensors | scales)
        blocks.append(block)
    after = nn.LayerNorm(dim, 1e-6)
    after.load_state_dict({kind: state[f"norm.{kind}"] for kind in ("weight", "bias")})
    patches = _patches(weight, state["patch_embed.proj.bias"])
    net = VisionTransformer(patches, state["pos_embed"][0], blocks, (nn.Identity(), after))
    net.token.data.copy_(state["cls_token"].flatten())
    return net.eval().requires_grad_(False)


def clip(state: Mapping[str, Tensor], *, heads: int = HEADS) -> VisionTransformer:
    """From the weights as transformers' CLIPModel names them, such as openai/clip-vit-large-patch14-336.
    Raises: KeyError, RuntimeError: a tensor is missing or has another shape.
    """
    vision = {name.removeprefix("vision_model."): tensor for name, tensor in state.items()}
    weight = vision["embeddings.patch_embedding.weight"]
    dim, depth = len(weight), _depth(vision, "encoder.layers.")
    blocks = []
    for i in range(depth):
        at = f"encoder.layers.{i}"
        block = Block(dim, len(vision[f"{at}.mlp.fc1.weight"]), heads, 1e-5, quick=True)
        names = {"norm1": "layer_norm1", "norm2": "layer_norm2", "proj": "self_attn.out_proj", "fc1": "mlp.fc1",
                 "fc2": "mlp.fc2"}  # fmt: skip
        tensors = {
            f"{ours}.{kind}": vision[f"{at}.{theirs}.{kind}"]
            for ours, theirs in names.items()
            for kind in ("weight", "bias")
        }
        for kind in ("weight", "bias"):
            tensors[f"qkv.{kind}"] = torch.cat([vision[f"{at}.self_attn.{x}_proj.{kind}"] for x in "qkv"])
        block.load_state_dict(tensors | {f"scale{k}": torch.ones(dim) for k in (1, 2)})
        blocks.append(block)
    norms = nn.LayerNorm(dim, 1e-5), nn.LayerNorm(dim, 1e-5)
    for norm, name in zip(norms, ("pre_layrnorm", "post_layernorm"), strict=True):  # the typo is theirs
        norm.load_state_dict({kind: vision[f"{name}.{kind}"] for kind in ("weight", "bias")})
    net = VisionTransformer(
        _patches(weight, None), vision["embeddings.position_embedding.weight"], blocks, norms
    )
    net.token.data.copy_(vision["embeddings.class_embedding"])
    net.normalisation = OPENAI
    projection = vision["visual_projection.weight"]
    net.projection = nn.Linear(dim, len(projection), bias=False)
    net.projection.load_state_dict({"weight": projection})
    return net.eval().requires_grad_(False)


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(int(n.removeprefix(prefix).split(".")[0]) for n in state if n.startswith(prefix))


def _patches(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    dim, channels, side, _ = weight.shape
    conv = nn.Conv2d(channels, dim, side, stride=side, bias=bias is not None)
    conv.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return conv
