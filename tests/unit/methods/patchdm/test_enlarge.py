"""Models of patches as models of images of any size: plans, ways of decoding, seams, what is refused."""

import pytest
import torch

from fewstep.checks import ConfigError
from fewstep.data.pixels import to_u8
from fewstep.diffusion.condition import CONTEXT, LABEL, Condition
from fewstep.diffusion.denoiser import Denoiser, Model
from fewstep.diffusion.schedule import DDPMTable, Flow
from fewstep.methods.patchdm.enlarge import COLLAGE, PLAIN, SHIFT, decoded_by, enlarged
from fewstep.methods.patchdm.seams import ALIGNED, GRID, lines, seam
from fewstep.nets.folder import as_model
from fewstep.nets.patched import PatchedUNet
from fewstep.nets.unet import UNet
from fewstep.rng import generator, initial_weights
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import sample

TABLE = DDPMTable.linear()


def model(guidable=True, **values):
    with initial_weights(0):
        net = PatchedUNet({"image_size": 8, "in_channels": 1, "channels": 8, "attention": (4,), **values})
        torch.nn.init.normal_(net.net.conv_out.weight, std=0.1)
    return as_model(net, schedule=TABLE, prediction="eps", shape=(1, 16, 16), name="m", guidable=guidable)


@pytest.mark.parametrize("preset", ["ddim", "unipc-2", "ddpm"])
@pytest.mark.parametrize("size", [(16, 40), (8, 8)])
def test_any_plan_draws_any_size_row_by_row_too(preset, size):
    trained = model(n_classes=3)
    plan = PRESETS[preset](TABLE, 3, grid="uniform-t", to_zero=True)
    larger = enlarged(trained, *size)
    drawn = sample(larger, plan, seeds=range(4), condition=larger.condition_of(range(4)))
    assert drawn.shape == (4, 1, *size) and drawn.dtype == torch.uint8
    one = enlarged(trained, *size, rows=1)
    again = sample(one, plan, seeds=range(4), condition=one.condition_of(range(4)), batch_size=3)
    # convolutions may round the last bit of a float in another way, and with it a pixel
    assert int((drawn.int() - again.int()).abs().max()) <= 1
    same = enlarged(trained, 16, 16)
    for each in (trained, same):
        own = sample(each, plan, seeds=range(2), condition=each.condition_of(range(2)))
        assert torch.equal(
            own, sample(trained, plan, seeds=range(2), condition=trained.condition_of(range(2)))
        )


def test_ways_of_decoding_call_what_they_say():
    trained = model()
    x = torch.randn(2, 1, 16, 16, generator=generator(0))
    plan = PRESETS["ddim"](TABLE, 4, grid="uniform-t")
    assert decoded_by(trained, plan, COLLAGE) is None
    time = TABLE.time_input(torch.tensor([0.5]))
    wanted = {aligned: trained.net.plain(x, time, aligned=aligned) for aligned in (False, True)}
    assert not torch.allclose(wanted[False], wanted[True], atol=1e-3)
    for way, moves in ((SHIFT, [False, True, False, True]), (PLAIN, [False] * 4)):
        select = decoded_by(trained, plan, way)
        for node, aligned in zip(plan.nodes, moves, strict=False):
            assert torch.equal(select(node)(x, torch.tensor([0.5])), wanted[aligned])


def test_seams_are_contrasts_across_lines():
    assert lines(ALIGNED, 32, 8) == [8, 16, 24] and lines(GRID, 32, 8) == [4, 12, 20, 28]
    assert lines(ALIGNED, 8, 8) == [] and lines(GRID, 8, 8) == [4]
    ramp = to_u8(
        torch.linspace(-1, 1, 256).reshape(1, 1, 16, 16)
    )  # a step of one level, and of 16 between lines
    assert seam(ramp, 8, ALIGNED).value == pytest.approx(1, abs=1e-6)
    noisy = torch.randn(400, 1, 16, 16, generator=generator(1)) / 4
    even = {kind: seam(to_u8(noisy), 8, kind) for kind in (ALIGNED, GRID)}
    assert all(abs(one.value - 1) < 4 * one.sd < 0.2 for one in even.values())
    noisy[:, :, 8:] += 0.5
    # E|z + 0.5| / E|z| of a normal z with deviation sqrt(2) / 4, on one of both axes
    deviation = 2**0.5 / 4
    away = torch.distributions.Normal(0.0, 1.0)
    z = torch.tensor(0.5 / deviation)
    folded = deviation * (2 / torch.pi) ** 0.5 * torch.exp(-(z**2) / 2) + 0.5 * (1 - 2 * away.cdf(-z))
    ratio = float(folded) / (deviation * (2 / torch.pi) ** 0.5)
    shown = seam(to_u8(noisy), 8, ALIGNED)
    assert abs(shown.value - (1 + ratio) / 2) < 4 * shown.sd + 0.02  # pixels beyond white are cut off
    assert abs(seam(to_u8(noisy), 8, GRID).value - 1) < 0.1
    assert seam(torch.zeros(3, 1, 16, 16, dtype=torch.uint8), 8, ALIGNED) is None


def test_what_cannot_be_enlarged_is_refused():
    with initial_weights(0):
        whole = as_model(UNet(8, 1, 8), schedule=TABLE, prediction="eps", shape=(1, 8, 8), name="w")
    with pytest.raises(
        ConfigError, match="train --objective patchdm --tile SIDE; w is a UNet of whole images"
    ):
        enlarged(whole, 16, 16)
    with pytest.raises(ConfigError, match="w is a function"):
        enlarged(Model(lambda x, t: x, Flow(), shape=(1, 8, 8), name="w"), 16, 16)
    with pytest.raises(
        ConfigError, match="multiples of the patch's, 8; got 20 x 17; the nearest size is 16 x 16"
    ):
        enlarged(model(), 20, 17)
    with pytest.raises(
        ConfigError, match="multiples of the patch's, 8; got 4 x 16; the nearest size is 8 x 16"
    ):
        enlarged(model(), 4, 16)


def test_conditions_that_the_network_was_not_trained_with_are_refused():
    """Patches share the condition of their image: without one, or guided without a null, nothing is drawn."""
    bare = enlarged(model(guidable=False, n_classes=2), 16, 32)
    with pytest.raises(ConfigError, match="must be given a condition"):
        Denoiser(bare)
    label = Condition({LABEL: torch.tensor([0])})
    with pytest.raises(ConfigError, match="has no null condition"):
        Denoiser(bare, condition=label, guidance=1.5)
    tokens = enlarged(model(context=3), 16, 32)
    condition = Condition({CONTEXT: torch.randn(2, 4, 3, generator=generator(0))})
    x = torch.randn(1, 1, 16, 32, generator=generator(1)).expand(2, -1, -1, -1)
    with initial_weights(1):
        for name, p in tokens.net.named_parameters():
            if "proj" in name:
                torch.nn.init.normal_(p, std=0.5)
            if "conv2" in name:
                torch.nn.init.normal_(p, std=0.2)
    one, other = Denoiser(tokens, condition=condition).eps(x, 0.5)
    assert float((one - other).abs().max()) > 1e-3, "each image has its own code"
