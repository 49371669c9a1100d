"""Shapes in signatures are checked in the test run, and are plain types where jaxtyping is not installed."""

import subprocess
import sys

import jaxtyping
import numpy as np
import pytest
import torch
from checked import checked

from fewstep._typing import Float
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.prediction import target
from fewstep.diffusion.schedule import VPLinear
from fewstep.metrics.kid import mmd2
from fewstep.metrics.resize import bilinear_tf1
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import solve

MODEL = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.ones(1)).model(VPLinear())
WRONG = {
    "features of two widths": lambda: mmd2(np.ones((4, 3)), np.ones((5, 2))),
    "an image without a batch": lambda: bilinear_tf1(torch.ones(3, 8, 8), 4),
    "noise of another shape than data": lambda: target(
        "v", VPLinear(), torch.tensor(0.5), torch.ones(2, 3, 8, 8), torch.ones(2, 3, 8, 1)
    ),
    "noise without a batch": lambda: solve(MODEL, PRESETS["ddim"](VPLinear(), 2), torch.tensor(0.0)),
    "bytes for features": lambda: mmd2(np.ones((4, 3), np.uint8), np.ones((5, 3), np.uint8)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_shape_is_refused(wrong):
    with pytest.raises(jaxtyping.TypeCheckError):
        WRONG[wrong]()


def test_a_wrong_result_is_refused_and_right_shapes_pass():
    @jaxtyping.jaxtyped(typechecker=checked)
    def halved(x: Float[torch.Tensor, "n d"], keep: int) -> Float[torch.Tensor, "{keep} d"]:
        return x[: len(x) // 2]

    assert halved(torch.ones(4, 3), 2).shape == (2, 3)
    with pytest.raises(jaxtyping.TypeCheckError, match="return"):
        halved(torch.ones(4, 3), 3)


def test_without_jaxtyping_shapes_are_plain_types():
    code = (
        "import sys\nsys.modules['jaxtyping'] = None\nimport torch\n"
        "from fewstep import _typing\nfrom fewstep.metrics.kid import mmd2\n"
        "assert _typing.Images is torch.Tensor, _typing.Images\n"
        "print(mmd2.__annotations__['x'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "<class 'numpy.ndarray'>\n"
