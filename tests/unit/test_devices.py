"""Float32 on a device gives what float64 gives on the CPU: on a GPU where there is one, or on FEWSTEP_TEST_DEVICE."""

import os

import pytest
import torch
from unit.train.toy import ToyImages, tiny_net

from fewstep.diffusion.denoiser import Model
from fewstep.diffusion.schedule import DDPMTable
from fewstep.metrics.frechet import frechet
from fewstep.metrics.statistics import Statistics
from fewstep.nets.slim import Narrow
from fewstep.nets.transformer import Transformer
from fewstep.nets.unet import UNet
from fewstep.rng import ImageNoise, generator, initial_weights
from fewstep.sampling.descent import trajectory_gradient
from fewstep.sampling.free import FreePlan
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import sample, solve
from fewstep.sampling.solver import Values
from fewstep.sampling.task import Task, distances
from fewstep.train.denoiser import train_denoiser
from fewstep.train.recipe import Recipe

SHAPE, SCHEDULE = (3, 8, 8), DDPMTable.linear()
# sums of some hundred float32 terms, through a dozen layers and 7 calls; TF32 would be off by 1e-3 and more
FLOAT32 = 2e-4


@pytest.fixture(scope="module")
def device():
    device = os.environ.get("FEWSTEP_TEST_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device(device)


def network(kind, where="cpu", dtype=torch.float32):
    with initial_weights(0):
        made = {
            "unet": lambda: UNet(8, 3, 16, (1, 2), 1, (4,)),
            "narrow": lambda: UNet(8, 3, 32, (1, 2), 1, (4,)),
            "transformer": lambda: Transformer(8, 3, 32, depth=2, patch=2),
        }[kind]()
    rng = generator(1)
    for parameter in made.parameters():  # none may stay at the zero that it starts from
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=rng)
    made = made.eval().requires_grad_(False).to(where, dtype)
    return Narrow(made, 0.5) if kind == "narrow" else made


def model_of(net):
    return Model(lambda x, t: net(x, SCHEDULE.time_input(t)), schedule=SCHEDULE, shape=SHAPE, net=net)


def relative(found, expected):
    off = (found.detach().cpu().double() - expected.detach().double()).norm()
    return float(off / expected.detach().double().norm())


@pytest.mark.parametrize("kind", ["unet", "narrow", "transformer"])
def test_networks(device, kind):
    x = torch.randn(5, *SHAPE, generator=generator(2))
    t = torch.tensor([1.0, 100.0, 400.0, 800.0, 999.0])
    expected = network(kind, dtype=torch.float64)(x.double(), t.double())
    assert relative(network(kind, device)(x.to(device), t.to(device)), expected) < FLOAT32


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.order is not None])
def test_samplers(device, name):
    plan, x_T = PRESETS[name](SCHEDULE, 7), ImageNoise(range(4), SHAPE)()
    expected = solve(model_of(network("unet", dtype=torch.float64)), plan, x_T.double())
    assert relative(solve(model_of(network("unet", device)), plan, x_T.to(device)), expected) < 10 * FLOAT32


def test_images_depend_on_their_seeds_alone(device):
    model, plan = model_of(network("unet", device)), PRESETS["unipc-2"](SCHEDULE, 5)
    together = sample(model, plan, seeds=range(10), batch_size=10).int()
    apart = sample(model, plan, seeds=range(10), batch_size=3).int()
    # a value between two levels may fall on the other side, where a batch of another size takes another kernel
    assert (together - apart).abs().max() <= 1 and (together != apart).float().mean() < 0.02
    assert together.float().std() > 10


def test_gradients_of_a_plan(device):
    free = FreePlan(PRESETS["dpmpp-2m"](SCHEDULE, 4), SCHEDULE)
    slopes = {}
    for where, dtype in ((device, torch.float32), (torch.device("cpu"), torch.float64)):
        task = Task(model_of(network("unet", where, dtype)))
        solution = torch.zeros(4, *SHAPE, device=where)
        values = free.values()
        leaves = Values(*(n.detach().requires_grad_(n.requires_grad) for n in values))
        trajectory_gradient(task, lambda x0, seeds, s=solution: distances(x0, s))(free.form, leaves, range(4))
        slopes[dtype] = torch.cat([leaf.grad.flatten() for leaf in leaves if leaf.grad is not None])
    assert relative(slopes[torch.float32], slopes[torch.float64]) < 50 * FLOAT32


@pytest.mark.parametrize("precision, tolerance", [("fp32", 0.02), ("bf16", 0.2)])
def test_training(device, precision, tolerance):
    def losses(where, precision):
        state = train_denoiser(ToyImages(), tiny_net().to(where), recipe_of(precision), log_every=1)
        return torch.cat([p.detach().flatten().cpu() for p in state.nets["net"].parameters()])

    start = torch.cat([p.detach().flatten() for p in tiny_net().parameters()])
    expected = losses(torch.device("cpu"), "fp32")
    # of what training changed: Adam's first steps divide a gradient by its own size
    moved = (losses(device, precision) - expected).norm() / (expected - start).norm()
    assert float(moved) < tolerance


def recipe_of(precision):
    return Recipe(
        schedule=SCHEDULE, prediction="v", steps=6, batch_size=8, lr=1e-3, seed=0, precision=precision
    )


def test_a_resumed_training_ends_as_an_undisturbed_one(device, tmp_path):
    def trained(**values):
        state = train_denoiser(ToyImages(), tiny_net().to(device), recipe_of("fp32"), **values)
        return torch.cat([p.detach().flatten().cpu() for p in state.ema["net"].net.parameters()])

    whole = trained()
    trained(checkpoints=tmp_path, until=3)
    resumed = trained(checkpoints=tmp_path)
    # on a CPU to the bit; a GPU may add in another order
    assert torch.equal(whole, resumed) if device.type == "cpu" else relative(resumed, whole) < 1e-4


def test_frechet_distance_of_features_of_the_device(device):
    images = torch.rand(64, *SHAPE, generator=generator(4))
    weight = torch.randn(16, 192, generator=generator(5))
    on_device = (images.to(device).flatten(1) @ weight.to(device).T).cpu().numpy()
    exact = (images.double().flatten(1) @ weight.double().T).numpy()
    other = Statistics.from_features(exact[:40] + 1)
    found, expected = (frechet(Statistics.from_features(f), other).value for f in (on_device, exact))
    assert found == pytest.approx(expected, rel=1e-4)
