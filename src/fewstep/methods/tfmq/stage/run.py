"""Plans quantised: integers, then the solver's coefficients fitted again, gated on images that no fit saw.

What a quantised plan is to be near to is its parent in floats: the same images from the same noises.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.checks import ConfigError, DataError
from fewstep.files import canonical_json, read_json, sha256_text, write_json
from fewstep.methods.tfmq.calibration import FEW, Call, record
from fewstep.methods.tfmq.drift import corrected, error_variances
from fewstep.methods.tfmq.kept import Kept
from fewstep.methods.tfmq.quantise import Recipe, Report, quantise
from fewstep.methods.tfmq.stage.settings import QuantizeSettings
from fewstep.nets.integers import Integers
from fewstep.nets.quantised import Bits
from fewstep.pipeline.conditions import rows_used
from fewstep.pipeline.seeds import SeedBlocks
from fewstep.progress import Track
from fewstep.sampling.descent import polish, trajectory_gradient
from fewstep.sampling.free import FreePlan
from fewstep.sampling.plan import Plan
from fewstep.sampling.quantised import attached
from fewstep.sampling.task import Task, distances

SURE = 2.0  # standard errors by which new coefficients must be better on unseen noises
CORRECTION_RUNS = 5  # as Q-Drift has in practice


def quantisation_seeds(settings: QuantizeSettings) -> SeedBlocks:
    """Seeds of the images of a quantisation, by purpose."""
    size = settings.polish_noises if settings.polish_iterations else 0
    return SeedBlocks(
        settings.seed,
        {
            "calibration": settings.noises,
            "fit": settings.polish_iterations * size,
            "validation": 2 * size,
            "gate": settings.gate_noises,
        },
        prefix="quantize-",
    )


@dataclass(frozen=True)
class Quantised:
    """What came out: a plan, which names its integers, and these."""

    plan: Plan
    integers: Integers

    @property
    def record(self) -> dict[str, Any]:
        """How it was made, and how far it is from its parent."""
        found: dict[str, Any] = self.plan.provenance["quantize"]
        return found


class Quantising:
    """The quantisation of one plan, in any bits and by any method.

    Args:
        task: model, guidance and batch size.
        plan: in floats.
        settings: of the quantisation.
        work: folder from which an interrupted quantisation resumes.
        track: makes progress bars.

    Raises: ConfigError: the plan has no more than a few trajectories to be calibrated on.
    """

    def __init__(
        self, task: Task, plan: Plan, settings: QuantizeSettings, work: Path, *, track: Track
    ) -> None:
        self.task, self.plan, self.settings, self.track = task, plan, settings, track
        self.seeds, self.work, self.name = quantisation_seeds(settings), work, plan.name or "plan"
        self._made: dict[str, Tensor] = {}

    @property
    def warnings(self) -> list[str]:
        """What is worth saying before the work starts."""
        if self.settings.noises < FEW:
            return [f"{self.settings.noises} noises are few: ranges are more certain from {FEW} on"]
        return []

    def recipes(self) -> list[Recipe]:
        """All bits by all methods."""
        s = self.settings
        return [
            Recipe(
                Bits.parse(bits), method, s.fsc_scope, s.weight_scheme, s.range_search, tuple(s.keep),
                s.iterations, s.temporal_iterations, s.lr, s.block_batch, s.seed,
            )
            for bits in s.bits
            for method in s.methods
        ]  # fmt: skip

    @cached_property
    def calls(self) -> list[Call]:
        """What the plan's calls are given in floats."""
        return record(self.task, self.plan, self.seeds["calibration"])

    def run(self, recipe: Recipe) -> Quantised:
        """Quantise by one recipe.
        Raises: ConfigError: unknown layers. DataError: what cannot be quantised.
        """
        label = f"{self.name} {recipe.bits} {recipe.method}"
        integers, report = quantise(
            self.task,
            self.plan,
            recipe,
            seeds=self.seeds["calibration"],
            calls=self.calls,
            kept=Kept(self.work, self._identity(recipe)),
            progress=lambda what, steps: self.track(f"{what} {label}", unit="step")(steps),
        )
        plain = with_bits(self.plan, integers)
        plan, fits = self._refitted(plain, integers, recipe)
        return Quantised(self._signed(plan, recipe, report, integers, fits), integers)

    def _identity(self, recipe: Recipe) -> str:
        task = self.task
        made_of = [
            task.model.fingerprint,
            self.plan.hash,
            task.guidance,
            self.settings.noises,
            task.batch_size,
        ]
        return f"{canonical_json(made_of)} {recipe}"

    # the coefficients again

    def _refitted(self, plain: Plan, integers: Integers, recipe: Recipe) -> tuple[Plan, dict[str, Any]]:
        """The plan with coefficients fitted to its integers where that is better for sure, and what was tried."""
        task = replace(self.task, model=attached(self.task.model, integers))
        base = self._errors(task, plain)
        record: dict[str, Any] = {"plain": _said(base), "chosen": "plain"}
        tried = self._tried(task, plain, integers, recipe)
        best, chosen = float(base.mean()), plain
        for name, plan in tried.items():
            try:
                errors = self._errors(task, plan)
            except DataError:  # a state that is not finite
                continue
            by = errors - base
            error = float(by.std()) / math.sqrt(len(by))
            better = float(by.mean()) < -SURE * error
            record[name] = {**_said(errors), "better": better}
            if better and name == "polished" and float(errors.mean()) < best:
                best, chosen, record["chosen"] = float(errors.mean()), plan, name
        return chosen, record

    def _tried(self, task: Task, plain: Plan, integers: Integers, recipe: Recipe) -> dict[str, Plan]:
        found: dict[str, Plan] = {}
        try:
            variances = error_variances(task.model, plain, self.calls, rows=CORRECTION_RUNS)
            found["drift"] = replace(corrected(task.model, plain, variances), provenance=plain.provenance)
        except ConfigError:  # stochastic, or evaluated twice at a node: no linear form
            return {}
        if self.settings.polish_iterations:
            found["polished"] = self._polished(task, plain, recipe)
        return found

    def _polished(self, task: Task, plain: Plan, recipe: Recipe) -> Plan:
        """All coefficients and node times moved by gradients towards the parent's images.

        The conditioning timesteps stay, for which the network was quantised.
        """
        settings = self.settings
        nodes = tuple(
            replace(n, t_cond=n.t if n.t_cond is None else n.t_cond) if n.eval == "net" else n
            for n in plain.nodes
        )
        free = FreePlan(replace(plain, nodes=nodes), task.model.schedule)
        key = sha256_text(f"{self._identity(recipe)} {plain.hash} {settings.model_dump(mode='json')}")
        file = self.work / f"polish.{key[:16]}.json"
        if file.exists():
            free.load_numbers(read_json(file))
        else:
            fit = self._parents(self.seeds["fit"])
            first, n = self.seeds["fit"][0], settings.polish_noises

            def off(x0: Tensor, part: Sequence[int]) -> Tensor:
                return distances(x0, fit[part[0] - first : part[-1] - first + 1])

            polish(
                free,
                trajectory_gradient(task, off),
                lambda i: self.seeds["fit"][i * n : (i + 1) * n],
                lambda plan: float(self._errors(task, plan, "validation").mean()),
                iterations=settings.polish_iterations,
                lr=settings.polish_lr,
                checks=3,
                progress=self.track(f"polish {self.name} {recipe.bits} {recipe.method}", unit="step"),
            )
            write_json(file, free.numbers_now())
        moved = free.plan()
        return plain if moved.hash == free.form.hash else replace(moved, provenance=plain.provenance)

    def _parents(self, seeds: Sequence[int]) -> Tensor:
        with torch.no_grad():
            return self.task.solve(self.plan, seeds)

    def _targets(self, purpose: str) -> Tensor:
        if purpose not in self._made:
            self._made[purpose] = self._parents(self.seeds[purpose])
        return self._made[purpose]

    def _errors(self, task: Task, plan: Plan, purpose: str = "gate") -> Tensor:
        """Distance of each image to the parent's of the same noise."""
        with torch.no_grad():
            return distances(task.solve(plan, self.seeds[purpose]), self._targets(purpose))

    # the record

    def _signed(
        self,
        plan: Plan,
        recipe: Recipe,
        report: Report,
        integers: Integers,
        fits: dict[str, Any],
    ) -> Plan:
        parent, model = self.plan, self.task.model
        suffix = str(recipe.bits) if recipe.method == "tfmq" else f"{recipe.bits}.{recipe.method}"
        dim = math.prod(model.shape)
        found = {
            "bits": str(recipe.bits),
            "method": recipe.method,
            "fsc_scope": recipe._scope,
            "mse": fits[fits["chosen"]]["squared"] / dim,
            "fits": {
                name: ({**f, "mse": f["squared"] / dim} if isinstance(f, dict) else f)
                for name, f in fits.items()
            },
            **report.as_json(),
            "bytes": _bytes(model, integers),
            "float_bytes": _bytes(model, None),
            "settings": self.settings.model_dump(mode="json"),
        }
        seeds = self.seeds.as_json()
        return replace(
            plan,
            name=f"{self.name}.{suffix}",
            fingerprint=model.fingerprint,
            guidance=self.task.guidance
            if parent.guidance is None and self.task.guidance != 1
            else parent.guidance,
            provenance={
                **parent.provenance,
                "sampler": f"{parent.sampler}+{suffix.replace('.', '-')}",
                "parents": [parent.hash],
                "quantize": found,
                "seeds": {**parent.provenance.get("seeds", {}), **seeds},
                **rows_used(model, seeds, parent.provenance),
            },
        )


def with_bits(plan: Plan, integers: Integers) -> Plan:
    """The plan whose calls are made with these integers."""
    bits = str(integers.bits)
    nodes = tuple(replace(node, quant=bits) if node.eval == "net" else node for node in plan.nodes)
    return replace(plan, nodes=nodes, integers=integers.sha256, fingerprint=integers.fingerprint)


def _said(errors: Tensor) -> dict[str, float]:
    return {"distance": float(errors.mean()), "squared": float(errors.pow(2).mean())}


def _bytes(model: Any, integers: Integers | None) -> int:
    """Of all networks that a plan calls: floats of 4 bytes, and integers as they are stored."""
    widths = {0} if integers is None else set(integers.widths)
    quantised = {} if integers is None else integers.codes
    total = 0 if integers is None else integers.nbytes
    for width in widths:
        net = model.module(width)
        own = {f"{layer}.weight" for w, layer in quantised if w == width}
        total += sum(4 * p.numel() for name, p in net.named_parameters() if name not in own)
    return total


def chosen_parent(plans: Iterable[Plan], nfe: int | None) -> list[Plan]:
    """The plans to quantise: all that are given; with a number of calls the best of as many.

    That is the one that a final comparison chose, else the one with the least distance in it, else the first.
    Raises: ConfigError: no plan makes as many calls.
    """
    floats = [plan for plan in plans if plan.integers is None]
    if nfe is None:
        return floats
    fitting = [plan for plan in floats if plan.nfe == nfe]
    if not fitting:
        raise ConfigError(
            f"There must be a plan of {nfe} network calls to quantise; got "
            f"{', '.join(one.name for one in floats) or 'none'}."
        )

    def rank(plan: Plan) -> tuple[bool, float]:
        composed = plan.provenance.get("composed", {})
        return not composed.get("winner", False), float(composed.get("fd", math.inf))

    return [min(fitting, key=rank)]
