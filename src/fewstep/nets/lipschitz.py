"""What keeps the Lipschitz constant of a transformer discriminator in bounds: L2 attention and its spectral norm."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fewstep.checks import ConfigError


class L2Attention(nn.Module):
    """Attention by negative squared distances, with one projection for queries and keys [kim2021lipschitz, Eq. 6].

        softmax(-|q_i - q_j|^2 / sqrt(D_head)) V

    Its Jacobian is bounded for all inputs; that of dot products is not.

    Args:
        width: Channels of the tokens.
        heads: Heads, which must divide them.

    Raises:
        ConfigError: They do not.

    Differs: ViTGAN prints the distance without its sign [lee2022vitgan, Eq. 7]; near tokens attend to each other only
        with the minus.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        require_heads(width, heads)
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def weights(self, tokens: Tensor) -> Tensor:
        """Of tokens `(B, N, C)` to each other, rows that sum to one: `(B, heads, N, N)`, float32 or wider."""
        q = self._split(self.query(tokens))
        q = q.float() if q.dtype in (torch.float16, torch.bfloat16) else q
        norms = q.square().sum(-1)
        distances = norms[..., :, None] + norms[..., None, :] - 2.0 * q @ q.mT
        return torch.softmax(-distances / q.shape[-1] ** 0.5, dim=-1)

    def forward(self, tokens: Tensor) -> Tensor:
        """`(B, N, C)` to the same shape."""
        value = self._split(self.value(tokens))
        mixed = self.weights(tokens).to(value.dtype) @ value
        return cast(Tensor, self.proj(mixed.transpose(1, 2).flatten(2)))

    def _split(self, tokens: Tensor) -> Tensor:
        b, n, width = tokens.shape
        return tokens.reshape(b, n, self.heads, width // self.heads).transpose(1, 2)


class DotAttention(nn.Module):
    """Attention by scaled dot products whose second derivatives exist on every device, for gradient penalties."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        require_heads(width, heads)
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """`(B, N, C)` to the same shape."""
        b, n, _ = tokens.shape
        q, k, v = self.qkv(tokens).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)
        return cast(Tensor, self.proj((weights @ v).transpose(1, 2).flatten(2)))


class ImprovedSpectralNorm(nn.Module):
    """A weight scaled to the spectral norm that it had at the start: sigma(W_init) W / sigma(W) [lee2022vitgan, Eq. 9].

    The estimate of sigma(W) is improved by one power iteration at each call in training, without gradients of its own,
    and kept with sigma(W_init) in the state, so that a resumed training goes on as it would have.

    Args:
        weight: At its start, `(out, in)`.
    """

    u: Tensor
    v: Tensor
    sigma_init: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        u, sigma, v = torch.linalg.svd(weight.detach().flatten(1), full_matrices=False)
        self.register_buffer("u", u[:, 0].clone())
        self.register_buffer("v", v[0].clone())
        self.register_buffer("sigma_init", sigma[0].clone())

    def forward(self, weight: Tensor) -> Tensor:
        """The scaled weight."""
        if self.training:
            with torch.no_grad():
                v = nn.functional.normalize(weight.mT @ self.u, dim=0)
                u = nn.functional.normalize(weight @ v, dim=0)
                self.u.copy_(u)
                self.v.copy_(v)
        # copies: another call may move the estimates before gradients are taken
        sigma = torch.dot(self.u.clone(), weight @ self.v.clone())
        return weight * (self.sigma_init / sigma)


def keep_spectral_norms(net: nn.Module) -> None:
    """Give the weight of every linear layer of a network its `ImprovedSpectralNorm`."""
    for module in list(net.modules()):
        if isinstance(module, nn.Linear):
            parametrize.register_parametrization(module, "weight", ImprovedSpectralNorm(module.weight))


def require_heads(width: int, heads: int) -> None:
    """Raise ConfigError where the heads do not divide the channels of a token."""
    if heads < 1 or width < 1 or width % heads:
        raise ConfigError(
            f"the channels of a token must be a multiple of the heads; got {width} and {heads}; change one of them."
        )
