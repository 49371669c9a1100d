"""How the Jacobian of attention grows with its inputs, by distances and by dot products [kim2021lipschitz]."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fewstep.nets.lipschitz import DotAttention, L2Attention
from fewstep.nets.vitgan import preserve_variance
from fewstep.rng import generator, initial_weights

SCALES = (1, 4, 16, 64)
KINDS: dict[str, type[nn.Module]] = {"l2": L2Attention, "dot": DotAttention}
TOKENS, WIDTH, HEADS = 6, 8, 2


def norms(kind: str, seed: int, scales: Sequence[float] = SCALES) -> list[float]:
    """Spectral norm of the Jacobian at scaled tokens, one of which is zero: there dot products have no bound.

    Args:
        kind: A key of `KINDS`.
        seed: Of weights and tokens.
        scales: Factors on the tokens.
    """
    with initial_weights(seed):
        attention = KINDS[kind](WIDTH, HEADS).double()
        preserve_variance(attention)
    tokens = torch.randn(1, TOKENS, WIDTH, generator=generator(seed, "tokens"), dtype=torch.float64)
    tokens[:, 0] = 0.0
    return [_norm(attention, scale * tokens) for scale in scales]


def _norm(attention: nn.Module, tokens: Tensor) -> float:
    def flat(values: Tensor) -> Tensor:
        out: Tensor = attention(values.view_as(tokens)).reshape(-1)
        return out

    jacobian = torch.func.jacrev(flat)(tokens.reshape(-1))
    return float(torch.linalg.matrix_norm(jacobian.detach(), 2))
