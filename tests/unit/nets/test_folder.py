import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.condition import Classes, Condition, Stored
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.schedule import EDM, DDPMTable, VPLinear
from fewstep.files import sha256_file
from fewstep.nets.classifier import Classifier
from fewstep.nets.folder import (
    NETS,
    build,
    fill,
    load_classifier,
    load_model,
    read_weights,
    save_classifier,
    save_model,
)
from fewstep.rng import generator

CONFIG = {"type": "unet", "image_size": 8, "in_channels": 1, "channels": 8, "n_classes": 3, "attention": [4]}


def saved(folder: Path, **changes: object) -> torch.nn.Module:
    net = build(CONFIG)
    torch.nn.init.ones_(net.conv_out.weight)
    values = {
        "schedule": VPLinear(),
        "prediction": "v",
        "shape": (1, 8, 8),
        "name": "tiny",
        "card": {"steps": 3},
    }
    save_model(folder, net, **{**values, **changes})
    return net


def test_round_trip(tmp_path):
    net = saved(tmp_path / "m", schedule=DDPMTable.linear())
    model = load_model(tmp_path / "m")
    x, t = torch.randn(2, 1, 8, 8, generator=generator(0)), torch.tensor([0.1, 0.9])
    label = Condition({"label": torch.tensor([0, 3])})
    expected = net.eval()(x, DDPMTable.linear().time_input(t), label)
    assert torch.allclose(model.fn(x, t, label), expected, atol=1e-5)
    assert (model.prediction, model.shape, model.conditions, model.name) == (
        "v",
        (1, 8, 8),
        Classes(3),
        "tiny",
    )
    assert model.schedule == DDPMTable.linear()
    assert model.fingerprint == sha256_file(tmp_path / "m" / "model.safetensors")
    assert model.net is not None and not model.net.training
    assert not any(p.requires_grad for p in model.net.parameters())
    assert model.net.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert json.loads((tmp_path / "m" / "card.json").read_text()) == {"steps": 3}
    assert Denoiser(model).x0(x, 0.5).shape == x.shape


def test_half_precision_files_load_as_float32(tmp_path):
    net = saved(tmp_path / "m", dtype=torch.float16)
    assert load_file(tmp_path / "m" / "model.safetensors")["conv_in.weight"].dtype == torch.float16
    loaded = load_model(tmp_path / "m").net
    assert loaded is not None and loaded.conv_in.weight.dtype == torch.float32
    assert torch.equal(loaded.conv_in.weight, net.conv_in.weight.half().float())


def test_saving_again_replaces(tmp_path):
    saved(tmp_path / "m")
    saved(tmp_path / "m", schedule=EDM())
    assert load_model(tmp_path / "m").schedule == EDM()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def break_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def rename_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["other"] = weights.pop("conv_in.weight")
    save_file(weights, folder / "model.safetensors")


def change_config(**changes: object):
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return change


@pytest.mark.parametrize(
    "damage, word",
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights at"),
        (break_weights, "not a readable safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "not a readable safetensors"),
        (rename_tensor, "1 tensors missing, 1 unknown"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: (folder / "config.json").write_text("[]"), "schema"),
        (change_config(schema="other/1"), "schema"),
        (change_config(architecture={"type": "vit"}), "unet, transformer, classifier"),
        (change_config(architecture={**CONFIG, "wings": 2}), "does not take"),
        (change_config(architecture={**CONFIG, "channels": 12}), "of another shape"),
        (change_config(architecture=None), "lacks its architecture"),
        (change_config(prediction="score"), "prediction must be one of"),
        (change_config(schedule={"type": "exotic"}), "schedule"),
    ],
)
def test_damage_is_one_clear_sentence(tmp_path, damage, word):
    saved(tmp_path / "m")
    damage(tmp_path / "m")
    with pytest.raises((DataError, ConfigError), match=word) as caught:
        load_model(tmp_path / "m")
    assert "\n" not in str(caught.value)


def test_a_missing_folder_and_missing_keys(tmp_path):
    with pytest.raises(DataError, match="no model folder"):
        load_model(tmp_path / "nowhere")
    saved(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    del config["shape"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="lacks shape"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize(
    ("key", "value"),
    [("shape", "abc"), ("shape", [3, 32]), ("n_classes", "x"), ("name", 5), ("schedule", 5)],
)
def test_settings_of_another_type_are_named(tmp_path, key, value):
    saved(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(
        (DataError, ConfigError), match=f"(?i){key}.* must be .*; got {value!r}".replace("[", r"\[")
    ):
        load_model(tmp_path / "m")


def test_only_known_networks_and_predictions_are_saved(tmp_path):
    values = {"schedule": VPLinear(), "shape": (1, 8, 8), "name": "x", "card": {}}
    with pytest.raises(ConfigError, match="unet, transformer, classifier"):
        save_model(tmp_path / "m", torch.nn.Linear(1, 1), prediction="eps", **values)
    with pytest.raises(ConfigError, match="eps"):
        save_model(tmp_path / "m", build(CONFIG), prediction="score", **values)
    assert list(tmp_path.iterdir()) == []


def test_a_classifier_of_another_body_comes_back_with_it(tmp_path):
    net = Classifier(3, 5, channels=8, features=12, body="residual")
    images = torch.rand(2, 3, 10, 10)
    save_classifier(tmp_path / "c", net, shape=(3, 10, 10), name="digits-res", card={})
    loaded = load_classifier(tmp_path / "c").net
    assert loaded.config() == net.config() and loaded.maps(images).shape == (2, 16, 5, 5)
    torch.testing.assert_close(loaded.features(images), net.features(images))
    with pytest.raises(ConfigError, match="body must be one of plain, residual; got 'dense'"):
        Classifier(3, 5, body="dense")


def test_classifier_folder(tmp_path):
    net = build({"type": "classifier", "in_channels": 1, "n_classes": 10})
    assert isinstance(net, Classifier)
    save_classifier(tmp_path / "c", net, shape=(1, 8, 8), name="digits", card={})
    loaded = load_classifier(tmp_path / "c")
    x = torch.randn(2, 1, 8, 8, generator=generator(0))
    assert loaded.net.features(x).shape == (2, 64) and loaded.net(x).shape == (2, 10)
    assert torch.allclose(loaded.net(x), net(x), atol=1e-5)
    assert (loaded.shape, loaded.name) == ((1, 8, 8), "digits")
    assert loaded.fingerprint == sha256_file(tmp_path / "c" / "model.safetensors")
    with pytest.raises(DataError, match="schema"):
        load_model(tmp_path / "c")


@pytest.mark.parametrize("side", [2, 8, 9, 28])
def test_classifier_takes_any_small_image(side):
    assert Classifier(3, 5, channels=4)(torch.zeros(2, 3, side, side)).shape == (2, 5)


def test_classifier_refuses_nonsense():
    with pytest.raises(ConfigError, match="n_classes >= 2"):
        Classifier(1, 1)


def test_every_network_can_be_described_and_rebuilt():
    values = {
        "unet": CONFIG,
        "patched-unet": {"type": "patched-unet", "net": {"image_size": 8, "in_channels": 1, "channels": 8}},
        "transformer": {"type": "transformer", "image_size": 8, "in_channels": 1, "channels": 8},
        "classifier": {"type": "classifier", "in_channels": 1, "n_classes": 2},
        "vae": {"type": "vae", "in_channels": 1},
        "dcgan": {"type": "dcgan", "shape": [1, 8, 8], "width": 2, "latent": 5},
        "resnet-gan": {"type": "resnet-gan", "shape": [1, 8, 8], "width": 2, "latent": 5},
        "vitgan": {"type": "vitgan", "shape": [1, 8, 8], "width": 8, "latent": 8, "heads": 2},
    }
    assert values.keys() == NETS.keys()
    for config in values.values():
        net = build(config)
        assert type(net)(**net.config()).config() == net.config()


def test_conditioned_network_comes_back_without_rows(tmp_path):
    described = {**CONFIG, "maps": {"mask": 1}, "context": 6}
    save_model(
        tmp_path / "m",
        build(described),
        schedule=VPLinear(),
        prediction="eps",
        shape=(1, 8, 8),
        name="told",
        card={},
    )
    model = load_model(tmp_path / "m")
    assert isinstance(model.conditions, Stored) and model.conditions.rows is None
    assert set(model.conditions.entries) == {"mask", "context", "label"}
    with pytest.raises(ConfigError, match="needs stored conditions"):
        model.condition_of([0])
    rows = Condition(
        {"mask": torch.zeros(2, 1, 8, 8), "context": torch.zeros(2, 3, 6), "label": torch.tensor([0, 1])}
    )
    bound = replace(model, conditions=model.conditions.bind(rows))
    assert bound.condition_of([3]) == rows[[1]]


def test_folder_of_a_network_without_maps_and_context_is_as_before(tmp_path):
    """The keys of architecture and config of the folders that have been written so far."""
    saved(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config.keys() == {"schema", "architecture", "schedule", "prediction", "shape", "n_classes", "name"}
    assert config["n_classes"] == 3
    assert config["architecture"].keys() == {
        "type", "image_size", "in_channels", "channels", "multipliers", "blocks", "attention", "n_classes", "dropout",
        "head_channels", "groups", "out_channels", "time_channels", "patch",
    }  # fmt: skip


def test_weights_that_may_lack_stay_as_they_are(tmp_path):
    plain = saved(tmp_path / "m")
    net = build({**CONFIG, "maps": {"mask": 1}, "context": 6})
    weights = read_weights(tmp_path / "m" / "model.safetensors")
    with pytest.raises(DataError, match="tensors missing"):
        fill(net, weights, source=tmp_path)
    before = net.middle_in.cross.kv.weight.clone()
    fill(net, weights, source=tmp_path, may_lack=net.condition_parts())
    assert torch.equal(net.middle_in.cross.kv.weight, before)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in plain.state_dict().items())
    with pytest.raises(DataError, match="1 tensors missing"):
        fill(net, {k: v for k, v in weights.items() if k != "conv_in.bias"}, source=tmp_path,
             may_lack=net.condition_parts())  # fmt: skip
