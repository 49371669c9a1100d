import pytest
import torch

from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.condition import Classes, Condition, Stored
from fewstep.diffusion.denoiser import Denoiser, Model
from fewstep.diffusion.mixture import GaussianMixture
from fewstep.diffusion.prediction import PREDICTIONS, target, weights
from fewstep.diffusion.schedule import EDM, Cosine, DDPMTable, Flow, VPLinear
from fewstep.rng import generator

SCHEDULES = [VPLinear(), DDPMTable.linear(), Cosine(), EDM(), Flow()]


def draw(*shape):
    return torch.randn(*shape, generator=generator(0), dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_output_is_read_as_the_truth(schedule, prediction):
    """target and weights are inverse to each other, for a time per pixel."""
    t = torch.linspace(schedule.t_min, schedule.t_max, 24, dtype=torch.float64).reshape(2, 1, 3, 4)
    x0, eps = draw(2, 2, 3, 4), draw(2, 2, 3, 4).flip(0)
    x_t = schedule.alpha(t) * x0 + schedule.sigma(t) * eps
    output = target(prediction, schedule, t, x0, eps)
    read = weights(prediction, schedule, t)
    # 1e-9: 1 / alpha is 152 at the end of the linear table, 1 / sigma is 500 at the start of EDM
    torch.testing.assert_close(read.x0_of_x * x_t + read.x0_of_output * output, x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(read.eps_of_x * x_t + read.eps_of_output * output, eps, rtol=1e-9, atol=1e-9)


def test_velocity_is_the_time_derivative():
    schedule = VPLinear()
    t = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    x0, eps = draw(1), draw(1) * 2
    (schedule.alpha(t) * x0 + schedule.sigma(t) * eps).sum().backward()
    torch.testing.assert_close(target("u", schedule, t.detach(), x0, eps), t.grad)


def mixture():
    return GaussianMixture(
        torch.tensor([0.3, 0.7], dtype=torch.float64),
        torch.tensor([[1.0, -1.0, 0.5], [-0.5, 0.2, 0.0]], dtype=torch.float64),
        torch.tensor([0.1, 0.4], dtype=torch.float64),
    )


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_mixture_noise_is_minus_sigma_times_the_score(schedule):
    """The noised mixture is itself a mixture; its score by autograd is the independent answer."""
    t, clean = 0.4, mixture()
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    noised = GaussianMixture(
        clean.weights, alpha * clean.means, ((alpha * clean.stds) ** 2 + sigma**2).sqrt()
    )
    x_t = draw(5, 3).requires_grad_()
    (score,) = torch.autograd.grad(noised.log_density(x_t).sum(), x_t)
    denoiser = Denoiser(clean.model(schedule))
    torch.testing.assert_close(denoiser.eps(x_t.detach(), t), -sigma * score, rtol=1e-10, atol=1e-12)
    x0_hat, eps_hat = denoiser.x0(x_t.detach(), t), denoiser.eps(x_t.detach(), t)
    torch.testing.assert_close(alpha * x0_hat + sigma * eps_hat, x_t.detach(), rtol=1e-10, atol=1e-12)
    assert denoiser.nfe == denoiser.calls == 3


def test_mixture_samples_have_its_moments():
    clean = mixture()
    x0 = clean.sample(40_000, rng=generator(1))
    mean = (clean.weights[:, None] * clean.means).sum(0)
    # 5 standard errors of a mean with standard deviation below 1
    torch.testing.assert_close(x0.mean(0), mean, rtol=0, atol=0.025)


def test_guidance_extrapolates_and_costs_two_calls():
    def fn(x_t, t, condition):
        return torch.ones_like(x_t) * condition.values["label"][:, None]

    model = Model(fn, schedule=VPLinear(), shape=(2,), conditions=Classes(4))
    denoiser = Denoiser(model, condition=Condition({"label": torch.tensor([1, 2])}), guidance=3.0)
    output = denoiser.output(torch.zeros(2, 2), 0.5)
    # no class is label 4: 4 + 3 (1 - 4) and 4 + 3 (2 - 4)
    torch.testing.assert_close(output[:, 0], torch.tensor([-5.0, -2.0]))
    assert (denoiser.nfe, denoiser.calls) == (1, 2)
    assert bool((Denoiser(model).output(torch.zeros(2, 2), 0.5) == 4).all())


def test_edm_networks_are_fed_unit_variance_input():
    seen = []

    def fn(x_t, t):
        seen.append(x_t)
        return x_t

    schedule = EDM()
    model = Model(fn, schedule=schedule, prediction="edm", shape=(20_000,))
    x_t = 0.5 * draw(1, 20_000) + 10.0 * draw(1, 20_000).flip(1)
    Denoiser(model).output(x_t, 10.0)
    assert float(seen[0].std()) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Model(lambda x, t: x, schedule=VPLinear(), prediction="epsilon"),
        lambda: Denoiser(Model(lambda x, t: x, schedule=VPLinear()), guidance=2.0),
        lambda: Denoiser(Model(lambda x, t: x, schedule=VPLinear()), condition=Classes(2).of([1])),
        lambda: Denoiser(Model(lambda x, t, c: x, schedule=VPLinear(), conditions=Classes(2)), guidance=2.0),
        lambda: weights("noise", VPLinear(), torch.tensor(0.5)),
        lambda: GaussianMixture(torch.ones(2) / 2, torch.zeros(3, 4), torch.ones(2)),
    ],
)
def test_bad_arguments_are_refused(make):
    with pytest.raises(ConfigError):
        make()


def test_an_output_of_another_shape_is_refused():
    model = Model(lambda x, t: torch.cat([x, x], 1), schedule=VPLinear(), shape=(3, 4, 4))
    with pytest.raises(DataError, match="variance"):
        Denoiser(model).output(torch.zeros(1, 3, 4, 4), 0.5)


# Conditions


def conditioned(null=True):
    """A model that says how it is conditioned: the mean of the context."""
    rows = Condition({"context": torch.arange(6.0).reshape(3, 2, 1)})
    nothing = Condition({"context": torch.zeros(1, 1, 1)}) if null else None

    def fn(x_t, t, condition):
        return torch.ones_like(x_t) * condition.values["context"].mean((1, 2))[:, None]

    return Model(fn, schedule=VPLinear(), shape=(2,), conditions=Stored(rows, nothing), name="toy")


def test_guidance_is_for_any_condition_with_a_null():
    model = conditioned()
    assert model.condition_of([1, 3]) == model.conditions.rows[[1, 0]]
    denoiser = Denoiser(model, condition=model.condition_of([1, 3]), guidance=3.0)
    # 0 + 3 (2.5 - 0) and 0 + 3 (0.5 - 0)
    assert denoiser.output(torch.zeros(2, 2), 0.5)[:, 0].tolist() == [7.5, 1.5]
    assert (denoiser.nfe, denoiser.calls) == (1, 2)
    assert Denoiser(model).output(torch.zeros(2, 2), 0.5).tolist() == [[0, 0], [0, 0]]


def test_model_without_a_null_condition_must_be_given_one():
    model = conditioned(null=False)
    given = model.condition_of([2])
    assert Denoiser(model, condition=given).output(torch.zeros(1, 2), 0.5)[0, 0] == 4.5
    with pytest.raises(ConfigError, match="toy must be given a condition, context floating point .B, 2, 1."):
        Denoiser(model)
    with pytest.raises(ConfigError, match="Guidance 2.0 needs .* toy has no null condition"):
        Denoiser(model, condition=given, guidance=2.0)
    with pytest.raises(ConfigError, match="no condition is given"):
        Denoiser(conditioned(), guidance=2.0)


def test_conditions_that_do_not_fit_are_refused():
    model = conditioned()
    with pytest.raises(DataError, match="must have the names context; got label"):
        Denoiser(model, condition=Classes(2).of([0]))
    with pytest.raises(DataError, match=r"context must be .* got float32 \(1, 3, 1\)"):
        Denoiser(model, condition=Condition({"context": torch.zeros(1, 3, 1)}))
    with pytest.raises(DataError, match="each of the 3 images; got 2"):
        Denoiser(model, condition=model.condition_of([0, 1])).output(torch.zeros(3, 2), 0.5)


class Listening(torch.nn.Module):
    """Keeps what it is given."""

    def __init__(self, dtype):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones((), dtype=dtype))
        self.heard = []

    def forward(self, x_t, t, condition=None):
        self.heard.append((x_t, t, condition))
        return self.weight * x_t


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_times_keep_the_precision_that_the_network_dtype_lacks(dtype):
    """In bfloat16 997.5 thousandths would become 1000."""
    net = Listening(dtype)
    model = Model(net, schedule=VPLinear(), shape=(2,), net=net, conditions=conditioned().conditions)
    denoiser = Denoiser(model, condition=model.condition_of([0, 1]))
    for t, t_cond, expected in ((0.9975, None, 0.9975), (0.9975, 0.1234567, 0.1234567)):
        assert denoiser.output(torch.ones(2, 2), t, t_cond=t_cond).dtype == torch.float32
        fed, time, condition = net.heard[-1]
        assert fed.dtype == condition.values["context"].dtype == dtype
        assert time.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.equal(time, torch.full((2,), expected, dtype=time.dtype))
