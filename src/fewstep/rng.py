"""Every random number of the project: seeds become generators here and nowhere else."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def generator(seed: int, *stream: int | str) -> torch.Generator:
    """A CPU generator of its own for each (seed, stream), so that draws of one purpose never shift another's."""
    if stream:
        text = "/".join(str(part) for part in (seed, *stream))
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(seed)


class ImageNoise:
    """Unit normal noise, one stream per image: batch size, device count and order never change an image.

    The first call draws x_T, the later ones the noises of stochastic steps.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self._generators = [generator(seed) for seed in seeds]

    def __call__(self) -> Tensor:
        """Draw (B, *shape), float32 on the CPU; row i depends on seeds[i] and the number of earlier calls alone."""
        noise = torch.empty(len(self._generators), *self.shape)
        for row, image_generator in zip(noise, self._generators, strict=True):
            torch.randn(self.shape, generator=image_generator, out=row)
        return noise


@contextmanager
def initial_weights(seed: int) -> Iterator[None]:
    """Make modules built inside draw their weights from `seed`; the global stream is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator(seed, "weights").get_state())
        yield
