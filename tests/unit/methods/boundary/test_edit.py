"""Latents, edits and boundary files on small networks: invariants that need no training."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from unit.sampling.test_region import TABLE, images, network

from fewstep.checks import ConfigError, DataError
from fewstep.data.pixels import to_unit
from fewstep.diffusion.schedule import VPLinear
from fewstep.methods.boundary.boundary import BOTH, SPACES, WHERE, Boundary, load_boundary, save_boundary
from fewstep.methods.boundary.edit import Start, generated, unedited
from fewstep.methods.boundary.latents import (
    Latents,
    inverted,
    overriding,
    plan_from,
    plan_to,
    require_editable,
    sampled,
)
from fewstep.methods.boundary.plane import fit_plane
from fewstep.nets.folder import as_model
from fewstep.nets.unet import UNet
from fewstep.rng import generator
from fewstep.sampling.inverse import inverse
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import solve

POSITIVE = np.arange(40) % 2 == 0


def fitted():
    """A model, and a boundary of latents that are nothing but noise."""
    model = replace(network(), pixel_times=False, fingerprint="f" * 64)
    plan = plan_to(TABLE, 0.3, 4)
    latents = Latents(noise(40, 1, 8, 8), noise(40, *model.net.middle_out.conv2.weight.shape[:1], 4, 4))
    planes = {space: fit_plane(latents.of(space), POSITIVE, 0.1) for space in SPACES}
    return model, Boundary("a/b", "f" * 64, plan, planes, {"eps": 0.9, "h": 0.55}, {"images": [20, 20]})


def noise(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed))


def calls_of(model):
    """The model with a list of the times that its network is called at."""
    times = []
    plain = model.fn

    def fn(x, t, condition=None):
        times.append(round(float(t[0]), 5))
        return plain(x, t)

    return replace(model, fn=fn), times


def test_the_way_down_and_up_again_is_the_network():
    model = network()
    x, time = noise(3, 1, 8, 8), torch.tensor(200.0)
    net = model.net
    with torch.no_grad():
        emb = net.embed(time, like=x)
        h, skips = net.encode(x, emb)
        assert torch.equal(net.decode(net.middle(h, emb), skips, emb), net(x, time))


def test_latents_are_those_of_the_plan_run_backwards_with_the_bottleneck_of_a_call_there():
    model, plan = network(), plan_to(TABLE, 0.3, 4)
    counted, times = calls_of(model)
    found = inverted(counted, plan, images(), batch_size=100)
    assert times == [0.001, pytest.approx(0.10067, abs=1e-5), pytest.approx(0.20033, abs=1e-5), 0.3]
    assert torch.equal(found.eps, solve(model, inverse(plan, TABLE), to_unit(images())))
    with torch.no_grad():
        emb = model.net.embed(TABLE.time_input(torch.tensor(0.3)), like=found.eps)
        h, _ = model.net.encode(found.eps, emb)
        assert torch.allclose(found.h, model.net.middle(h, emb), atol=1e-6)
    apart = inverted(model, plan, images(), batch_size=4)
    assert torch.allclose(apart.eps, found.eps, atol=1e-5) and torch.allclose(apart.h, found.h, atol=1e-4)


def test_its_own_bottleneck_in_its_place_changes_nothing():
    model, plan = network(), plan_to(TABLE, 0.3, 4)
    latents = inverted(model, plan, images())
    plain = generated(model, plan, unedited(latents))
    assert torch.equal(generated(model, plan, Start(latents.eps, latents.h)), plain)
    assert not torch.equal(generated(model, plan, Start(latents.eps, 50 * noise(*latents.h.shape))), plain)


@pytest.mark.parametrize("lagged", [False, True])
def test_the_bottleneck_is_replaced_in_the_first_call_alone_unless_it_lags(lagged):
    """Lagged, each later call gets the bottleneck of the call before, as in the official code."""
    model, plan = network(), plan_to(TABLE, 0.3, 4)
    given, own = [], []
    h = noise(6, model.net.middle_out.conv2.out_channels, 4, 4)
    up, down = model.net.decode, model.net.middle

    def decode(bottleneck, *rest):
        given.append(bottleneck.clone())
        return up(bottleneck, *rest)

    def middle(*arguments):
        # the hook stands on the last block, so that what it puts in its place comes out here
        return down(*arguments)

    model.net.decode, model.net.middle = decode, middle
    handle = model.net.middle_out.register_forward_hook(lambda _, __, out: own.append(out.clone()))
    generated(model, plan, Start(noise(6, 1, 8, 8), h), lagged=lagged)
    handle.remove()
    assert len(given) == len(own) == 4
    assert torch.equal(given[0], h) and not torch.equal(own[0], h)
    for k in range(1, 4):
        assert torch.equal(given[k], own[k - 1] if lagged else own[k])
    assert not model.net.middle_out._forward_hooks, "no hook is left behind"


def test_a_hook_does_not_outlive_a_call_that_fails():
    model = network()

    def fail(h):
        raise ValueError("no")

    with pytest.raises(ValueError):
        overriding(model, fail)(noise(1, 1, 8, 8), torch.tensor([0.3]))
    assert not model.net.middle_out._forward_hooks


@pytest.mark.parametrize("where", WHERE)
def test_an_edit_moves_latents_to_the_distance_and_the_control_as_far(where):
    _, boundary = fitted()
    latents = Latents(noise(5, 1, 8, 8, seed=1), noise(5, *boundary.planes["h"].normal.shape, seed=2))
    for zeta in (-1.0, 0.0, 2.0):
        start = boundary.start(latents, where, zeta)
        random = boundary.start(latents, where, zeta, random=7)
        for space, own, other in (("eps", start.eps, random.eps), ("h", start.h, random.h)):
            plane, before = boundary.planes[space], latents.of(space)
            if where not in (space, BOTH):
                assert own is None or torch.equal(own, before)
                continue
            assert torch.allclose(
                plane.distance(own), torch.full((5,), zeta * plane.scale).double(), atol=1e-5
            )
            lengths = [(moved - before).flatten(1).norm(dim=1) for moved in (own, other)]
            assert torch.allclose(*lengths, atol=1e-5)
            assert float((other - own).flatten(1).norm(dim=1).min()) > 0.01
    near, far = (
        boundary.start(latents, "eps", 1.0, random=7, times=times).eps - latents.eps for times in (1, 3)
    )
    assert torch.allclose(3 * near, far, atol=1e-5)
    one = boundary.start(latents[1:2], "eps", 1.0, random=8)
    assert torch.equal(one.eps, boundary.start(latents, "eps", 1.0, random=7).eps[1:2]), (
        "of an image, not of a batch"
    )


def test_noise_in_the_edit_is_that_of_each_images_seed():
    model, plan = network(), plan_to(TABLE, 0.3, 4)
    start = Start(noise(6, 1, 8, 8))
    plain = generated(model, plan, start)
    made = generated(model, plan, start, eta=1.0, seeds=range(6), batch_size=6)
    apart = generated(model, plan, start, eta=1.0, seeds=range(6), batch_size=4)
    assert not torch.equal(made, plain) and int((made.int() - apart.int()).abs().max()) <= 1
    with pytest.raises(ConfigError, match="need a seed for each of the 6 images"):
        generated(model, plan, start, eta=1.0)


def test_images_of_noise_come_to_the_mixing_step_by_the_same_loop():
    model, plan = network(), plan_to(TABLE, 0.3, 4)
    counted, times = calls_of(model)
    latents = sampled(counted, plan, range(6), calls=3)
    assert len(times) == 4 and times[0] == 1.0 and times[-1] == 0.3
    assert len(latents) == 6 and latents.h.shape[0] == 6


def test_a_boundary_is_a_file_that_says_what_it_is_for(tmp_path):
    _, boundary = fitted()
    path = tmp_path / "b.npz"
    save_boundary(path, boundary)
    again = load_boundary(path)
    assert again.plan == boundary.plan and again.t == 0.3 and again.attribute == "a/b"
    assert again.accuracy == boundary.accuracy and again.facts == {"images": [20, 20]}
    for space in SPACES:
        one, other = boundary.planes[space], again.planes[space]
        assert torch.equal(one.normal.double(), other.normal)
        assert (one.offset, one.scale, one.c) == (other.offset, other.scale, other.c)
    with np.load(path, allow_pickle=False) as archive:
        meta = json.loads(str(archive["meta"][()]))
        arrays = {name: archive[name] for name in archive.files}
    assert meta["model"] == "f" * 64 and meta["plan_hash"] == boundary.plan.hash and meta["t"] == 0.3

    def written(**changes):
        bad = {**arrays, "meta": np.array(json.dumps({**meta, **changes.pop("meta", {})})), **changes}
        np.savez(tmp_path / "bad.npz", **bad)
        return tmp_path / "bad.npz"

    for changes, why in (
        ({"meta": {"schema": "x"}}, "the schema 'x'"),
        ({"meta": {"plan_hash": "0"}}, "a plan of another hash"),
        ({"eps": 2 * arrays["eps"]}, "of length 2, not"),
        ({"h": arrays["h"][:1]}, "not float64"),
        ({"eps": np.full_like(arrays["eps"], np.nan)}, "of length nan"),
        ({"eps": np.array([{}], dtype=object)}, "allow_pickle"),
    ):
        with pytest.raises(DataError, match="must be a boundary of fewstep boundary fit") as caught:
            load_boundary(written(**changes))
        assert why in str(caught.value)
    (tmp_path / "torn.npz").write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="must be a boundary"):
        load_boundary(tmp_path / "torn.npz")
    with pytest.raises(DataError, match="There is no boundary at"):
        load_boundary(tmp_path / "none.npz")


def test_a_boundary_is_refused_where_it_does_not_fit():
    model, boundary = fitted()
    boundary.require(model)
    with pytest.raises(ConfigError, match="is for the model with fingerprint ffff.* fit one for this model"):
        boundary.require(replace(model, fingerprint="e" * 64))
    boundary.require_accurate("eps")
    with pytest.raises(
        ConfigError, match="no boundary for a/b in h-space at the step 0.3: 55% .* with --force"
    ):
        boundary.require_accurate(BOTH)
    with pytest.raises(DataError, match=r"shape of the boundary a/b, \(1, 8, 8\); got \(1, 4, 4\)"):
        boundary.start(Latents(noise(2, 1, 4, 4), noise(2, 16, 4, 4)), "eps", 1.0)
    latents = Latents(noise(2, 1, 8, 8), noise(2, *boundary.planes["h"].normal.shape))
    for zeta in (float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="--zeta must be finite"):
            boundary.start(latents, BOTH, zeta)
    with pytest.raises(ConfigError, match="must be one of eps, h, both; got 'z'"):
        boundary.start(latents, "z", 1.0)


def test_steps_and_calls_that_cannot_be_are_refused():
    for t in (0.0, 0.001, 1.0, 2.0, float("nan")):
        with pytest.raises(
            ConfigError, match="must lie between data and noise, above 0.001 and below 1; got"
        ):
            plan_to(TABLE, t, 4)
    for calls in (1, 11):
        with pytest.raises(
            ConfigError, match="--calls must be 2 to 10, the rows of the table up to .* 0.01; got"
        ):
            plan_to(TABLE, 0.01, calls)
    assert plan_to(TABLE, 0.01, 10).nfe == 10
    with pytest.raises(ConfigError, match="--calls must be 2 or more; got 1"):
        plan_to(VPLinear(), 0.5, 1)
    plan = PRESETS["ddim"](TABLE, 10, grid="uniform-t", to_zero=True)
    part = plan_from(plan, TABLE, 0.33)
    assert part.nodes[0].t == pytest.approx(0.334) and part.nfe == 4 and part.to_zero
    with pytest.raises(ConfigError, match="2 calls or more from the mixing step 0.01 on; .* makes 1"):
        plan_from(plan, TABLE, 0.01)
    with pytest.raises(ConfigError, match="without noise"):
        plan_from(PRESETS["ddpm"](TABLE, 10, to_zero=True), TABLE, 0.3)
    with pytest.raises(ConfigError, match="steps of order 1"):
        plan_from(PRESETS["dpmpp-2m"](TABLE, 10, to_zero=True), TABLE, 0.3)


def test_models_that_cannot_be_edited_are_refused():
    require_editable(network())
    with pytest.raises(ConfigError, match="needs a U-Net of this project, on pixels"):
        require_editable(replace(network(), net=torch.nn.Linear(2, 2)))
    with pytest.raises(ConfigError, match="on pixels"):
        require_editable(replace(network(), decode=lambda x: x))
    conditional = as_model(
        UNet(8, 1, 8, (1, 2), attention=(4,), n_classes=3), schedule=TABLE, prediction="eps", shape=(1, 8, 8)
    )
    require_editable(conditional)
    with pytest.raises(ConfigError, match="has no null condition"):
        require_editable(replace(conditional, conditions=conditional.conditions.without_null()))
    with pytest.raises(DataError, match=r"of the model's shape, \(1, 8, 8\); got \(1, 4, 4\)"):
        inverted(network(), plan_to(TABLE, 0.3, 4), torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
