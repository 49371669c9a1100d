import sys

import numpy as np
import pytest
import torch

from fewstep.metrics.inception import INPUTS, Inception2015


@pytest.fixture(scope="session")
def torchvision_operators():
    """A torchvision built for another torch fails at import without two operators, which no test calls."""
    if "torchvision" not in sys.modules:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor boxes, Tensor scores, float t) -> Tensor")


@pytest.fixture(scope="session")
def smooth_images():
    """Seed, gain and number -> (n, 3, 32, 32) uint8 blobs, not noise: their features differ from image to image."""

    def draw(seed, gain, n):
        coarse = torch.from_numpy(np.random.default_rng(seed).uniform(0, 255, (n, 3, 4, 4)) * gain)
        return torch.nn.functional.interpolate(coarse, size=32, mode="bilinear").round().to(torch.uint8)

    return draw


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory, smooth_images):
    """A file of random weights; norms are calibrated, so that features vary through all layers."""
    rng = torch.Generator().manual_seed(0)
    net = Inception2015().requires_grad_(False)
    for value in net.state_dict().values():
        if value.ndim > 1:
            value.copy_(torch.randn(value.shape, generator=rng) * (2 / value[0].numel()) ** 0.5)
    norms = [part for part in net.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    net.train()(INPUTS["299/bilinear-tf1"](smooth_images(0, 1, 24).float()))
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(net.state_dict(), path)
    return path
