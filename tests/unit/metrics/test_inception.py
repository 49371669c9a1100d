import pytest
import torch

from fewstep.metrics import extractor, weights
from fewstep.metrics.inception import INPUTS, Inception2015


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


@pytest.fixture(scope="module")
def weight_file(tmp_path_factory):
    net = Inception2015()
    net.load_state_dict(random_state(net))
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture
def any_hash(monkeypatch):
    monkeypatch.setattr(extractor.weights, "INCEPTION_2015", weights.INCEPTION_2015._replace(sha256=""))


def unfolded(path, tap="pool3"):
    net = Inception2015(tap)
    net.load_state_dict(torch.load(path))
    return net.eval().requires_grad_(False)


def close(found, expected, relative):
    torch.testing.assert_close(found, expected, rtol=0, atol=relative * expected.abs().max().item())


@pytest.mark.parametrize(
    "name, dim, resize, tap",
    [
        ("inception2015", 2048, "299/bilinear-tf1", "pool3"),
        ("inception2015-spatial", 2023, "299/bilinear-tf1", "spatial"),
        ("inception2015-clean", 2048, "299/bicubic-aa", "pool3"),
        ("inception2015-halfpixel", 2048, "299/bilinear", "pool3"),
    ],
)
def test_folded_network_is_the_published_one(name, dim, resize, tap, weight_file, any_hash):
    """Batch norms apart, as the file has them; 1e-5 of the largest feature, float32 through a hundred layers."""
    loaded = extractor.load_extractor(name, path=weight_file)
    assert (loaded.id, loaded.dim, loaded.resize) == (name, dim, resize)
    expected = unfolded(weight_file, tap)(INPUTS[resize](images().float()))
    close(loaded(images()), expected, 1e-5)


@pytest.mark.slow
def test_openvino_gives_the_features_of_torch(weight_file, any_hash):
    """1e-5 of the largest feature, as between two orders of summation in PyTorch."""
    pytest.importorskip("openvino")
    ours, other = (
        extractor.load_extractor("inception2015", path=weight_file, backend=name)
        for name in ("torch", "openvino")
    )
    close(other(images()), ours(images()), 1e-5)


def test_head_gives_logits_without_bias(weight_file, any_hash):
    state = torch.load(weight_file)
    head = extractor.load_extractor("inception2015", path=weight_file).head
    features = torch.randn(3, 2048, generator=torch.Generator().manual_seed(2))
    expected = features.double() @ state["fc.weight"].double().T
    assert head.bias is None
    torch.testing.assert_close(torch.from_numpy(head.logits(features.numpy())), expected)
    assert extractor.load_extractor("inception2015-spatial", path=weight_file).head is None


def test_spatial_features_are_the_first_channels_of_the_fourth_block(weight_file):
    """Mixed_6d.branch1x1 after ReLU, row, column, channel: caught where the whole network computes it."""
    net = unfolded(weight_file)
    seen = []
    net.Mixed_6d.branch1x1.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    x = INPUTS["299/bilinear-tf1"](images().float())
    net(x)
    assert seen[0].shape == (2, 192, 17, 17) and seen[0].min() == 0
    expected = seen[0].movedim(1, -1)[..., :7].reshape(2, -1)
    assert torch.equal(unfolded(weight_file, "spatial")(x), expected)


def test_inputs_by_hand():
    """One grey level everywhere: (v - 128) / 128, or v / 127.5 - 1 in pytorch-fid; the resizes keep it."""
    flat = torch.full((1, 3, 32, 32), 255.0)
    for resize, expected in (
        ("299/bilinear-tf1", 127 / 128),
        ("299/bicubic-aa", 127 / 128),
        ("299/bilinear", 1),
    ):
        found = INPUTS[resize](flat)
        assert found.shape == (1, 3, 299, 299)
        torch.testing.assert_close(found, torch.full_like(found, expected))
    overshoot = torch.zeros(1, 3, 8, 8)
    overshoot[..., 4:] = 255
    assert INPUTS["299/bicubic-aa"](overshoot).max() == 127 / 128, "clipped to bytes' range"
