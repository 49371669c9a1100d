import pytest
import torch

from fewstep.metrics import extractor, weights
from fewstep.metrics.inception import Inception2015


def random_state(net):
    """Weights that keep activations of order one through all layers."""
    rng = torch.Generator().manual_seed(0)
    state = {}
    for name, value in net.state_dict().items():
        if name.endswith("num_batches_tracked"):
            state[name] = value
        elif name.endswith("running_var"):
            state[name] = torch.rand(value.shape, generator=rng) + 0.5
        elif value.ndim == 4:
            fan_in = value[0].numel()
            state[name] = torch.randn(value.shape, generator=rng) * (2 / fan_in) ** 0.5
        elif name.endswith("bn.weight"):
            state[name] = torch.ones_like(value)
        else:
            state[name] = 0.1 * torch.randn(value.shape, generator=rng)
    return state


def images():
    rng = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, 32, 32), generator=rng, dtype=torch.uint8)


def test_parameters_are_those_of_the_public_file():
    """The public port: 94 convolutions with batch norm (6 tensors each), a linear layer of 1008 classes."""
    state = Inception2015().state_dict()
    assert len(state) == 94 * 6 + 2
    assert state["fc.weight"].shape == (1008, 2048)
    assert state["Mixed_7c.branch3x3dbl_3b.bn.running_var"].shape == (384,)


def test_loads_a_file_whose_hash_agrees(tmp_path, monkeypatch):
    net = Inception2015()
    net.load_state_dict(random_state(net))
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    monkeypatch.setattr(extractor.weights, "INCEPTION_2015", weights.INCEPTION_2015._replace(sha256=""))
    loaded = extractor.load_extractor("inception2015", path=tmp_path / "weights.pth")
    assert (loaded.id, loaded.dim, loaded.resize) == ("inception2015", 2048, "299/bilinear-tf1")
    with torch.inference_mode():
        expected = net.eval()(images())
    torch.testing.assert_close(loaded(images()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_features_are_those_of_torch_fidelity(torchvision_operators, tmp_path):
    """Same random weights in both; 1e-4 relative, for the convolutions sum in another order here."""
    pytest.importorskip("torch_fidelity", exc_type=ImportError)
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    ours = Inception2015()
    ours.load_state_dict(random_state(ours))
    torch.save(ours.state_dict(), tmp_path / "weights.pth")
    theirs = FeatureExtractorInceptionV3("inception", ["2048"], str(tmp_path / "weights.pth"))
    with torch.inference_mode():
        (expected,) = theirs(images())
        found = ours.eval()(images())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
