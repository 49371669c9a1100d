"""Train a generator against a discriminator on the shared loop, each with an optimiser and rates of its own.

The two time-scale update rule [heusel2017ttur]: two learning rates instead of several discriminator steps for each step
of the generator. Which side is to be the slower one depends on the networks, so that the ratio is tuned, not fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.checks import ConfigError
from fewstep.nets.generator import Generator
from fewstep.train.adversarial_losses import ADVERSARIAL, one_centred, zero_centred
from fewstep.train.augment import Augmentation, draw
from fewstep.train.batches import Batch, ImageSource, batch_settings, image_batches
from fewstep.train.denoiser import describe
from fewstep.train.descent import descend, slices
from fewstep.train.ema import Ema
from fewstep.train.loop import Diverged, LRSchedule, Probe, State, fit
from fewstep.train.world import World

GENERATOR, DISCRIMINATOR = "g", "d"
"""Names in the state; the log has lr_g and lr_d, and loss_g and loss_d."""
POWERS = {GENERATOR: 0.9, DISCRIMINATOR: 0.6}
"""Exponents of rates that fall as a power law: the generator's faster, so that it becomes the slower side."""


@dataclass(frozen=True, kw_only=True)
class TTUR:
    """Rates of the two sides.

    Attributes:
        lr_g: Learning rate of Adam for the generator.
        lr_d: Learning rate of Adam for the discriminator.
        betas_g: Of Adam for the generator.
        betas_d: Of Adam for the discriminator.
        d_steps: Steps of the discriminator for each of the generator.
        warmup: Steps of a linear rise of both rates.
        knee: Steps after which both rates begin to fall as power laws, with `POWERS`; None: they are constant.

    Raises:
        ConfigError: A value out of range, or a warm-up beside a power law.
    """

    lr_g: float
    lr_d: float
    betas_g: tuple[float, float] = (0.5, 0.999)
    betas_d: tuple[float, float] = (0.5, 0.999)
    d_steps: int = 1
    warmup: int = 0
    knee: int | None = None

    def __post_init__(self) -> None:
        if not (self.lr_g > 0 and self.lr_d > 0):
            raise ConfigError(f"both learning rates must be above 0; got {self.lr_g} and {self.lr_d}.")
        if any(not 0.0 <= beta < 1.0 for beta in (*self.betas_g, *self.betas_d)):
            raise ConfigError(
                f"betas of Adam must lie in [0, 1); got {list(self.betas_g)} and {list(self.betas_d)}."
            )
        if self.d_steps < 1:
            raise ConfigError(
                f"there must be 1 discriminator step or more for each generator step; got {self.d_steps}."
            )
        if self.knee is not None and (self.knee < 1 or self.warmup):
            raise ConfigError(
                f"rates that fall as a power law need a knee of 1 step or more and no warm-up; got {self.knee} and "
                f"{self.warmup}."
            )

    def schedule(self, steps: int, side: str) -> LRSchedule:
        """That of one side, "g" or "d"."""
        if self.knee is None:
            return LRSchedule(steps, self.warmup)
        return LRSchedule(steps, shape="power", knee=self.knee, power=POWERS[side])

    def optimiser(self, net: nn.Module, side: str) -> torch.optim.Optimizer:
        """That of one side."""
        lr, (beta1, beta2) = (self.lr_g, self.betas_g) if side == GENERATOR else (self.lr_d, self.betas_d)
        return torch.optim.Adam(net.parameters(), lr=lr, betas=(float(beta1), float(beta2)), fused=True)


@dataclass(frozen=True, kw_only=True)
class AdversarialRecipe:
    """A training of a generator, but for its images and the two networks.

    Attributes:
        rates: Of the two sides.
        steps: Of the generator.
        batch_size: Images per step of the discriminator, over all processes.
        seed: Of the order of the images, latent vectors and augmentation; not of the networks' weights.
        loss: One of `ADVERSARIAL`.
        r1: Factor on half the squared gradient norm at real images, as the discriminator sees them.
        r2: The same at generated images.
        gp: Factor on the gradient penalty between real and generated images.
        bcr: Factor on squared differences of logits under augmentation, of real and of generated images [zhao2021bcr].
        augmentation: Of all images that the discriminator sees.
        ema_decay: Largest decay per step of the generator's averaged weights; 0: they are the generator's own.
        flip: Mirror half of the real images.
        clip: Largest gradient norm; None: no clipping.

    Raises:
        ConfigError: An unknown loss, a negative factor, or consistency under an augmentation that changes nothing.
    """

    rates: TTUR
    steps: int
    batch_size: int
    seed: int
    loss: str = "non-saturating"
    r1: float = 0.0
    r2: float = 0.0
    gp: float = 0.0
    bcr: float = 0.0
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(kinds=()))
    ema_decay: float = 0.0
    flip: bool = False
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.loss not in ADVERSARIAL:
            raise ConfigError(f"the adversarial loss must be {' or '.join(ADVERSARIAL)}; got {self.loss!r}.")
        for name in ("r1", "r2", "gp", "bcr"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or more; got {getattr(self, name)}.")
        if self.bcr > 0 and self.augmentation.is_identity:
            raise ConfigError(
                f"bcr compares images with augmented ones, but nothing is augmented; set it to 0, not {self.bcr}, or "
                "name augmentations."
            )

    def settings(self) -> dict[str, Any]:
        """What a checkpoint must agree with, but for the learning-rate schedules and the batches."""
        rates = {
            name: getattr(self.rates, name) for name in ("lr_g", "lr_d", "betas_g", "betas_d", "d_steps")
        }
        names = ("loss", "r1", "r2", "gp", "bcr", "ema_decay", "clip")
        return {
            **rates,
            **{name: getattr(self, name) for name in names},
            "augmentation": self.augmentation.config(),
        }


def train_adversarial(
    dataset: ImageSource,
    generator: Generator,
    discriminator: nn.Module,
    recipe: AdversarialRecipe,
    *,
    probe: Probe | None = None,
    checkpoints: str | Path | None = None,
    metrics: str | Path | None = None,
    until: int | None = None,
    log_every: int = 10,
    checkpoint_every: int | None = None,
    checkpoint_seconds: float = 60.0,
    world: World | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> State:
    """Train a generator to make images like those of `dataset`; on the device where the networks are.

    Args:
        dataset: The images.
        generator: Changed in place.
        discriminator: `discriminator(x0) -> logits (B,)`. Changed in place.
        recipe: How.
        probe: What is measured on the way.
        checkpoints: Folder of the checkpoints, as all that follows for `fit`.
        metrics: JSONL file of the averages over every `log_every` steps.
        until: Stop early at this step.
        log_every: Steps over which logged values are averaged.
        checkpoint_every: Steps between checkpoints.
        checkpoint_seconds: Seconds between checkpoints when `checkpoint_every` is None.
        world: The processes that train together.
        progress: Wraps the steps to report on them.

    Returns:
        The state; `state.ema["g"].net` is the generator with averaged weights.

    Raises:
        ConfigError: A setting that cannot work, or a checkpoint of other settings.
        DataError: A damaged checkpoint. Diverged: training that diverged, with the layer of the largest spectral norm.
    """
    world = World() if world is None else world
    rates, size = recipe.rates, recipe.batch_size
    device = next(generator.parameters()).device
    game = _Game(generator, discriminator, recipe, world)
    batches = image_batches(
        dataset,
        batch_size=size,
        seed=recipe.seed,
        flip=recipe.flip,
        rank=world.rank,
        world_size=world.size,
        device=device,
    )
    state = State(
        {GENERATOR: generator, DISCRIMINATOR: discriminator},
        {
            DISCRIMINATOR: rates.optimiser(discriminator, DISCRIMINATOR),
            GENERATOR: rates.optimiser(generator, GENERATOR),
        },
        {GENERATOR: Ema(generator, decay=recipe.ema_decay)},
    )
    try:
        return fit(
            state,
            game.step,
            _several(batches, rates.d_steps),
            lr_schedule=LRSchedule(recipe.steps),
            lr_schedules={side: rates.schedule(recipe.steps, side) for side in POWERS},
            probe=probe,
            seed=recipe.seed,
            settings={
                **recipe.settings(),
                "g": describe(generator),
                "d": describe(discriminator),
                **batch_settings(dataset, batch_size=size, flip=recipe.flip),
            },
            checkpoints=checkpoints,
            metrics=metrics,
            until=until,
            log_every=log_every,
            checkpoint_every=checkpoint_every,
            checkpoint_seconds=checkpoint_seconds,
            world=world,
            progress=progress,
        )
    except Diverged as error:
        layer, norm = largest_spectral_norm(discriminator)
        raise Diverged(
            f"{error} Largest spectral norm of the discriminator: {norm:.4g}, of {layer}."
        ) from None


def _several(batches: Callable[[int], Batch], n: int) -> Callable[[int], Batch]:
    """N batches as one, a part after the other; `rows` are those of each part."""

    def at(step: int) -> Batch:
        parts = [batches(step * n + k) for k in range(n)]
        x0 = parts[0].x0 if n == 1 else torch.cat([part.x0 for part in parts])
        return Batch(x0, None, n * parts[0].size, parts[0].rows)

    return at


@dataclass(frozen=True)
class _Game:
    """One step of both sides."""

    generator: Generator
    discriminator: nn.Module
    recipe: AdversarialRecipe
    world: World

    def step(self, state: State, batch: Batch, *, rng: torch.Generator) -> Mapping[str, Tensor]:
        """The steps of the discriminator, each on its share of the batch, then that of the generator.

        The generator's step uses the images of the last step of the discriminator.
        """
        n = self.recipe.rates.d_steps
        values: dict[str, Tensor] = {}
        for k, rows in enumerate(slices(len(batch.x0), n)):
            last = k + 1 == n
            size = batch.size // n
            part = Batch(batch.x0[rows], None, size, batch.rows)
            z = part.cut(torch.randn(size, self.generator.latent, generator=rng))
            with torch.set_grad_enabled(last):
                fake = self.generator.images(z)
            values = self._discriminator_step(state, part, fake.detach(), rng)
        return values | self._generator_step(state, part, fake, rng)

    def _discriminator_step(
        self, state: State, batch: Batch, fake: Tensor, rng: torch.Generator
    ) -> dict[str, Tensor]:
        recipe, net = self.recipe, self.discriminator
        real_in = recipe.augmentation(batch.x0, batch.cut(draw(batch.size, rng=rng)))
        fake_in = recipe.augmentation(fake, batch.cut(draw(batch.size, rng=rng)))
        share = batch.cut(torch.rand(batch.size, generator=rng))
        net.requires_grad_(True)
        seen: dict[str, Tensor] = {}

        def loss(rows: slice) -> Tensor:
            real, of_real = zero_centred(net, real_in[rows]) if recipe.r1 else (net(real_in[rows]), None)
            fake_logits, of_fake = (
                zero_centred(net, fake_in[rows]) if recipe.r2 else (net(fake_in[rows]), None)
            )
            penalty = torch.zeros_like(real)
            if of_real is not None:
                penalty = penalty + recipe.r1 * of_real
            if of_fake is not None:
                penalty = penalty + recipe.r2 * of_fake
            if recipe.gp:
                penalty = penalty + recipe.gp * one_centred(net, real_in[rows], fake_in[rows], share[rows])
            if recipe.bcr:
                moved = (net(batch.x0[rows]) - real).square() + (net(fake[rows]) - fake_logits).square()
                penalty = penalty + recipe.bcr * moved
            seen.update(d_real=real.detach(), d_fake=fake_logits.detach(), penalty=penalty.detach())
            return ADVERSARIAL[recipe.loss].of_discriminator(real, fake_logits) + penalty

        made = descend(
            loss, net, state.optimisers[DISCRIMINATOR], size=batch.size, world=self.world, clip=recipe.clip
        )
        means = {name: self.world.mean(value.mean()) for name, value in seen.items()}
        return {
            "loss_d": made["loss"],
            **means,
            "gap": means["d_real"] - means["d_fake"],
            "grad_norm_d": made["grad_norm"],
        }

    def _generator_step(
        self, state: State, batch: Batch, fake: Tensor, rng: torch.Generator
    ) -> dict[str, Tensor]:
        recipe, net = self.recipe, self.discriminator
        fake_in = recipe.augmentation(fake, batch.cut(draw(batch.size, rng=rng)))
        paired = recipe.loss == "relativistic"
        real_in = recipe.augmentation(batch.x0, batch.cut(draw(batch.size, rng=rng))) if paired else batch.x0
        net.requires_grad_(False)

        def loss(rows: slice) -> Tensor:
            real = net(real_in[rows]) if paired else torch.zeros((), device=fake.device)
            return ADVERSARIAL[recipe.loss].of_generator(real, net(fake_in[rows]))

        made = descend(
            loss,
            self.generator,
            state.optimisers[GENERATOR],
            size=batch.size,
            world=self.world,
            clip=recipe.clip,
        )
        net.requires_grad_(True)
        return {"loss_g": made["loss"], "grad_norm_g": made["grad_norm"]}


@torch.no_grad()
def spectral_norms(net: nn.Module) -> dict[str, float]:
    """Largest singular value of each weight of a linear layer or a convolution, as a matrix of its outputs."""
    found = {}
    training = net.training
    net.eval()  # normalised weights keep their estimates
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            weight = module.weight.detach().flatten(1).double()
            # singular values of what is not finite are not defined
            finite = bool(weight.isfinite().all())
            found[name] = float(torch.linalg.matrix_norm(weight, 2)) if finite else float("inf")
    net.train(training)
    return found


def largest_spectral_norm(net: nn.Module) -> tuple[str, float]:
    """The layer with the largest one, and its value; a network without such layers has ("no layer", 0)."""
    norms = spectral_norms(net)
    return max(norms.items(), key=lambda item: item[1]) if norms else ("no layer", 0.0)
