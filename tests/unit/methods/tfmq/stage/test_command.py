"""`fewstep quantize`: what it writes, what reads it, and the mistakes."""

import json
import re
import shutil
from dataclasses import replace

import networks
import pytest
import torch
import typer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fewstep.checks import ConfigError, DataError
from fewstep.interop.load import load_model
from fewstep.methods.tfmq.drift import corrected, error_variances
from fewstep.methods.tfmq.stage import STAGE
from fewstep.methods.tfmq.stage.run import chosen_parent, with_bits
from fewstep.methods.tfmq.stage.settings import QuantizeSettings
from fewstep.nets.folder import save_model
from fewstep.nets.integers import FACTS
from fewstep.sampling.document import save_plan
from fewstep.sampling.plan import load_plan
from fewstep.sampling.quantised import attached, integers_path, with_integers
from fewstep.sampling.sample import sample
from fewstep.sampling.solver import compile_plan

APP = typer.Typer()
APP.command()(STAGE.command)
SMALL = ("--noises", "16", "--iterations", "4", "--temporal-iterations", "20", "--polish-iterations", "2",
         "--polish-noises", "8", "--gate-noises", "16")  # fmt: skip


def command(folder, *words):
    """Run `fewstep quantize` in a folder; what the user can mend is raised."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = CliRunner().invoke(APP, ["--model", "model", *words], catch_exceptions=False)
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, a plan and the plan quantised."""
    path = tmp_path_factory.mktemp("quantize")
    facts = {"schedule": networks.VP, "prediction": "x0", "shape": (1, 8, 8), "name": "drawn", "card": {}}
    save_model(path / "model", networks.unet(), **facts)
    save_plan(networks.plan(), path / "plan.json")
    result = command(path, "--plan", "plan.json", "--bits", "w8a8,w4a32", "--out", "q", *SMALL)
    assert result.exit_code == 0, result.output
    (path / "said").write_text(result.output)
    return path


@pytest.fixture
def copy(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def quantised(folder, name="dpmpp-2m.uniform-lambda.nfe4.w8a8"):
    path = next(folder.glob(f"q/{name}*.json"))
    return path, load_plan(path)


def test_a_plan_and_its_integers_name_each_other_and_are_drawn_as_any_plan(folder):
    model = load_model(folder / "model")
    names = sorted(path.name for path in (folder / "q").iterdir())
    assert [re.sub(r".*nfe4\.", "", name) for name in names] == [
        "w4a32.json", "w4a32.safetensors", "w8a8.json", "w8a8.safetensors",
    ]  # fmt: skip
    parent = load_plan(folder / "plan.json")
    exact = sample(model, parent, seeds=range(16)).int()
    far = []
    for path in sorted((folder / "q").glob("*.json")):
        plan = load_plan(path)
        with safe_open(integers_path(path), framework="pt") as file:
            assert json.loads(file.metadata()[FACTS])["plan"] == plan.hash
        assert {node.quant for node in plan.nodes if node.eval == "net"} == {
            plan.provenance["quantize"]["bits"]
        }
        assert plan.provenance["parents"] == [parent.hash]
        images = sample(with_integers(model, [(path, plan)]), plan, seeds=range(16)).int()
        far.append(float((images - exact).abs().float().mean()))
    # levels of 256; nothing but the integers moves the images
    assert 0 < far[1] < 3 and far[1] < far[0]


def test_sizes_fall_with_the_bits(folder):
    sizes = [load_plan(path).provenance["quantize"] for path in sorted((folder / "q").glob("*.json"))]
    four, eight = sizes
    assert four["bytes"] < eight["bytes"] < 0.5 * eight["float_bytes"]


def test_the_images_of_the_calibration_are_not_reported_on(folder):
    _, plan = quantised(folder)
    seeds = plan.provenance["seeds"]
    assert {"quantize-calibration", "quantize-fit", "quantize-validation", "quantize-gate"} <= seeds.keys()


def test_a_second_start_resumes_and_gives_the_same_bytes(copy):
    before = {path.name: path.read_bytes() for path in (copy / "q").iterdir()}
    work = next((copy / "q.study").iterdir())
    kept = sorted(work.iterdir())
    for path in kept[::2]:
        path.unlink()
    shutil.rmtree(copy / "q")
    command(copy, "--plan", "plan.json", "--bits", "w8a8,w4a32", "--out", "q", *SMALL)
    for path in (copy / "q").iterdir():
        assert path.read_bytes() == before[path.name], path.name


def test_integers_of_another_plan_model_or_content_are_refused(copy):
    path, plan = quantised(copy)
    model = load_model(copy / "model")
    _, other = quantised(copy, "dpmpp-2m.uniform-lambda.nfe4.w4a32")
    with pytest.raises(ConfigError, match="fingerprint"):
        with_integers(replace(model, fingerprint="0" * 64), [(path, plan)])
    with pytest.raises(ConfigError, match="belongs to the plan"):
        with_integers(model, [(path, other)])
    with pytest.raises(ConfigError, match="belongs to the plan"):
        with_integers(model, [(path, replace(plan, clip=3.0))])
    tensors = load_file(integers_path(path))
    with safe_open(integers_path(path), framework="pt") as file:
        facts = file.metadata()
    name = next(name for name in sorted(tensors) if name.endswith("integers"))
    tensors[name][0] += 1
    save_file(tensors, integers_path(path), metadata=facts)
    with pytest.raises(ConfigError, match="must hold the integers"):
        with_integers(model, [(path, plan)])


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda t: t.pop("times"), "times is missing"),
        (lambda t: t.update(times=t["times"][:0]), "widths"),
        (lambda t: t.update(widths=t["widths"] + 5), "its calls have the widths"),
        (lambda t: t.update(extra=t["times"].clone()), "extra is of no layer"),
        (lambda t: t.update({k: v * 0 for k, v in t.items() if k.endswith("/scale")}), "not positive"),
        (lambda t: t.update({k: v[:1] for k, v in t.items() if k.endswith("/integers")}), "is torch.uint8"),
        (
            lambda t: t.update({k: v[:1] for k, v in t.items() if k.endswith("input_scale")}),
            "is torch.float32",
        ),
    ],
)
def test_damaged_integers_are_one_sentence(copy, change, sentence):
    path, plan = quantised(copy)
    tensors = load_file(integers_path(path))
    with safe_open(integers_path(path), framework="pt") as file:
        facts = file.metadata()
    change(tensors)
    save_file(tensors, integers_path(path), metadata=facts)
    with pytest.raises(DataError, match=re.escape(sentence)):
        with_integers(load_model(copy / "model"), [(path, plan)])


def test_missing_and_torn_integers_are_one_sentence(copy):
    path, plan = quantised(copy)
    model = load_model(copy / "model")
    integers_path(path).write_bytes(integers_path(path).read_bytes()[:100])
    with pytest.raises(DataError, match="it is damaged"):
        with_integers(model, [(path, plan)])
    integers_path(path).unlink()
    with pytest.raises(DataError, match="must stand beside the plan"):
        with_integers(model, [(path, plan)])
    torch.save({}, integers_path(path))
    with pytest.raises(DataError, match="it is damaged"):
        with_integers(model, [(path, plan)])


@pytest.mark.parametrize(
    "words, sentence",
    [
        (("--bits", "w9a8"), "must be of the form w8a8"),
        (("--bits", "w8a8,w8a8"), "must not repeat"),
        (("--weight-scheme", "affine"), "must be symmetric or auto"),
        (("--noises", "7"), "at least 8"),
        (("--seed", "5", "--plan", "seen.json"), "must not have been searched on"),
        (("--nfe", "7"), "must be a plan of 7 network calls"),
        (("--plan", "other.json"), "fingerprint"),
        (("--plan", "q"), "names|has bits|in floats"),
    ],
)
def test_mistakes_are_one_sentence_before_any_work(folder, words, sentence):
    plan = load_plan(folder / "plan.json")
    save_plan(replace(plan, fingerprint="1" * 64, name="other"), folder / "other.json")
    seeds = {"seeds": {"search": [0, 100]}}
    save_plan(replace(plan, provenance=dict(plan.provenance) | seeds, name="seen"), folder / "seen.json")
    given = words if "--plan" in words else (*words, "--plan", "plan.json")
    with pytest.raises((ConfigError, DataError), match=sentence):
        command(folder, *given, "--out", "no")
    assert not (folder / "no").exists()


def test_of_several_plans_the_one_that_was_chosen_is_quantised():
    plan = networks.plan()

    def composed(name, **said):
        return replace(plan, name=name, provenance={**plan.provenance, "composed": said})

    plans = [plan, composed("a", fd=2.0, winner=False), composed("b", fd=3.0, winner=True), networks.plan(5)]
    assert [one.name for one in chosen_parent(plans, 4)] == ["b"]
    assert [one.name for one in chosen_parent([plans[0], plans[1]], 4)] == ["a"]
    assert len(chosen_parent(plans, None)) == 4


def test_settings_say_what_is_wrong():
    with pytest.raises(ValueError, match="bits: must be of the form"):
        QuantizeSettings(bits=["w8"])


def test_corrected_steps_keep_signal_and_noise_of_the_marginal():
    from fewstep.methods.tfmq.quantise import Recipe, quantise
    from fewstep.nets.quantised import Bits

    task, plan = networks.task(), networks.plan()
    integers, _ = quantise(
        task, plan, Recipe(Bits(3, 8), "naive"), seeds=networks.SEEDS, calls=networks.calls()
    )
    model, bits = attached(task.model, integers), with_bits(plan, integers)
    measured = error_variances(model, bits, networks.calls(), rows=5)
    assert len(measured) == 4 and min(measured) > 0
    variances = [1e-4 * value for value in measured]  # no more than the noise that a step keeps
    made = corrected(model, bits, variances)
    plain = corrected(model, bits, [0.0] * 4)
    for k, (new, old) in enumerate(zip(made.steps[:-1], plain.steps[:-1], strict=True)):
        t, s = (torch.tensor(made.nodes[i].t, dtype=torch.float64) for i in (k, k + 1))
        alpha, sigma_end = float(networks.VP.alpha(t)), float(networks.VP.sigma(s))
        a_new, c_new, a_old, c_old = new.raw.A, dict(new.raw.c)[k], old.raw.A, dict(old.raw.c)[k]
        # what a step brings of x0 at its start is the same
        assert a_new * alpha + c_new == pytest.approx(a_old * alpha + c_old, rel=1e-12)
        # noise that is kept, and noise of the error, are together as much as before
        share = (a_new / a_old) ** 2 + c_old**2 * variances[k] / sigma_end**2
        assert share == pytest.approx(1.0, rel=1e-12)
    compile_plan(made, networks.VP, "x0")
