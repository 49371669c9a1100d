"""What is seen of the ways to narrow a plan: cost, distance to the full network's images, and to a reference."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.checks import ConfigError, DataError
from fewstep.files import canonical_json, read_json, write_json
from fewstep.methods.ddsm.cost import CostTable, latencies, macs, require_slimmable, total_cost
from fewstep.methods.ddsm.widths import Widths, network_nodes, pareto, with_widths
from fewstep.metrics.extractor import Extractor
from fewstep.metrics.frechet import frechet
from fewstep.metrics.reference import Reference
from fewstep.metrics.statistics import Statistics
from fewstep.pipeline.config import StepAwareSettings
from fewstep.pipeline.measure import features_of
from fewstep.pipeline.seeds import require_disjoint
from fewstep.sampling.plan import Plan
from fewstep.sampling.task import Task, batches, distances

SEED_BLOCK = 1_000_000  # seeds of one purpose
START = ("uniform", "greedy", "additive")
ORIGINS = (*START, "nsga2", "random")
"""Who asked for a plan first, in the order in which they ask."""


@dataclass(frozen=True)
class Seeds:
    """Which images a search looks at; all are refused for evaluation."""

    search: range
    choice: range

    def __post_init__(self) -> None:
        require_disjoint(vars(self))

    @classmethod
    def of(cls, settings: StepAwareSettings) -> "Seeds":
        """Blocks one after another."""
        first, second = settings.seed, settings.seed + SEED_BLOCK
        return cls(range(first, first + settings.noises), range(second, second + settings.choice_images))


@dataclass
class Seen:
    """What is known of one way to narrow the plan: `error` is infinite where a state was not finite."""

    origin: str
    error: float
    fd: float | None = None


class StepAware:
    """One search: a plan, a slimmable model, what a call costs, and all that was evaluated, each plan once.

    Args:
        task: the model, and how it is asked.
        plan: what to narrow, at full width.
        table: cost of a call at each width.
        settings: of the search.
        work: folder of what a later start goes on from.
        reference, extractor: what the front is judged by; with an extractor errors are distances of features.

    Raises:
        ConfigError: the model has one width, the plan is not at full width, does not ask the network, or `work` is of
            another search.
    """

    def __init__(
        self,
        task: Task,
        plan: Plan,
        table: CostTable,
        settings: StepAwareSettings,
        work: Path,
        *,
        reference: Reference | None = None,
        extractor: Extractor | None = None,
    ) -> None:
        require_slimmable(task.model)
        require_full(plan)
        self.task, self.plan, self.table, self.settings = task, plan, table, settings
        self.reference, self.extractor = reference, extractor
        self.seeds = Seeds.of(settings)
        self.n, self.k = len(network_nodes(plan)), len(table.widths)
        self.file = work / "evaluated.json"
        self.seen = self._read()

    def identity(self) -> dict[str, Any]:
        """All that what is seen of a plan depends on."""
        return {
            "model": self.task.model.fingerprint,
            "plan": self.plan.hash,
            "guidance": self.task.guidance,
            "cost": asdict(self.table),
            "seeds": [[block[0], block[-1]] for block in vars(self.seeds).values()],
            "error_in": None if self.extractor is None else self.extractor.protocol,
            "reference": None if self.reference is None else self.reference.protocol,
        }

    def _read(self) -> dict[Widths, Seen]:
        if not self.file.exists():
            return {}
        kept = read_json(self.file)
        if canonical_json(kept["identity"]) != canonical_json(self.identity()):
            raise ConfigError(
                f"{self.file.parent} must be of this search, but it was made with other settings, model, plan or "
                "seeds; name another folder, or remove that one."
            )
        return {
            tuple(widths): Seen(origin, math.inf if error is None else error, fd)
            for widths, origin, error, fd in kept["seen"]
        }

    def _keep(self) -> None:
        rows = [
            [list(w), s.origin, s.error if math.isfinite(s.error) else None, s.fd]
            for w, s in self.seen.items()
        ]
        write_json(self.file, {"identity": self.identity(), "seen": rows})

    def share(self, widths: Widths) -> float:
        """Cost as a share of that at full width."""
        return total_cost(widths, self.plan, self.table) / total_cost((0,) * self.n, self.plan, self.table)

    def error(self, widths: Widths, origin: str) -> float:
        """Mean distance to the full network's images; measured once, and remembered with who asked first."""
        if widths not in self.seen:
            self.seen[widths] = Seen(origin, self._error(widths))
            self._keep()
        return self.seen[widths].error

    def _error(self, widths: Widths) -> float:
        full = self._full  # first: where it is not finite itself, nothing can be said
        try:
            images = self._images(with_widths(self.plan, widths))
        except DataError:  # a state was not finite
            return math.inf
        mean = float(distances(images, full).mean())
        return mean if math.isfinite(mean) else math.inf

    @cached_property
    def _full(self) -> Tensor:
        return self._images(self.plan)

    @torch.no_grad()
    def _images(self, plan: Plan) -> Tensor:
        """What the plan makes of the search's noises; features of it where there is an extractor."""
        made = []
        for part in batches(self.seeds.search, self.task.batch_size):
            x0 = self.task.solve(plan, part)
            made.append(x0 if self.extractor is None else self.extractor.of_unit(self.task.images(x0)))
        return torch.cat(made)

    def distance(self, widths: Widths) -> float:
        """Fréchet distance to the reference, on the seeds of the choice; infinite where a state was not finite."""
        assert self.reference is not None and self.extractor is not None
        seen = self.seen[widths]
        if seen.fd is None:
            plan = with_widths(self.plan, widths)
            try:
                made = features_of(self.task, plan, self.seeds.choice, self.extractor)
            except DataError:
                return math.inf
            seen.fd = frechet(Statistics.from_features(made), self.reference.statistics).value
            self._keep()
        return seen.fd

    def front(self, origins: Sequence[str] = ORIGINS) -> list[Widths]:
        """Of all that was evaluated, or of some origins, what nothing betters in cost and error: cheapest first."""
        found = [widths for widths, seen in self.seen.items() if seen.origin in origins]
        return [found[i] for i in pareto([(self.share(w), self.seen[w].error) for w in found])]

    def note(self) -> str:
        """The best so far, for a progress bar."""
        front = self.front()
        half = [self.seen[w].error for w in front if self.share(w) <= 0.5]
        best = f", error {min(half):.3g} at half the cost" if half else ""
        return f"front of {len(front)}{best}"


def require_full(plan: Plan) -> None:
    """Raise ConfigError where a plan is narrowed already, or has nothing to narrow."""
    if plan.narrows or not network_nodes(plan):
        raise ConfigError(
            f"A plan to be narrowed must ask the network at full width; {plan.name or 'this one'} "
            f"{'has widths already' if plan.narrows else 'does not ask it'}; give the plan that it was made of."
        )


def cost_table(task: Task, settings: StepAwareSettings, file: Path) -> CostTable:
    """What a call costs at each width; times are measured once, and read from `file` at a later start."""
    if settings.cost == "macs":
        return macs(task.model, guidance=task.guidance)
    asked = {
        "model": task.model.fingerprint,
        "guidance": task.guidance,
        "batch_size": settings.latency_batch,
        "device": str(task.model.device),
    }
    left = read_json(file) if file.exists() else {}
    if left.get("asked") == asked:
        return CostTable("ms", tuple(left["widths"]), left["fixed"])
    table = latencies(task.model, batch_size=settings.latency_batch, guidance=task.guidance)
    write_json(file, {"asked": asked, "widths": list(table.widths), "fixed": table.fixed})
    return table
