"""The widths of a plan's network calls, evaluated: cost, distance to the full network's images, and to a reference."""

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
from fewstep.methods.ddsm.stage.settings import StepAwareSettings
from fewstep.methods.ddsm.widths import Widths, with_widths
from fewstep.metrics.extractor import Extractor
from fewstep.metrics.frechet import frechet
from fewstep.metrics.reference import Reference
from fewstep.metrics.statistics import Statistics
from fewstep.pareto import pareto
from fewstep.pipeline.conditions import identity_of
from fewstep.pipeline.measure import features_of
from fewstep.pipeline.seeds import SeedBlocks
from fewstep.sampling.plan import Plan, network_nodes
from fewstep.sampling.task import Task, batches, distances

INITIAL = ("uniform", "greedy", "additive")
ORIGINS = (*INITIAL, "nsga2", "random")
"""What proposed widths first, in the order in which they propose."""


def width_seeds(settings: StepAwareSettings) -> SeedBlocks:
    """Seeds of the images that widths are compared on, and of those that plans are chosen by."""
    sizes = {"search": settings.noises, "choice": settings.choice_images}
    return SeedBlocks(settings.seed, sizes, prefix="stepaware-")


@dataclass
class Evaluated:
    """What is known of some widths: `error` is infinite where a state was not finite."""

    origin: str
    error: float
    fd: float | None = None


class WidthSearch:
    """One search: a plan, a slimmable model, what a call costs, and all widths that were evaluated, each once.

    Args:
        task: the model, and how it is called.
        plan: whose calls get widths; at full width.
        table: cost of a call at each width.
        settings: of the search.
        work: folder from which an interrupted search resumes.
        reference, extractor: what the front is judged by; with an extractor errors are distances of features.

    Raises:
        ConfigError: the model has one width, the plan is not at full width or does not call the network, or `work` is
            of another search.
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
        require_full_width(plan)
        self.task, self.plan, self.table, self.settings = task, plan, table, settings
        self.reference, self.extractor = reference, extractor
        self.seeds = width_seeds(settings)
        self.n, self.k = len(network_nodes(plan)), len(table.widths)
        self.file = work / "evaluated.json"
        self.evaluated = self._read()

    def identity(self) -> dict[str, Any]:
        """All that an evaluation depends on."""
        conditions = identity_of(self.task.model)
        return {
            **({} if conditions is None else {"conditions": conditions}),
            "model": self.task.model.fingerprint,
            "plan": self.plan.hash,
            "guidance": self.task.guidance,
            "cost": asdict(self.table),
            "seeds": list(self.seeds.as_json().values()),
            "error_in": None if self.extractor is None else self.extractor.protocol,
            "reference": None if self.reference is None else self.reference.protocol,
        }

    def _read(self) -> dict[Widths, Evaluated]:
        if not self.file.exists():
            return {}
        kept = read_json(self.file)
        if canonical_json(kept["identity"]) != canonical_json(self.identity()):
            raise ConfigError(
                f"{self.file.parent} must be of this search, but it was made with other settings, model, plan or "
                "seeds; name another folder, or remove that one."
            )
        return {
            tuple(widths): Evaluated(origin, math.inf if error is None else error, fd)
            for widths, origin, error, fd in kept["seen"]
        }

    def _keep(self) -> None:
        rows = [
            [list(w), e.origin, e.error if math.isfinite(e.error) else None, e.fd]
            for w, e in self.evaluated.items()
        ]
        write_json(self.file, {"identity": self.identity(), "seen": rows})

    def share(self, widths: Widths) -> float:
        """Cost as a share of that at full width."""
        return total_cost(widths, self.plan, self.table) / total_cost((0,) * self.n, self.plan, self.table)

    def error(self, widths: Widths, origin: str) -> float:
        """Mean distance to the full network's images; measured once, and kept with what proposed the widths first."""
        if widths not in self.evaluated:
            self.evaluated[widths] = Evaluated(origin, self._error(widths))
            self._keep()
        return self.evaluated[widths].error

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
        parts = []
        for part in batches(self.seeds["search"], self.task.batch_size):
            x0 = self.task.solve(plan, part)
            parts.append(x0 if self.extractor is None else self.extractor.of_unit(self.task.images(x0)))
        return torch.cat(parts)

    def distance(self, widths: Widths) -> float:
        """Fréchet distance to the reference, on the seeds of the choice; infinite where a state was not finite."""
        assert self.reference is not None and self.extractor is not None
        evaluated = self.evaluated[widths]
        if evaluated.fd is None:
            plan = with_widths(self.plan, widths)
            try:
                features = features_of(self.task, plan, self.seeds["choice"], self.extractor)
            except DataError:
                return math.inf
            evaluated.fd = frechet(Statistics.from_features(features), self.reference.statistics).value
            self._keep()
        return evaluated.fd

    def front(self, origins: Sequence[str] = ORIGINS) -> list[Widths]:
        """The Pareto-optimal widths in cost and error, of all evaluated ones or of some origins: by rising cost."""
        among = [widths for widths, one in self.evaluated.items() if one.origin in origins]
        return [among[i] for i in pareto([(self.share(w), self.evaluated[w].error) for w in among])]

    def note(self) -> str:
        """The best so far, for a progress bar."""
        front = self.front()
        half = [self.evaluated[w].error for w in front if self.share(w) <= 0.5]
        best = f", error {min(half):.3g} at half the cost" if half else ""
        return f"front of {len(front)}{best}"


def require_full_width(plan: Plan) -> None:
    """Raise ConfigError where a plan has widths already, or no network calls."""
    if plan.uses_sub_networks or not network_nodes(plan):
        raise ConfigError(
            f"A plan whose calls get widths must call the network at full width; {plan.name or 'this one'} "
            f"{'has widths already' if plan.uses_sub_networks else 'does not call it'}; give the plan that it was "
            "made of."
        )


def cost_table(task: Task, settings: StepAwareSettings, file: Path) -> CostTable:
    """What a call costs at each width; times are measured once, and read from `file` at a later start."""
    if settings.cost == "macs":
        return macs(task.model, guidance=task.guidance)
    measured = {
        "model": task.model.fingerprint,
        "guidance": task.guidance,
        "batch_size": settings.latency_batch,
        "device": str(task.model.device),
    }
    left = read_json(file) if file.exists() else {}
    if left.get("asked") == measured:
        return CostTable("ms", tuple(left["widths"]), left["fixed"])
    table = latencies(task.model, batch_size=settings.latency_batch, guidance=task.guidance)
    write_json(file, {"asked": measured, "widths": list(table.widths), "fixed": table.fixed})
    return table
