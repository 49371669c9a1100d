import pytest
import torch
import torch.nn.functional as F

from fewstep.checks import ConfigError
from fewstep.diffusion.schedule import DDPMTable
from fewstep.methods.patchdm.memory import training_bytes
from fewstep.methods.patchdm.objective import Patches, objective
from fewstep.methods.rad.objective import objective as rad
from fewstep.nets.patched import PatchedUNet
from fewstep.nets.unet import UNet
from fewstep.rng import generator, initial_weights
from fewstep.train.losses import noised

TABLE = DDPMTable.linear()


def network(**values):
    with initial_weights(0):
        return PatchedUNet({"image_size": 8, "in_channels": 1, "channels": 8, **values})


def batch(n=6, height=16, width=24):
    x0, eps = torch.randn(2, n, 1, height, width, generator=generator(1)).unbind()
    t = torch.linspace(0.1, 0.9, n, dtype=torch.float64)
    return noised(x0, eps, t, schedule=TABLE, prediction="eps")


def test_both_terms_by_loops_over_pixels():
    """As sums, for a network that gives known numbers."""
    of_batch, corners = batch(2), torch.tensor([[0, 1], [1, 2]])
    given = torch.randn(2, 5, 1, 8, 8, generator=generator(5))
    found = Patches(8).of_blocks(lambda *arguments: given, of_batch, None, corners)
    for image, (row, column) in enumerate(corners.tolist()):
        noise = F.pad(of_batch.target[image, 0], [4] * 4)
        within = F.pad(torch.ones(16, 24), [4] * 4)
        shifted = plain = 0.0
        for y in range(8):
            for x in range(8):
                off = noise[8 * row + 4 + y, 8 * column + 4 + x] - given[image, 4, 0, y, x]
                shifted += float(off) ** 2 / 64
                for k, (a, b) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
                    place = 8 * (row + a) + y, 8 * (column + b) + x
                    plain += float(within[place] * (noise[place] - given[image, k, 0, y, x]) ** 2) / 256
        assert float(found[image]) == pytest.approx(shifted + plain, rel=1e-5)


def test_an_untrained_network_has_the_loss_of_the_noise():
    """Zeros against noise of variance 1: 1, and the share of a block of 2 x 2 patches within the image, 9/16."""
    of_batch = batch(400, 16, 16)
    with torch.no_grad():
        found = Patches(8)(generator(0), 400)(network(), of_batch, None)
    # 400 images of 64 + 256 pixels
    assert float(found.mean()) == pytest.approx(1 + 9 / 16, abs=4 * (2 / (400 * 64)) ** 0.5 * 1.2)


def test_each_image_has_a_block_of_its_own_whatever_part_of_the_batch_it_is_in():
    seen = []

    def spy(x, time, condition, corners):
        seen.append(corners)
        return torch.zeros(len(x), 5, 1, 8, 8)

    whole, rows = batch(300), torch.arange(300)
    loss = Patches(8)(generator(0), 300)
    loss(spy, whole._replace(rows=rows), None)
    (corners,) = seen
    cells = (corners[:, 0] * 3 + corners[:, 1]).long().bincount(minlength=6)
    assert cells.sum() == 300 and bool(((cells - 50).abs() < 4 * (50 * 5 / 6) ** 0.5).all())
    part = slice(120, 130)
    loss(spy, batch(300)._replace(x_in=whole.x_in[part], target=whole.target[part], weight=whole.weight[part],
                                  rows=rows[part]), None)  # fmt: skip
    assert torch.equal(seen[1], corners[part])


def test_shifts_of_pixels_are_trained_on_both_grids_without_collage():
    pixels = objective("patchdm-pixels", TABLE, "eps", "uniform", network())
    drawn = torch.rand(400, 3, generator=generator(3))
    corners = pixels.corners(drawn, (16, 24))
    known = {(i, j): 0 for i in range(2) for j in range(3)} | {(0.5, 0.5): 0, (0.5, 1.5): 0}
    for corner in corners.tolist():
        known[tuple(corner)] += 1
    assert len(known) == 8 and min(known.values()) > 15
    of_batch, given = batch(2, 16, 16), torch.zeros(2, 5, 1, 8, 8)
    half = torch.full((2, 2), 0.5)
    found = pixels.of_blocks(lambda *arguments: given, of_batch, None, half)
    assert torch.allclose(found, of_batch.target.square().flatten(1).mean(1))
    with pytest.raises(ConfigError, match="need images of 2 x 2 patches of 8 or more; got 1 x 3"):
        pixels.corners(drawn, (8, 24))


def test_memory_of_training_does_not_grow_with_the_image():
    net = network(attention=(4,))
    (small, whole_small), (large, whole_large) = (training_bytes(net, side, images=2) for side in (16, 64))
    assert large == small
    assert whole_large > 12 * whole_small  # sixteen times the pixels


def test_networks_of_the_other_kind_are_refused():
    with pytest.raises(ConfigError, match="needs a network of patches, with --tile, .* got a UNet of whole"):
        objective("patchdm", TABLE, "eps", "uniform", UNet(8, 1, 8))
    with pytest.raises(ConfigError, match="a time for each pixel; got one of patches; leave out --tile"):
        rad("rad", TABLE, "eps", "uniform", network())
    assert objective("patchdm", TABLE, "eps", "uniform", network()).config() == {
        "type": "patchdm",
        "tile": 8,
        "pixels": False,
    }
