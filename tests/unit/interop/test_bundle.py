"""Bundles: what a runtime gives of a plan and its integers, as files and as a model, and the mistakes."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.schedule import VPLinear
from fewstep.interop import runner
from fewstep.interop.bundle import (
    PLAN,
    RUN,
    Parity,
    Runtime,
    _require_parity,
    export_bundle,
    is_bundle,
    load_bundle,
)
from fewstep.interop.load import load_model
from fewstep.methods.tfmq.quantise import Recipe, quantise
from fewstep.methods.tfmq.stage.run import with_bits
from fewstep.nets.folder import as_model
from fewstep.nets.quantised import Bits
from fewstep.nets.unet import UNet
from fewstep.rng import ImageNoise, generator, initial_weights
from fewstep.sampling.plan import load_plan
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.quantised import attached, with_integers
from fewstep.sampling.sample import sample
from fewstep.sampling.task import Task

pytest.importorskip("openvino")
pytest.importorskip("onnxscript")

VP = VPLinear()


def drawn(n_classes=0, widths=(1.0,)):
    with initial_weights(0):
        net = UNet(8, 1, 8, (1, 2), attention=(4,), n_classes=n_classes)
    rng = generator(1)
    for name, parameter in net.named_parameters():
        if "norm" not in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=rng)
    facts = {"schedule": VP, "prediction": "x0", "shape": (1, 8, 8), "name": "drawn", "fingerprint": "f" * 64}
    return as_model(net, widths=widths, **facts)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """A model at two widths, a plan that calls both, its integers and its bundle."""
    model = drawn(widths=(1.0, 0.5))
    plan = PRESETS["dpmpp-2m"](VP, 3, grid="uniform-lambda")
    plan = replace(plan, nodes=tuple(replace(n, width=1) if i == 1 else n for i, n in enumerate(plan.nodes)))
    integers, _ = quantise(Task(model), plan, Recipe(Bits(8, 8), "naive", scope="all"), seeds=range(16))
    model, plan = attached(model, integers), with_bits(plan, integers)
    out = tmp_path_factory.mktemp("bundles") / "w8a8"
    parity = export_bundle(model, plan, out, integers=integers)
    return model, plan, integers, out, parity


@pytest.fixture
def copy(quantised, tmp_path):
    return shutil.copytree(quantised[3], tmp_path / "copy")


def test_the_runtime_is_as_far_from_floats_as_simulated_integers(quantised):
    parity = quantised[4]
    assert 0.9 < parity.ratio < 1.1
    # 8 bits: some hundredths of the outputs at most, and no floats in disguise
    assert 1e-4 < parity.runtime < 0.1


def test_a_bundle_is_drawn_like_the_plan_that_it_is_of(quantised):
    model, plan, _, out, _ = quantised
    bundle = load_model(out)
    assert is_bundle(out) and bundle.fingerprint == model.fingerprint
    one = load_plan(out / PLAN)
    assert one.hash == plan.hash
    bundle = with_integers(bundle, [(out / PLAN, one)])
    images, simulated, exact = (
        sample(of, plan_of, seeds=range(32)).int()
        for of, plan_of in ((bundle, one), (model, plan), (model, _floats(plan)))
    )
    # codes on the edge are rounded either way: far less than the integers themselves do
    assert (images - simulated).abs().float().mean() < 0.3 * (simulated - exact).abs().float().mean()


def _floats(plan):
    return replace(plan, nodes=tuple(replace(n, quant=None) for n in plan.nodes), integers=None)


def test_a_bundle_runs_without_torch_and_fewstep(quantised, tmp_path):
    _, plan, _, out, _ = quantised
    block = tmp_path / "without.py"
    block.write_text(
        "import runpy, sys\n"
        "for name in ('torch', 'fewstep', 'onnx'):\n    sys.modules[name] = None\n"
        "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = [
        sys.executable,
        str(block),
        str(out / RUN),
        "--seeds",
        "0-15",
        "--out",
        str(tmp_path / "images.npz"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = np.load(tmp_path / "images.npz")["arr_0"].astype(int)
    bundle = load_bundle(out)
    images = sample(bundle, load_plan(out / PLAN), seeds=range(16)).permute(0, 2, 3, 1).numpy()
    assert (np.abs(made - images) > 3).mean() < 0.01  # noise differs in the last bits of float32


def test_the_integers_are_in_the_file_and_the_layers_of_the_time_are_not(quantised):
    import onnx

    model, _, integers, out, _ = quantised
    graph = onnx.load(out / "net0.onnx").graph
    stored = {tuple(one.dims) for one in graph.initializer if one.data_type == onnx.TensorProto.INT8}
    roles = model.module(0).roles()
    for (width, layer), codes in integers.codes.items():
        if width == 0 and roles[layer] in ("body", "shortcut"):
            assert tuple(codes.integers.shape) in stored
    size = (out / "net0.onnx").stat().st_size
    time_layers = sum(
        p.numel() for n, p in model.net.named_parameters() if n.startswith("time_") or ".emb." in n
    )
    assert time_layers > 0 and not any("time_in" in node.name for node in graph.node)
    assert size < 4 * sum(p.numel() for p in model.net.parameters())


@pytest.mark.parametrize("backend", ["onnxruntime"])
def test_another_runtime_gives_the_same_up_to_rounding(quantised, backend):
    pytest.importorskip(backend)
    out = quantised[3]
    x = ImageNoise(range(16), (1, 8, 8))()
    outputs = []
    for name in ("openvino", backend):
        process = Runtime(out, backend=name)
        outputs.append([process.call(k, x, None) for k in range(3)])
        process.close()
    for one, other in zip(*outputs, strict=True):
        assert float((one - other).pow(2).mean().sqrt()) < 0.05 * float(one.pow(2).mean().sqrt())


def test_classes_and_guidance_are_in_a_bundle(tmp_path):
    model = drawn(n_classes=3)
    plan = replace(PRESETS["ddim"](VP, 2), guidance=2.0)
    parity = export_bundle(model, plan, tmp_path / "b")
    assert parity.ratio is None and parity.runtime < 1e-4
    bundle = load_bundle(tmp_path / "b")
    seeds = range(12)
    images = [sample(of, plan, seeds=seeds, condition=of.condition_of(seeds)).int() for of in (model, bundle)]
    assert (images[0] - images[1]).abs().max() <= 1
    made = np.concatenate(list(runner.Bundle(tmp_path / "b").images(list(seeds), 5))).astype(int)
    assert np.abs(made - images[0].permute(0, 2, 3, 1).numpy()).max() <= 1
    with pytest.raises(ConfigError, match="times of its plan alone"):
        sample(bundle, PRESETS["ddim"](VP, 3), seeds=[0], condition=bundle.condition_of([0]))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 5, 5), (1, 4, 4)])
def test_noise_is_that_of_torch(shape):
    for seed in (0, 12_345, 1_800_000_000, 2**33 + 7):
        # float32's last bits: vectorised logarithms and cosines differ in them
        assert np.abs(runner.normal(seed, shape) - ImageNoise([seed], shape)()[0].numpy()).max() < 1e-6


def test_damaged_bundles_are_one_sentence(copy):
    (copy / "net0.onnx").write_bytes((copy / "net0.onnx").read_bytes()[:-1])
    with pytest.raises(DataError, match="must have the hash"):
        load_bundle(copy)
    (copy / "net0.onnx").unlink()
    with pytest.raises(DataError, match="must hold net0.onnx"):
        load_bundle(copy)
    manifest = json.loads((copy / runner.MANIFEST).read_text())
    (copy / runner.MANIFEST).write_text(json.dumps({**manifest, "files": {"../x": "0"}}))
    with pytest.raises(DataError, match="must hold ../x"):
        load_bundle(copy)


def test_a_missing_runtime_names_its_extra(quantised, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    code = runner.main(["--bundle", str(quantised[3]), "--seeds", "0-1", "--out", "x.npz"])
    assert code == 2
    assert "pip install 'fewstep[openvino]'" in capsys.readouterr().err


def test_a_runtime_that_crashes_is_one_sentence(quantised):
    process = Runtime(quantised[3])
    process.call(0, torch.zeros(1, 1, 8, 8), None)
    process._process.kill()
    process._process.wait()
    with pytest.raises(ConfigError, match="was ended by signal 9"):
        process.call(0, torch.zeros(1, 1, 8, 8), None)
    assert process.call(0, torch.zeros(1, 1, 8, 8), None).shape == (1, 1, 8, 8)
    process.close()


def test_a_processor_without_the_instructions_is_said(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags\t\t: fpu sse2 avx2\n")
    assert runner.lacking("int8", str(cpuinfo)) == "integer products (VNNI)"
    assert runner.lacking("bf16", str(cpuinfo)) == "bfloat16"
    cpuinfo.write_text("flags\t\t: fpu avx512_vnni avx512_bf16\n")
    assert runner.lacking("int8", str(cpuinfo)) is None
    assert runner.lacking("int8", str(tmp_path / "none")) is None


def test_what_has_no_bundle_is_refused_and_nothing_is_written(tmp_path):
    model = drawn()
    with pytest.raises(ConfigError, match="draw no noise"):
        export_bundle(model, PRESETS["ddpm"](VP, 3), tmp_path / "b")
    with pytest.raises(ConfigError, match="makes"):
        export_bundle(replace(model, decode=lambda x: x), PRESETS["ddim"](VP, 3), tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "parity, precision, sentence",
    [
        (Parity(0.6, 0.04, 64), "f32", "must be 0.8 to 1.25 times that of simulated ones, but is 15 times"),
        (Parity(0.01, 0.04, 64), "f32", "but is 0.25 times"),
        (Parity(0.02, None, 64), "f32", "must be within 0.001 of PyTorch's"),
        (Parity(float("nan"), None, 64), "bf16", "must be within 0.1"),
    ],
)
def test_the_gate_refuses_a_runtime_that_calculates_otherwise(parity, precision, sentence):
    with pytest.raises(ConfigError, match=sentence):
        _require_parity(parity, precision)


def test_the_gate_lets_pass_what_is_as_it_should_be():
    _require_parity(Parity(0.041, 0.04, 64), "f32")
    _require_parity(Parity(0.02, None, 64), "bf16")
    _require_parity(Parity(1e-5, 1e-6, 64), "f32")  # nothing but the rounding of floats
