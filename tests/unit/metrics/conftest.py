import sys

import pytest
import torch


@pytest.fixture(scope="session")
def torchvision_operators():
    """A torchvision built for another torch fails at import without two operators, which no test calls."""
    if "torchvision" not in sys.modules:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor boxes, Tensor scores, float t) -> Tensor")
