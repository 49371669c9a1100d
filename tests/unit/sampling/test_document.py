"""The plan file as docs/plan.md and its JSON schema say: any program that follows them gets our result."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import fewstep as fs
from fewstep.diffusion.denoiser import Model
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.prediction import weights
from fewstep.diffusion.schedule import EDM, DDPMTable, Flow, VPLinear
from fewstep.rng import generator
from fewstep.sampling.document import READ_AS, plan_document, save_plan
from fewstep.sampling.plan import load_plan
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.trained import parallel_directions, plan_of

jsonschema = pytest.importorskip("jsonschema")

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs/plan.md").read_text(encoding="utf-8")
SCHEMA = json.loads((ROOT / "docs/plan.schema.json").read_text())
RUNNER = re.search(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)[1]
SCHEDULES = {"table": DDPMTable.linear(), "vp": VPLinear(), "flow": Flow(), "edm": EDM()}
MIXTURE = GaussianMixture(
    torch.tensor([0.4, 0.6]).double(),
    torch.tensor([[0.5, -0.3, 0.1], [-0.6, 0.2, 0.4]]).double(),
    torch.tensor([0.3, 0.2]).double(),
)


@pytest.fixture(scope="module")
def run_plan():
    names = {}
    exec(compile(RUNNER, "plan.md", "exec"), names)
    return names["run_plan"]


def network(schedule, prediction):
    """The mixture's perfect output at a time, in torch and told as a program is told."""

    def fn(x, t):
        read = weights(prediction, schedule, t[0])
        return (MIXTURE.eps(x, t, schedule) - read.eps_of_x * x) / read.eps_of_output

    return fn


def told(schedule, fn):
    """The same with the number that a time embedding takes."""
    inverse = {"ddpm": lambda k: (k + 1) / 1000, "edm": lambda k: float(np.exp(k / 250))}

    def net(x, timestep):
        t = inverse.get(schedule.config()["type"], lambda k: k / 1000)(timestep)
        x = torch.from_numpy(x)
        return fn(x, torch.full((len(x),), t, dtype=torch.float64)).numpy()

    return net


@pytest.mark.parametrize("prediction", READ_AS)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_runner_of_the_docs_is_our_loop(run_plan, tmp_path, schedule, prediction):
    noise = torch.randn(5, 3, generator=generator(0), dtype=torch.float64)
    fn = network(schedule, prediction)
    model = Model(fn, schedule, prediction, shape=(3,))
    presets = [name for name in PRESETS if not PRESETS[name](schedule, 5).stochastic]
    for name in presets if prediction == "eps" else presets[:2]:
        plan = PRESETS[name](schedule, 5, to_zero=True)
        plan = plan.with_node(1, t_cond=plan.nodes[1].t * 0.97, eps_scale=1.01)
        if name == "ddim":
            plan = plan.with_node(0, eval="afs_zero")
        save_plan(plan, tmp_path / "plan.json")
        ours = fs.solve(model, plan, schedule.start_std(plan.nodes[0].lambda_) * noise)
        theirs = run_plan(tmp_path / "plan.json", told(schedule, fn), noise.numpy(), prediction=prediction)
        # 1e-9: the order of float64 sums, and of EDM the exponential that the time is told by
        assert theirs == pytest.approx(ours.numpy(), rel=1e-9, abs=1e-9)


def test_the_runner_makes_calls_side_by_side_one_after_another(run_plan, tmp_path):
    """A trained plan with an analytical first slope, in a frame that is not the model's."""
    schedule, numbers = VPLinear(), [torch.rand(3, 2, generator=generator(i)).double() for i in range(2)]
    ones, frame = torch.ones(3, 2, dtype=torch.float64), EDM(0.02, 80.0)
    levels = torch.tensor([80.0, 8.0, 1.0, 0.02], dtype=torch.float64)
    sampler = parallel_directions(levels, numbers[0], ones, ones, numbers[1].softmax(1), analytic=True)
    plan = plan_of(sampler, schedule, frame, t_start=80.0, t_end=0.02, name="epd")
    model = Model(MIXTURE.model(schedule).fn, schedule, shape=(3,))
    noise = torch.randn(5, 3, generator=generator(0), dtype=torch.float64)
    save_plan(plan, tmp_path / "plan.json")
    ours = fs.solve(model, plan, schedule.start_std(plan.nodes[0].lambda_) * noise)
    theirs = run_plan(tmp_path / "plan.json", told(schedule, model.fn), noise.numpy(), prediction="eps")
    assert theirs == pytest.approx(ours.numpy(), rel=1e-9, abs=1e-9)
    assert (plan.nfe, plan.depth) == (8, 5)


def test_documents_keep_to_the_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    plans = [PRESETS[name](VPLinear(), 5) for name in PRESETS]
    plans += [load_plan(path) for path in sorted((ROOT / "zoo").glob("*/plans/*.json"))]
    plans += [PRESETS["ddim"](Flow(), 3, to_zero=True).with_node(1, t_cond=0.5, width=1)]
    for plan in plans:
        document = json.loads(json.dumps(plan_document(plan), allow_nan=False))
        jsonschema.validate(document, SCHEMA)
        assert (document["compiled"] is None) == (plan.stochastic or plan.uses_sub_networks)


def test_state_and_told_time_are_two_fields():
    plan = PRESETS["ddim"](Flow(), 3, to_zero=True)
    own = plan.nodes[1].t
    row = plan_document(plan.with_node(1, t_cond=0.5))["compiled"]["rows"][1]
    assert (row["t"], row["t_cond"], row["timestep"]) == (own, 0.5, 500.0)
    assert (row["alpha"], row["sigma"]) == pytest.approx((1 - own, own))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda d: d | {"schema": "fewstep.plan/3"}, "unknown schema"),
        (lambda d: d | {"compiled": None}, "draws noise"),
        (lambda d: d | {"model": {"fingerprint": "b"}}, "for the weights b"),
        (lambda d: d["compiled"]["rows"][0].update(kind="other") or d, "unknown kind"),
        (lambda d: d["compiled"]["rows"][1].update(c=[1.0]) or d, "must weigh 2"),
    ],
)
def test_the_runner_fails_closed(run_plan, tmp_path, change, words):
    document = change(plan_document(PRESETS["ddim"](VPLinear(), 3)))
    (tmp_path / "plan.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=words):
        run_plan(tmp_path / "plan.json", lambda x, k: x, np.ones((1, 3)), prediction="eps", fingerprint="a")


def test_the_runner_is_forty_lines():
    assert len([line for line in RUNNER.splitlines() if line.strip()]) <= 40


def test_identities_are_those_of_version_1():
    """Plans of the zoo keep the hash that certificates and other plans name."""
    for path in sorted((ROOT / "zoo").glob("*/plans/*.json")):
        document = json.loads(path.read_text())
        plan = load_plan(path)
        assert document["schema"] == "fewstep.plan/1" and plan.to_json()["schema"] == "fewstep.plan/1"
