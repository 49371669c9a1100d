import pytest
import torch
from torch import nn
from unit.methods.multilid.pixels import noise_images

from fewstep.checks import ConfigError, DataError
from fewstep.methods.multilid.resnet import UntrainedResNet18
from fewstep.methods.multilid.taps import load_taps
from fewstep.metrics.extractor import load_extractor
from fewstep.nets.classifier import Classifier
from fewstep.nets.folder import save_classifier


class FullBlock(nn.Module):
    """A basic block with everything in it, its last norm starting at 0, as timm's resnet18 has it."""

    def __init__(self, mine):
        super().__init__()
        self.mine = mine
        c_out = mine.conv1.out_channels
        self.bn1, self.bn2 = nn.BatchNorm2d(c_out, eps=0), nn.BatchNorm2d(c_out, eps=0)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x, seen):
        h = torch.relu(self.bn1(self.mine.conv1(x)))
        seen.append(h)
        out = torch.relu(self.bn2(self.conv2(h)) + self.mine.shortcut(x))
        return out


def test_the_untrained_network_is_a_residual_network_whose_last_norms_are_zero():
    """eps = 0: what norms that saw nothing divide by is 1 + 5e-6 otherwise, a common factor of a layer."""
    net, images = UntrainedResNet18(3), noise_images(4, seed=0, side=16, channels=3)
    x = torch.relu(net.stem(images.float() / 127.5 - 1))
    wanted = []
    for stage in net.stages:
        for j, block in enumerate(stage):
            first = []
            x = FullBlock(block).eval()(x, first)
            wanted += first if j == 0 else [x]
    found = load_taps("resnet18-random", seed=3)(images)
    assert len(found) == 8
    for mine, theirs in zip(found, reversed(wanted), strict=True):
        assert torch.allclose(mine, theirs.flatten(1), rtol=1e-5, atol=1e-5)


def test_layers_are_tapped_whole_and_in_the_published_order():
    taps = load_taps("resnet18-random")
    assert taps.layers == (
        "layer4.1.act2", "layer4.0.act1", "layer3.1.act2", "layer3.0.act1",
        "layer2.1.act2", "layer2.0.act1", "layer1.1.act2", "layer1.0.act1",
    )  # fmt: skip
    sizes = [part.shape[1] for part in taps(noise_images(1, seed=0, side=32, channels=3))]
    assert sizes == [512 * 16] * 2 + [256 * 64] * 2 + [128 * 256] * 2 + [64 * 1024] * 2


def test_a_seed_decides_untrained_weights_and_nothing_else():
    before = torch.get_rng_state()
    one, again, other = (load_taps("resnet18-random", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    images = noise_images(2, seed=0, side=8)
    assert all(map(torch.equal, one(images), again(images)))
    assert one.weights_sha256 == again.weights_sha256 != other.weights_sha256
    assert not torch.equal(one(images)[0], other(images)[0])


def test_stages_of_the_pretrained_network():
    """The mean of the last one is the feature vector p320 of the same network at 64 pixels."""
    taps = load_taps("effnet-lite0")
    images = noise_images(2, seed=1, side=64, channels=3)
    maps = taps(images)
    assert [part.shape[1] for part in maps] == [16384, 6144, 2560, 1280, 1792, 768, 1280]
    from fewstep.metrics import efficientnet, weights

    file, _ = weights.find_weights(weights.EFFICIENTNET_LITE0, otherwise="")
    with torch.inference_mode():
        wanted = efficientnet.from_state(weights.read_weights(file), "p320")(images.float())
    # sums over four pixels in another order
    assert torch.allclose(maps[-1].reshape(2, 320, 4).mean(-1), wanted, rtol=1e-4, atol=1e-5)


def test_layers_of_a_classifier_end_in_its_features(tmp_path):
    torch.manual_seed(0)
    save_classifier(tmp_path / "c", Classifier(1, 10), shape=(1, 8, 8), name="c", card={})
    taps, images = load_taps(tmp_path / "c"), noise_images(3, seed=0, side=8)
    assert taps.layers == ("conv1", "conv2", "conv3", "conv4", "to_features")
    features = load_extractor(tmp_path / "c")(images)
    assert torch.allclose(nn.functional.silu(taps(images)[-1]), features, rtol=1e-6, atol=1e-7)
    assert taps.pooled.protocol["id"] == taps.id
    with pytest.raises(DataError, match=r"takes images \(C, H, W\) \(1, 8, 8\), got \(3, 8, 8\)"):
        taps.require((3, 8, 8))


def test_an_unknown_network_is_refused():
    with pytest.raises(ConfigError, match="must be one of effnet-lite0, resnet18-random or the folder"):
        load_taps("resnet50")
