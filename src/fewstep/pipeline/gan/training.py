"""From settings to networks and a trained generator."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from torch import nn

from fewstep.nets.dcgan import DCGANDiscriminator, DCGANGenerator
from fewstep.nets.generator import Generator
from fewstep.nets.resnet_gan import ResNetCritic, ResNetGenerator
from fewstep.nets.vitgan import ViTDiscriminator, ViTGenerator
from fewstep.pipeline.gan.settings import GanSettings
from fewstep.rng import initial_weights
from fewstep.train.adversarial import TTUR, AdversarialRecipe, train_adversarial
from fewstep.train.augment import Augmentation
from fewstep.train.batches import ImageSource
from fewstep.train.loop import Probe, State
from fewstep.train.world import World

Shape = tuple[int, int, int]


class Pair(NamedTuple):
    """A generator and its discriminator."""

    generator: Generator
    discriminator: nn.Module


def _dcgan(settings: GanSettings, shape: Shape) -> Pair:
    return Pair(
        DCGANGenerator(shape, settings.width, settings.latent), DCGANDiscriminator(shape, settings.width)
    )


def _resnet(settings: GanSettings, shape: Shape) -> Pair:
    return Pair(ResNetGenerator(shape, settings.width, settings.latent), ResNetCritic(shape, settings.width))


def _vitgan(settings: GanSettings, shape: Shape) -> Pair:
    size = {"depth": settings.depth, "heads": settings.heads, "patch": settings.patch}
    return Pair(
        ViTGenerator(shape, settings.width, settings.latent, **size),
        ViTDiscriminator(
            shape,
            settings.width,
            **size,
            overlap=None if settings.overlap else 0,
            attention=settings.attention,
            keeps_norms=settings.keeps_norms,
        ),
    )


NETWORKS: dict[str, Callable[[GanSettings, Shape], Pair]] = {
    "dcgan": _dcgan,
    "resnet": _resnet,
    "vitgan": _vitgan,
}


def untrained(settings: GanSettings, shape: Shape) -> Pair:
    """Both networks for images (C, H, W), their random weights decided by the seed.
    Raises: ConfigError: images that they cannot make.
    """
    assert settings.network is not None
    with initial_weights(settings.seed):
        return NETWORKS[settings.network](settings, shape)


def recipe_of(settings: GanSettings) -> AdversarialRecipe:
    """How the pair is trained.
    Raises: ConfigError: values that do not fit together.
    """
    return AdversarialRecipe(
        rates=TTUR(
            lr_g=settings.lr_g,
            lr_d=settings.lr_d,
            betas_g=(settings.betas_g[0], settings.betas_g[1]),
            betas_d=(settings.betas_d[0], settings.betas_d[1]),
            d_steps=settings.d_steps,
            warmup=settings.warmup,
            knee=settings.knee,
        ),
        steps=settings.steps,
        batch_size=settings.batch_size,
        seed=settings.seed,
        loss=settings.loss,
        r1=settings.r1,
        r2=settings.r2,
        gp=settings.gp,
        bcr=settings.bcr,
        augmentation=Augmentation(tuple(settings.augment), settings.augment_probability),
        ema_decay=settings.ema_decay,
        flip=settings.flip,
    )


def train_pair(
    pair: Pair,
    dataset: ImageSource,
    settings: GanSettings,
    *,
    measure: Probe | None,
    checkpoints: Path | None = None,
    metrics: Path | None = None,
    world: World | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> State:
    """Train a pair as the settings say; arguments as of `train_adversarial`."""
    return train_adversarial(
        dataset,
        pair.generator,
        pair.discriminator,
        recipe_of(settings),
        probe=measure,
        checkpoints=checkpoints,
        metrics=metrics,
        log_every=settings.log_every,
        checkpoint_seconds=settings.checkpoint_seconds,
        world=world,
        progress=progress,
    )
