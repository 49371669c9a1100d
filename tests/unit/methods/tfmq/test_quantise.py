"""The quantisation of a network: what it keeps, what it gains, and what it refuses."""

from dataclasses import replace
from functools import cache

import networks
import pytest
import torch

from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.condition import LABEL, Condition
from fewstep.methods.tfmq.calibration import record
from fewstep.methods.tfmq.kept import Kept
from fewstep.methods.tfmq.quantise import Recipe, quantise
from fewstep.methods.tfmq.stage.run import with_bits
from fewstep.methods.tfmq.temporal import times_of
from fewstep.nets.integers import networks as networks_of
from fewstep.nets.quantised import Bits
from fewstep.nets.roles import TIME, roles_of
from fewstep.nets.transformer import Transformer
from fewstep.rng import initial_weights
from fewstep.sampling.quantised import attached
from fewstep.sampling.sample import solve
from fewstep.sampling.task import Task

FEW = {"iterations": 8, "temporal_iterations": 100}


def made(bits, method="tfmq", *, task=None, plan=None, calls=None, kept=None, **changes):
    task, plan = task or networks.task(), plan or networks.plan()
    calls = networks.calls() if calls is None and task is networks.task() else calls
    recipe = Recipe(Bits.parse(bits), method, **FEW | changes)
    return quantise(task, plan, recipe, seeds=networks.SEEDS, calls=calls, kept=kept)


@cache
def known(bits, method="tfmq", **changes):
    """The same of the plain network, made once for all tests."""
    return made(bits, method, **changes)


def drift(report):
    return sum(report.drift[0].cosine) / len(report.drift[0].cosine)


def sampled(integers, plan=None, task=None):
    task, plan = task or networks.task(), plan or networks.plan()
    model = attached(task.model, integers)
    return Task(model, batch_size=16).solve(with_bits(plan, integers), range(300, 316))


def error(integers):
    return float((sampled(integers) - networks.task().solve(networks.plan(), range(300, 316))).pow(2).mean())


def test_the_features_of_times_are_those_in_the_network_whatever_the_image():
    net = networks.model().module(0)
    time = torch.tensor([30.0, 700.0])
    seen = {}
    hooks = [
        net.get_submodule(unit).emb.register_forward_hook(lambda m, i, out, u=unit: seen.update({u: out}))
        for unit in net.units()
    ]
    with torch.no_grad():
        net(torch.randn(2, 1, 8, 8, generator=networks.generator(5)), time)
        for hook in hooks:
            hook.remove()
        for unit, features in zip(net.units(), net.temporal(time), strict=True):
            assert torch.equal(features, seen[unit])


def test_every_layer_of_the_networks_has_a_role():
    with initial_weights(0):
        transformer = Transformer(8, 1, 16, depth=1, n_classes=3, context=8, maps={"mask": 1})
        unet = networks.unet(n_classes=3, context=8, maps={"mask": 1}, attention=(4, 8))
    for net in (transformer, unet):
        roles = roles_of(net, "net")
        assert {"first", "last", "attn", "body", *TIME} <= set(roles.values())
        assert len(net.temporal(torch.tensor([5.0]))) == sum(role == "time_proj" for role in roles.values())


def test_reconstructed_features_are_nearer_and_never_those_of_another_call():
    for bits in ("w3a32", "w4a32"):
        _, nearest = known(bits, "naive")
        _, learned = known(bits, iterations=0, temporal_iterations=200)
        # the paper's point; with 4 calls and drawn weights 2.5 to 4 times
        assert drift(learned) < 0.5 * drift(nearest)
        assert learned.drift[0].nearest == (0, 1, 2, 3)


def test_both_scopes_have_the_same_ranges_in_the_layers_of_the_time():
    """What ranges of each call gain is in test_ranges.py: here the weights are drawn, and all calls see like ranges."""
    drifts = {s: drift(known("w8a8", iterations=0, scope=s)[1]) for s in ("tib", "all")}
    assert drifts["tib"] == drifts["all"]


def test_a_table_has_no_drift():
    integers, report = known("w4a8", "table", iterations=0)
    assert drift(report) < 1e-12
    roles = roles_of(networks.model().module(0), "net")
    assert not {roles[layer] for _, layer in integers.codes} & set(TIME)


def test_reconstruction_is_nearer_to_floats_than_nearest_integers_and_8_bits_than_4_than_3():
    errors = {bits: error(known(bits, iterations=30)[0]) for bits in ("w8a8", "w4a8", "w2a8")}
    assert errors["w8a8"] < errors["w4a8"] < errors["w2a8"]
    assert errors["w4a8"] < error(known("w4a8", "naive")[0])


def test_projections_stay_as_they_were_rounded_for_the_features_and_floats_stay_floats():
    before = {name: value.clone() for name, value in networks.model().net.state_dict().items()}
    first, _ = known("w4a8", iterations=0)
    second, _ = known("w4a8")
    roles = roles_of(networks.model().module(0), "net")
    for (width, layer), codes in first.codes.items():
        same = torch.equal(codes.integers, second.codes[width, layer].integers)
        assert same or roles[layer] not in TIME
    assert any(not torch.equal(c.integers, second.codes[k].integers) for k, c in first.codes.items())
    assert all(torch.equal(value, before[name]) for name, value in networks.model().net.state_dict().items())


def test_the_same_recipe_gives_the_same_integers_and_an_interrupted_one_resumes(tmp_path):
    whole, _ = made("w4a8", kept=Kept(tmp_path / "whole", "x"))
    assert known("w4a8")[0].sha256 == whole.sha256
    files = sorted((tmp_path / "whole").iterdir())
    kept = tmp_path / "part"
    kept.mkdir()
    for file in files[: len(files) // 2]:  # as a killed process leaves it
        (kept / file.name).write_bytes(file.read_bytes())
    (kept / files[-1].name).write_bytes(files[-1].read_bytes()[:50])
    assert made("w4a8", kept=Kept(kept, "x"))[0].sha256 == whole.sha256
    assert {file.name for file in kept.iterdir()} == {file.name for file in files}


def test_each_width_that_a_plan_calls_has_integers_of_its_own():
    task = networks.task((1.0, 0.5))
    plan = networks.plan()
    plan = replace(
        plan, nodes=tuple(replace(n, width=i % 2) if n.eval == "net" else n for i, n in enumerate(plan.nodes))
    )
    integers, report = made("w8a8", task=task, plan=plan, calls=record(task, plan, networks.SEEDS))
    assert integers.widths == (0, 1, 0, 1) and set(report.drift) == {0, 1}
    made_of = sampled(integers, plan, task)
    exact = task.solve(plan, range(300, 316))
    assert float((made_of - exact).pow(2).mean()) < 0.01 * float(exact.pow(2).mean())


def test_classes_are_all_seen_and_quantised_with():
    task = networks.task(n_classes=3)
    times = times_of(list(enumerate(record(task, networks.plan(), networks.SEEDS))), 3, seed=0)
    assert len(times.time) == 4 * 4
    assert times.condition.values[LABEL].tolist() == [0, 1, 2, 3] * 4
    integers, _ = made("w8a8", task=task, calls=record(task, networks.plan(), networks.SEEDS))
    x = torch.randn(3, 1, 8, 8, generator=networks.generator(5))
    of_call = networks_of(integers, task.model)(1)
    condition = Condition({LABEL: torch.tensor([0, 1, 3])})
    t = torch.full((3,), integers.times[1])
    assert torch.allclose(of_call(x, t, condition), task.model.fn(x, t, condition), atol=0.1)


def test_guidance_is_calibrated_on_both_branches():
    task = Task(networks.model(n_classes=3), guidance=2.0, batch_size=16)
    call = record(task, networks.plan(), networks.SEEDS)[0]
    assert len(call.x) == 2 * len(networks.SEEDS)
    assert sorted(set(call.condition.values[LABEL].tolist())) == [0, 1, 2, 3]


def test_a_plan_with_bits_is_not_quantised_again():
    integers, _ = known("w8a8", "naive")
    with pytest.raises(ConfigError, match="has bits already"):
        quantise(
            networks.task(), with_bits(networks.plan(), integers), Recipe(Bits(8, 8)), seeds=networks.SEEDS
        )


def test_a_network_without_roles_names_its_unknown_layers():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.up = torch.nn.Conv2d(1, 1, 1), torch.nn.ConvTranspose2d(1, 1, 1)

    with pytest.raises(ConfigError, match="2 unknown layers: a, up"):
        roles_of(Odd(), "odd")
    net = networks.unet()
    net.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=r"1 layers of net have none: extra"):
        roles_of(net, "net")
    with pytest.raises(ConfigError, match="a function"):
        roles_of(None, "f")


def test_too_few_noises_and_states_that_are_not_finite_are_refused():
    with pytest.raises(ConfigError, match="at least 8 noises"):
        record(networks.task(), networks.plan(), range(7))
    bad = replace(networks.calls()[2], x=networks.calls()[2].x.clone())
    bad.x[0, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match=r"1 of .* that enter .* at call 2 are not"):
        made("w8a8", "naive", calls=[*networks.calls()[:2], bad, networks.calls()[3]], keep=())


def test_affine_weights_of_8_bits_do_not_fit_integer_kernels():
    with pytest.raises(ConfigError, match="weight_scheme must be symmetric or auto"):
        Recipe(Bits(8, 8), scheme="affine")


def test_a_plan_in_bits_needs_its_integers():
    integers, _ = known("w8a8", "naive")
    plan = with_bits(networks.plan(), integers)
    x_T = torch.zeros(1, 1, 8, 8)
    with pytest.raises(ConfigError, match="with_integers"):
        solve(networks.model(), plan, x_T)
    solve(attached(networks.model(), integers), plan, x_T)
