"""Vision transformers of the user's weights: the numbers of another writing of the same networks, of random weights."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fewstep.checks import ConfigError
from fewstep.metrics import vit, weights
from fewstep.metrics.evaluate import evaluate_samples
from fewstep.metrics.extractor import load_extractor
from fewstep.metrics.kid import gaussian, kid
from fewstep.metrics.reference import from_features

transformers = pytest.importorskip("transformers")


def shaken(model):
    """With weights that no initialisation sets to one or zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def normalised(images, normalisation):
    mean, std = (torch.tensor(values)[:, None, None] for values in normalisation)
    return (images / 255 - mean) / std


def dinov2_state(side):
    """A model of transformers, and its weights by the names of the file that the authors publish."""
    config = transformers.Dinov2Config(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=16,
        image_size=14 * side,
        patch_size=14,
        mlp_ratio=2,
    )
    model = shaken(transformers.Dinov2Model(config))
    theirs = model.state_dict()
    state = {
        "cls_token": theirs["embeddings.cls_token"],
        "pos_embed": theirs["embeddings.position_embeddings"],
        "patch_embed.proj.weight": theirs["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": theirs["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": theirs["layernorm.weight"],
        "norm.bias": theirs["layernorm.bias"],
    }
    for i in range(2):
        at, layer = f"blocks.{i}", f"encoder.layer.{i}"
        for kind in ("weight", "bias"):
            state[f"{at}.attn.qkv.{kind}"] = torch.cat(
                [theirs[f"{layer}.attention.{x}_proj.{kind}"] for x in "qkv"]
            )
            state[f"{at}.attn.proj.{kind}"] = theirs[f"{layer}.attention.o_proj.{kind}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                state[f"{at}.{name}.{kind}"] = theirs[f"{layer}.{name}.{kind}"]
        for k in (1, 2):
            state[f"{at}.ls{k}.gamma"] = theirs[f"{layer}.layer_scale{k}.lambda1"]
    return model, state


def test_dinov2_is_that_of_transformers():
    """1e-5 of the largest feature: the same operations in float32."""
    model, state = dinov2_state(side=5)
    images = 255 * torch.rand(2, 3, 70, 70, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = model(pixel_values=normalised(images, vit.IMAGENET)).last_hidden_state[:, 0]
        found = vit.dinov2(state)(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_positions_of_another_number_of_patches_are_read_at_their_own_pace():
    """Of a plane each patch reads 37 / 16.1 further; PyTorch's bicubic kernel bends a plane by 4 %."""
    _, state = dinov2_state(side=37)
    ramp = torch.arange(37.0).expand(37, 37).reshape(-1, 1).expand(-1, 64)
    net = vit.dinov2(state | {"pos_embed": torch.cat([torch.full((1, 64), 7.0), ramp])[None]})
    moved = net._positions(16)
    assert moved.shape == (257, 64) and (moved[0] == 7).all()
    columns = moved[1:].reshape(16, 16, 64)[8, 2:14, 0]
    steps = columns.diff()
    torch.testing.assert_close(steps, torch.full_like(steps, 37 / 16.1), rtol=0.05, atol=0)
    assert float(steps.mean()) == pytest.approx(37 / 16.1, rel=0.01)


def clip_state():
    config = transformers.CLIPVisionConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=16, image_size=336,
        patch_size=112, projection_dim=768,
    )  # fmt: skip
    model = shaken(transformers.CLIPVisionModelWithProjection(config))
    return model, {name: tensor for name, tensor in model.state_dict().items() if "position_ids" not in name}


def test_clip_is_that_of_transformers_from_a_file_of_the_user(tmp_path, monkeypatch):
    """1e-5: features of unit length in float32."""
    model, state = clip_state()
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / weights.CLIP.name)
    monkeypatch.setenv(weights.WEIGHTS_VARIABLE, str(tmp_path))
    extractor = load_extractor("clip-vitl14-336")
    images = torch.randint(
        0, 256, (2, 3, 336, 336), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    with torch.inference_mode():
        expected = model(pixel_values=normalised(images.float(), vit.OPENAI)).image_embeds
    torch.testing.assert_close(
        extractor(images), torch.nn.functional.normalize(expected, dim=-1), rtol=0, atol=1e-5
    )
    assert extractor.dim == 768 and len(extractor.weights_sha256) == 64
    assert extractor(images[:, :, :8, :8]).shape == (2, 768)


def test_without_the_file_the_sentence_says_where_it_belongs(tmp_path, monkeypatch):
    monkeypatch.setenv(weights.WEIGHTS_VARIABLE, str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"dinov2_vitl14_pretrain.pth must exist.*FEWSTEP_WEIGHTS_DIR"):
        load_extractor("dinov2-vitl14")


def test_cmmd_is_the_published_number_but_for_its_bias():
    """The authors' code, mean kernels with the diagonals: larger by (1 - mean kernel) / N of each set."""
    rng = np.random.default_rng(0)
    fake, real = (rng.normal(shift, 1, (60, 12)) for shift in (0.1, 0.0))
    fake, real = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (fake, real))

    def kernel(a, b):
        return np.exp(-np.square(a[:, None] - b[None]).sum(2) / 200)

    xx, yy, xy = kernel(fake, fake), kernel(real, real), kernel(fake, real)
    np.testing.assert_allclose(gaussian(fake, real), xy, rtol=1e-12)
    published = 1000 * (xx.mean() + yy.mean() - 2 * xy.mean())
    off_diagonal = [(k.sum() - 60) / (60 * 59) for k in (xx, yy)]
    bias = 1000 * sum((1 - mean) / 60 for mean in off_diagonal)
    assert 1000 * kid(fake, real, kernel=gaussian).value == pytest.approx(published - bias, rel=1e-9)


def test_cmmd_needs_features_of_clip():
    extractor = type("E", (), {"id": "digits", "dim": 3, "protocol": {"id": "digits"}, "head": None})()
    reference = from_features(
        np.random.default_rng(0).normal(size=(40, 3)), extractor.protocol,
        dataset={"name": "d", "fingerprint": None, "split": "train", "heldout_split": None},
    )  # fmt: skip
    with pytest.raises(ConfigError, match="CMMD is of CLIP's features, but the extractor is digits"):
        evaluate_samples(np.zeros((40, 3)), reference, extractor, metrics=["cmmd"])
