"""Costs of widths and plans, against closed forms and the sampler's own calls."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from unit.sampling.toys import small_mixture

from fewstep.checks import ConfigError
from fewstep.diffusion.denoiser import Model
from fewstep.diffusion.schedule import VPLinear
from fewstep.methods.ddsm import cost
from fewstep.methods.ddsm.cost import CostTable, cost_of, latencies, macs, total_cost
from fewstep.methods.ddsm.widths import with_widths
from fewstep.nets.slim import sub_networks
from fewstep.nets.unet import Attention, UNet
from fewstep.rng import initial_weights
from fewstep.sampling.plan import Corrector
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import solve

VP = VPLinear()
WIDTHS = (1.0, 0.75, 0.5, 0.25)


def slimmable(n_classes=0, channels=32):
    with initial_weights(0):
        net = UNet(8, 1, channels, (1, 2), attention=(4,), n_classes=n_classes).eval().requires_grad_(False)
    return Model(
        net,
        schedule=VP,
        shape=(1, 8, 8),
        conditions=net.conditions,
        net=net,
        widths=WIDTHS,
        at_width=sub_networks(net, WIDTHS),
    )


def closed_form(net, *arguments):
    """Multiply-adds by the sizes of the layers: out x in x kernel x pixels, and twice (HW)^2 C of attention."""
    found = []

    def conv(module, inputs, output):
        found.append(output[0].numel() * module.in_channels * module.kernel_size[0] * module.kernel_size[1])

    def linear(module, inputs, output):
        found.append(output[0].numel() * module.in_features)

    def attention(module, inputs, output):
        pixels = output.shape[2] * output.shape[3]
        found.append(2 * pixels**2 * output.shape[1])

    rules = {nn.Conv2d: conv, nn.Linear: linear, Attention: attention}
    hooks = [
        module.register_forward_hook(rules[type(module)]) for module in net.modules() if type(module) in rules
    ]
    net(*arguments)
    for hook in hooks:
        hook.remove()
    return sum(found)


@pytest.mark.parametrize("n_classes", [0, 3])
def test_multiply_adds_equal_the_closed_form(n_classes):
    model = slimmable(n_classes)
    x, t, condition = torch.zeros(1, 1, 8, 8), torch.zeros(1), model.condition_of([0])
    table = macs(model)
    for k, counted in enumerate(table.widths):
        assert counted == closed_form(model.at_width(k), x, t, *([condition] if n_classes else []))
    assert table.kind == "macs" and table.fixed == 0


def test_multiply_adds_fall_about_with_the_square_of_the_width():
    full, *narrow = macs(slimmable(channels=64)).widths
    for count, width in zip(narrow, WIDTHS[1:], strict=True):
        # the image's own channels, and the sinusoids of the time, are not narrowed: linear terms, a few percent
        assert width**2 < count / full < width**2 + 0.03


def test_guidance_asks_twice_and_a_decoder_comes_once():
    model = slimmable(n_classes=3)
    assert macs(model, guidance=2.0).widths == tuple(2 * count for count in macs(model).widths)
    weight = torch.zeros(5, 64)
    latent = replace(model, decode=lambda z: (z.flatten(1) @ weight.T)[:, None, None])
    assert macs(latent).fixed == 5 * 64
    assert macs(latent).widths == macs(model).widths


def test_what_cannot_be_counted_is_refused():
    counted = slimmable()
    silent = replace(counted, fn=lambda x, t: x, net=None, at_width=lambda k: lambda x, t: x)
    with pytest.raises(ConfigError, match="must be countable"):
        macs(silent)
    with pytest.raises(ConfigError, match="must have several widths"):
        macs(small_mixture().model(VP))
    with pytest.raises(ConfigError, match="must have several widths"):
        latencies(small_mixture().model(VP), batch_size=1)
    with pytest.raises(ConfigError, match="must be at least 1"):
        latencies(counted, batch_size=0)


class Clock:
    """Time that passes only when work says so."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def model(self, order, *, stuck=None):
        """A model whose width k takes 8 / 2^k ms a call, its call number `stuck` a second; notes who was asked."""

        def at_width(k):
            def fn(x, t):
                self.now += 1.0 if len(order) == stuck else 0.008 / 2**k
                order.append(k)
                return x

            return fn

        return replace(small_mixture().model(VP), fn=at_width(0), widths=(1.0, 0.5, 0.25), at_width=at_width)


def test_times_are_medians_per_image_of_widths_that_take_turns(monkeypatch):
    order = []
    table = latencies(Clock(monkeypatch).model(order, stuck=12), batch_size=4, repeats=5)
    assert order == [0, 1, 2] * 7
    assert table.kind == "ms" and table.widths == pytest.approx((2, 1, 0.5)) and table.fixed == 0


def test_times_of_latent_models_have_that_of_the_decoder(monkeypatch):
    clock = Clock(monkeypatch)

    def decode(z):
        clock.now += 0.004
        return z

    table = latencies(replace(clock.model([]), decode=decode), batch_size=2, repeats=3)
    assert table.fixed == pytest.approx(2)  # 4 ms of two images
    assert table.widths == pytest.approx((4, 2, 1))


# Plans


@pytest.mark.parametrize("implicit", [False, True])
def test_a_plan_costs_what_its_calls_cost(implicit):
    """The sum over the calls that the sampler makes, each told by the sub-network that is asked."""
    plan = PRESETS["unipc-2"](VP, 5, to_zero=True)
    if implicit:
        step = plan.steps[1]
        plan = plan.with_step(1, corr=Corrector("implicit", step.corr.deriv))
    order = []
    exact = small_mixture().model(VP)
    noted = lambda k: lambda x, t: (order.append(k), exact.fn(x, t))[1]  # noqa: E731
    model = replace(exact, fn=noted(0), widths=(1.0, 0.5, 0.25), at_width=noted)
    narrowed = with_widths(plan, (0, 2, 1, 1, 2))
    solve(model, narrowed, torch.zeros(1, 3, dtype=torch.float64))
    table = CostTable("macs", (100.0, 25.0, 7.0), fixed=1000.0)
    assert len(order) == plan.nfe == 5 + implicit
    assert cost_of(narrowed, table) == sum(table.widths[k] for k in order) + 1000
    assert table.of_steps(narrowed).sum(0)[0] == 100 * plan.nfe


def test_the_order_of_widths_does_not_move_the_cost():
    plan, table = PRESETS["ddim"](VP, 6), CostTable("ms", (0.1, 0.07, 0.0123))
    assert total_cost((0, 1, 2, 2, 1, 0), plan, table) == total_cost((2, 1, 0, 1, 2, 0), plan, table)


def test_a_width_that_the_model_lacks_is_refused():
    plan = with_widths(PRESETS["ddim"](VP, 2), (0, 3))
    with pytest.raises(ConfigError, match="must be among the 2"):
        cost_of(plan, CostTable("macs", (2.0, 1.0)))
