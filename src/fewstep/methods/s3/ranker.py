"""A learnt guess at which of two plans is better, so that a search evaluates only promising ones [liu2024usf].

As in the paper: an embedding of the decisions of each step, an LSTM over the steps, one number, and a loss that
sees nothing but the order of the scores.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.methods.s3.evolution import propose
from fewstep.methods.s3.space import CORRECTOR, ORDER_WEIGHTS, PREDICTION, Decision, Decisions, Space
from fewstep.rng import generator, initial_weights

LEAST = 10  # plans to learn from, of which two are held out
EPOCHS = 120
LR = 0.01
MARGIN = 1.0  # by which the guesses of two plans should differ
WIDTH, TOKEN_WIDTH = 32, 4

ORDERS = tuple(range(1, len(ORDER_WEIGHTS) + 1))
CHOICES: dict[str, tuple[Decision, ...]] = {
    "first_step": ("net", "zero"),
    "pred": PREDICTION.options,
    "order": ORDERS,
    "points": ORDERS[:-1],
    "corr": CORRECTOR.options,
}
TOKENS = {
    token: i
    for i, token in enumerate(((name, option) for name in CHOICES for option in CHOICES[name]), start=1)
}
"""Number of each choice; 0 stands for a decision that the plan does not have."""


class Ranker(nn.Module):
    """Scores plans of one space; lower is better, and nothing but the order has a meaning."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.space = space
        n_numbers = len(self._numbers({"gap_0": 1.0}, 0, [0.0]))
        self.of_numbers = nn.Sequential(nn.Linear(n_numbers, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.of_tokens = nn.Embedding(len(TOKENS) + 1, TOKEN_WIDTH, padding_idx=0)
        self.steps = nn.LSTM(WIDTH + len(CHOICES) * TOKEN_WIDTH, WIDTH, batch_first=True)
        self.head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))

    def encode(self, plans: Sequence[Decisions]) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers (B, T, F) and tokens (B, T, 5) of the steps, and the last step of each plan, (B,)."""
        numbers, tokens, last = [], [], []
        longest = self.space.nfe + 1
        for decisions in plans:
            n = self.space.nfe + (decisions.get("first_step") == "zero")
            starts = list(self._starts(decisions, n))
            numbers.append([self._numbers(decisions, i, starts) for i in range(longest)])
            tokens.append([_tokens(decisions, i) for i in range(longest)])
            last.append(n - 1)
        return torch.tensor(numbers), torch.tensor(tokens), torch.tensor(last)

    def _starts(self, decisions: Decisions, n: int) -> Iterator[float]:
        """Where the steps start, in shares of the range of log-SNR; the gaps alone say nothing, but their ratios."""
        end = (1 + float(decisions["end"])) / 2 if self.space.to_zero else 1.0
        gaps = [float(decisions[f"gap_{i}"]) for i in range(n - self.space.to_zero)]
        return (end * sum(gaps[:i]) / sum(gaps) for i in range(len(gaps) + 1))

    def _numbers(self, decisions: Decisions, i: int, starts: Sequence[float]) -> list[float]:
        """Start and log length of a step, and its scales less Taylor's; each with 1, or twice 0 where absent."""
        length = math.log(self.space.nfe * (starts[i + 1] - starts[i])) if i + 1 < len(starts) else None
        names = [*(f"scale_{i}_{k}" for k in ORDERS[: self.space.max_order - 1]), f"corr_scale_{i}"]
        scales = [float(decisions[name]) - 1 if name in decisions else None for name in names]
        values = [starts[i] if i < len(starts) else None, length, *scales]
        return [number for value in values for number in ((0.0, 0.0) if value is None else (value, 1.0))]

    def forward(self, numbers: Tensor, tokens: Tensor, last: Tensor) -> Tensor:
        """Scores (B,) of what `encode` gives."""
        steps = torch.cat([self.of_numbers(numbers), self.of_tokens(tokens).flatten(2)], 2)
        states, _ = self.steps(steps)
        scores: Tensor = self.head(states[torch.arange(len(last)), last])[:, 0]
        return scores


def _tokens(decisions: Decisions, i: int) -> list[int]:
    names = [(name, "first_step" if name == "first_step" and i == 0 else f"{name}_{i}") for name in CHOICES]
    return [TOKENS[kind, decisions[name]] if name in decisions else 0 for kind, name in names]


@dataclass(frozen=True)
class Fitted:
    """A trained ranker; `tau` is Kendall's rank correlation on the plans that it was not trained on."""

    ranker: Ranker
    tau: float

    def score(self, plans: Sequence[Decisions]) -> Tensor:
        """Of each plan, (len(plans),); lower is better."""
        with torch.no_grad():
            scores: Tensor = self.ranker(*self.ranker.encode(plans))
        return scores


def fit_ranker(
    space: Space, population: Sequence[tuple[Decisions, float]], *, seed: int, epochs: int = EPOCHS
) -> Fitted:
    """Train on four fifths of the plans tried so far, all pairs of them in each epoch.

    Args: population: decisions and scores, lower is better. seed: of the weights and of what is held out.
    Raises: ValueError: there are too few plans.
    """
    if len(population) < LEAST:
        raise ValueError(f"A ranker needs {LEAST} plans or more to learn from; got {len(population)}.")
    order = torch.randperm(len(population), generator=generator(seed, "ranker")).tolist()
    shuffled = [population[i] for i in order]
    held_out, seen = shuffled[: len(order) // 5], shuffled[len(order) // 5 :]
    with initial_weights(seed):
        ranker = Ranker(space)
    encoded = ranker.encode([decisions for decisions, _ in seen])
    worse = _differences(torch.tensor([score for _, score in seen], dtype=torch.float64)) > 0
    optimiser = torch.optim.Adam(ranker.parameters(), lr=LR)
    for _ in range(epochs):
        margins = (MARGIN - _differences(ranker(*encoded)))[worse]
        loss = margins.relu().sum() / max(len(margins), 1)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    guesses = Fitted(ranker, math.nan).score([decisions for decisions, _ in held_out])
    return Fitted(ranker, kendall_tau(guesses, torch.tensor([score for _, score in held_out])))


def _differences(values: Tensor) -> Tensor:
    return values[:, None] - values[None, :]


def kendall_tau(a: Tensor, b: Tensor) -> float:
    """Share of pairs ordered alike by both less that of those ordered otherwise: Kendall's tau-b."""
    signs_a, signs_b = _differences(a).sign().double(), _differences(b).sign().double()
    return float((signs_a * signs_b).sum() / (signs_a.abs().sum() * signs_b.abs().sum()).sqrt())


def propose_ranked(
    space: Space,
    population: Sequence[tuple[Decisions, float]],
    ranker: Fitted,
    *,
    rng: torch.Generator,
    pool: int = 16,
) -> Decisions:
    """The child that the ranker likes best among `pool` of `evolution.propose`."""
    children = [propose(space, population, rng=rng) for _ in range(pool)]
    return children[int(ranker.score(children).argmin())]
