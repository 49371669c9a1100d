import weakref
from dataclasses import replace

import pytest
import torch
from toys import small_mixture

from fewstep.checks import ConfigError, DataError
from fewstep.data.pixels import to_u8
from fewstep.diffusion.condition import Classes, Condition
from fewstep.diffusion.denoiser import Model
from fewstep.diffusion.schedule import EDM, VPLinear
from fewstep.nets.folder import as_model
from fewstep.nets.unet import UNet
from fewstep.rng import ImageNoise, generator, initial_weights
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import Costs, sample, solve

VP = VPLinear()


def noise():
    return torch.randn(4, 3, generator=generator(0), dtype=torch.float64)


@pytest.fixture(scope="module")
def unet():
    net = UNet(8, 1, 8, multipliers=(1, 2), attention=(4,), head_channels=8, groups=2).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator(1)))
    return Model(
        lambda x, t: net(x, VP.time_input(t)),
        schedule=VP,
        prediction="eps",
        shape=(1, 8, 8),
        net=net,
        name="tiny",
    )


@pytest.mark.parametrize("name", ["dpmpp-2m", "ddpm", "unipc-2"])
def test_batch_size_never_changes_an_image(unet, name):
    plan = PRESETS[name](VP, 4, grid="uniform-t")
    alone = sample(unet, plan, seeds=range(5), batch_size=1)
    for batch_size in (2, 5, 64):
        assert torch.equal(sample(unet, plan, seeds=range(5), batch_size=batch_size), alone)
    assert torch.equal(sample(unet, plan, seeds=[3, 0], batch_size=2), alone[[3, 0]])
    assert alone.dtype == torch.uint8 and alone.shape == (5, 1, 8, 8) and alone.float().std() > 1


def test_sampling_is_solving_from_the_noise_of_the_seeds(unet):
    plan = PRESETS["ddpm"](VP, 3)
    per_image = ImageNoise([7, 8], (1, 8, 8))
    x0 = solve(unet, plan, per_image(), noise=per_image)
    assert torch.equal(sample(unet, plan, seeds=[7, 8]), to_u8(x0))


def test_start_has_the_spread_of_the_noised_data():
    started = []
    schedule = EDM()
    model = Model(lambda x, t: started.append(x) or x, schedule=schedule, prediction="x0", shape=(3,))
    sample(model, PRESETS["ddim"](schedule, 1), seeds=[4])
    torch.testing.assert_close(started[0], 80 * ImageNoise([4], (3,))())
    sample(model, PRESETS["ddim"](schedule, 1, t_start=20.0), seeds=[4])
    torch.testing.assert_close(started[1], 20 * ImageNoise([4], (3,))())


def test_costs_add_up_over_batches(unet):
    costs = Costs()
    sample(unet, PRESETS["unipc-2"](VP, 4), seeds=range(5), batch_size=2, costs=costs)
    assert (costs.images, costs.nfe, costs.network_calls) == (5, 4, 12)
    assert costs.network_seconds > 0


def test_progress_sees_every_batch(unet):
    seen = []

    def progress(batches):
        for batch in batches:
            seen.append(batch)
            yield batch

    sample(unet, PRESETS["ddim"](VP, 1), seeds=range(5), batch_size=2, progress=progress)
    assert len(seen) == 3


def test_conditions_and_guidance_reach_the_network():
    calls = []

    def fn(x, t, condition):
        calls.append(condition.values["label"].tolist())
        return 0 * x + condition.values["label"][:, None]

    model = Model(fn, schedule=VP, prediction="x0", shape=(3,), conditions=Classes(2))
    plan = replace(PRESETS["ddim"](VP, 1, to_zero=True), guidance=3.0)
    x0 = solve(model, plan, noise(), condition=model.condition_of(range(4)))
    assert calls == [[0, 1, 0, 1], [2, 2, 2, 2]]
    # unguided + 3 * (guided - unguided), with labels 0, 1 and "no class" 2
    torch.testing.assert_close(x0[:2, 0], torch.tensor([-4.0, -1.0], dtype=torch.float64))
    solve(model, plan, noise(), condition=model.condition_of(range(4)), guidance=1.0)
    assert len(calls) == 3
    sample(
        model, PRESETS["ddim"](VP, 1), seeds=range(3), batch_size=2, condition=model.condition_of([1, 0, 1])
    )
    assert calls[3:] == [[1, 0], [1]]
    with pytest.raises(ConfigError, match="a condition for each of the 3 seeds; got 2"):
        sample(model, PRESETS["ddim"](VP, 1), seeds=range(3), condition=model.condition_of([1, 0]))


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_images_of_classes_are_to_the_byte_those_of_labels(guidance):
    """A transcription of the rule seed modulo classes, and of guidance with the label n for no class."""
    with initial_weights(0):
        net = UNet(8, 1, 8, multipliers=(1, 2), attention=(4,), n_classes=3)
    for parameter in net.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator(1))
    model = as_model(net, schedule=VP, prediction="eps", shape=(1, 8, 8))
    seeds = [4, 5, 1_000_000_007, 0]
    labels = torch.tensor([s % 3 for s in seeds])

    def fn(x, t):
        output = net(x, VP.time_input(t), Condition({"label": labels}))
        if guidance == 1.0:
            return output
        unguided = net(x, VP.time_input(t), Condition({"label": torch.full((4,), 3)}))
        return unguided + guidance * (output - unguided)

    plan = PRESETS["unipc-2"](VP, 4, grid="uniform-t")
    by_hand = Model(fn, schedule=VP, prediction="eps", shape=(1, 8, 8), net=net)
    expected, costs = sample(by_hand, plan, seeds=seeds), Costs()
    condition = model.condition_of(seeds)
    assert torch.equal(
        sample(model, plan, seeds=seeds, condition=condition, guidance=guidance, costs=costs), expected
    )
    assert (costs.nfe, costs.calls) == (4, 4 if guidance == 1 else 8)
    in_parts = sample(model, plan, seeds=seeds, condition=condition, guidance=guidance, batch_size=3)
    assert torch.equal(in_parts, expected)


# Fields of the aligner, of slim and of quantised networks


def test_conditioning_time_only_changes_what_the_network_is_told():
    fed = []

    def fn(x, t):
        fed.append(float(t[0]))
        return torch.ones_like(x)

    model = Model(fn, schedule=VP, prediction="eps", shape=(3,))
    plan = PRESETS["dpmpp-2m"](VP, 3)
    x = noise()
    plain = solve(model, plan, x)
    conditioned = solve(model, plan.with_node(1, t_cond=0.37), x)
    assert fed[4] == 0.37 and fed[4] != fed[1]
    assert torch.equal(plain, conditioned)


def test_conversion_may_happen_at_the_conditioning_time():
    """With an x0 output, eps follows from the amplitudes of t_cond, and x0 from that eps at the node."""
    model = Model(lambda x, t: torch.zeros_like(x), schedule=VP, prediction="x0", shape=(3,))
    plan = replace(PRESETS["ddim"](VP, 1, to_zero=True).with_node(0, t_cond=0.5), convert_at="tau")
    x = noise()
    expected = (x - VP.sigma(1.0) * x / VP.sigma(0.5)) / VP.alpha(1.0)
    torch.testing.assert_close(solve(model, plan, x), expected)


def test_eps_scale_multiplies_the_predicted_noise():
    model = Model(lambda x, t: 0.5 * x, schedule=VP, prediction="eps", shape=(3,))
    scaled = Model(lambda x, t: 0.6 * x, schedule=VP, prediction="eps", shape=(3,))
    plan = PRESETS["ddim"](VP, 1)
    torch.testing.assert_close(
        solve(model, plan.with_node(0, eps_scale=1.2), noise()), solve(scaled, plan, noise())
    )


def test_analytic_first_step_needs_no_network():
    model, costs = small_mixture().model(VP), Costs()
    plan = PRESETS["ddim"](VP, 3)
    solve(model, plan.with_node(0, eval="afs_zero"), noise(), costs=costs)
    assert costs.nfe == 2
    with pytest.raises(ConfigError, match="needs data_mean"):
        solve(model, plan.with_node(0, eval="afs_mean"), noise())


def test_network_is_set_to_the_bits_of_each_node():
    bits = []
    plan = PRESETS["ddim"](VP, 3).with_node(1, quant="w4a8")
    model = small_mixture().model(VP)
    with pytest.raises(ConfigError, match="needs a model that can change; pass select"):
        solve(model, plan, noise())
    solve(model, plan, noise(), select=lambda node: bits.append(node.quant))
    assert bits == [None, "w4a8", None]


def test_each_node_asks_the_network_of_its_width():
    full = small_mixture().model(VP)
    asked = []

    def at_width(width):
        return lambda x, t: asked.append(width) or full.fn(x, t) * (1 - 0.1 * width)

    model = replace(full, widths=(1.0, 0.5, 0.25), at_width=at_width)
    plan = PRESETS["ddim"](VP, 3).with_node(1, width=2).with_node(2, width=1)
    narrow = solve(model, plan, noise())
    assert asked == [2, 1]
    assert not torch.equal(narrow, solve(model, PRESETS["ddim"](VP, 3), noise()))
    assert torch.equal(
        solve(model, PRESETS["ddim"](VP, 3).with_node(0, width=0), noise()),
        solve(full, PRESETS["ddim"](VP, 3), noise()),
    )


def test_width_that_the_model_lacks_is_refused_before_the_first_call():
    plan = PRESETS["ddim"](VP, 3).with_node(2, width=1)
    with pytest.raises(ConfigError, match=r"index into the model's widths, \[1.0\]; got 1"):
        solve(small_mixture().model(VP), plan, noise())


def test_told_time_changes_the_prediction_and_not_the_input_scale():
    """EDM's c_in stays that of the node's time; only what the network is told moves."""
    seen = []
    schedule = EDM()
    model = Model(
        fn=lambda x, t: seen.append((x.clone(), t.clone())) or torch.zeros_like(x),
        schedule=schedule,
        prediction="edm",
        shape=(2,),
    )
    plan = PRESETS["ddim"](schedule, 3)
    for told in (None, 0.7):
        solve(model, plan.with_node(0, t_cond=told), torch.ones(2, 2))
    assert torch.equal(seen[0][0], seen[3][0])
    assert seen[0][1][0] == torch.tensor(plan.nodes[0].t).float() and seen[3][1][0] == torch.tensor(0.7)


def test_told_time_outside_the_trained_range_is_refused():
    with pytest.raises(ConfigError, match=r"nodes\[1\].t_cond must lie within the model's range"):
        solve(small_mixture().model(VP), PRESETS["ddim"](VP, 3).with_node(1, t_cond=1.5), noise())


def test_clip_bounds_the_result():
    model = small_mixture().model(VP)
    assert solve(model, replace(PRESETS["ddim"](VP, 3), clip=0.1), noise()).abs().max() == 0.1


# Memory, dtypes, failures


def test_predictions_are_freed_once_no_step_needs_them():
    outputs, alive = [], []

    def fn(x, t):
        alive.append(sum(output() is not None for output in outputs))
        output = 0.1 * x
        outputs.append(weakref.ref(output))
        return output

    model = Model(fn, schedule=VP, prediction="x0", shape=(3,))
    solve(model, PRESETS["dpmpp-2m"](VP, 12), noise())
    # order 2 looks back on one prediction
    assert max(alive) <= 1


def test_outputs_that_share_memory_are_not_overwritten():
    constant = torch.full((4, 3), 0.25, dtype=torch.float64)
    x = noise()
    kept = x.clone()
    model = Model(lambda x, t: constant, schedule=VP, prediction="x0", shape=(3,))
    solve(model, PRESETS["unipc-3"](VP, 6), x)
    assert (constant == 0.25).all() and torch.equal(x, kept)


def test_state_keeps_its_dtype_whatever_the_network_uses(unet):
    plan = PRESETS["dpmpp-2m"](VP, 4, t_end=0.01)
    x = ImageNoise([0, 1], (1, 8, 8))()
    single = solve(unet, plan, x)
    assert single.dtype == torch.float32 and not single.is_inference()
    assert solve(unet, plan, x.double()).dtype == torch.float64
    short = solve(unet, plan, x, dtype=torch.bfloat16)
    assert short.dtype == torch.float32 and not torch.equal(short, single)
    with pytest.raises(ConfigError, match="x_T must be float32 or float64.*got torch.float16"):
        solve(unet, plan, x.half())


def test_float32_state_loses_little():
    model = small_mixture().model(VP)
    for name in ("dpmpp-2m", "unipc-3", "deis-3"):
        plan = PRESETS[name](VP, 8, grid="quadratic-t")
        exact = solve(model, plan, noise())
        mixture32 = small_mixture()
        mixture32 = type(mixture32)(*(getattr(mixture32, f).float() for f in ("weights", "means", "stds")))
        single = solve(mixture32.model(VP), plan, noise().float())
        torch.testing.assert_close(single.double(), exact, rtol=1e-3, atol=1e-3)


def test_shape_must_be_the_models():
    model = small_mixture().model(VP)
    with pytest.raises(DataError, match=r"x_T must have the shape \(B, 3\); got \(4, 2\)"):
        solve(model, PRESETS["ddim"](VP, 2), noise()[:, :2])


def test_states_that_are_not_finite_name_the_step():
    calls = []

    def fn(x, t):
        calls.append(1)
        return x * float("nan") if len(calls) == 3 else 0 * x

    model = Model(fn, schedule=VP, prediction="x0", shape=(3,))
    with pytest.raises(DataError, match=r"after step 2 \(node 3\) it is not"):
        solve(model, PRESETS["dpmpp-2m"](VP, 5), noise())


def test_plan_for_other_weights_is_refused_unless_forced():
    model = replace(small_mixture().model(VP), fingerprint="b" * 64)
    plan = replace(PRESETS["ddim"](VP, 2), fingerprint="a" * 64)
    with pytest.raises(
        ConfigError, match="fingerprint aaaaaaaaaaaaaaaa, but gaussian-mixture has bbbbbbbbbbbbbbbb"
    ):
        solve(model, plan, noise())
    solve(model, plan, noise(), force=True)
    solve(model, replace(plan, fingerprint="b" * 64), noise())


def test_stochastic_plans_ask_for_noise():
    with pytest.raises(ConfigError, match="eta > 0 draws noise"):
        solve(small_mixture().model(VP), PRESETS["ddpm"](VP, 2), noise())


def test_batch_size_must_be_positive(unet):
    with pytest.raises(ConfigError, match="batch_size must be at least 1; got 0"):
        sample(unet, PRESETS["ddim"](VP, 2), seeds=[0], batch_size=0)
