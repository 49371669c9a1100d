"""The network of patches: cutting, collage, locality, any size, few rows at once."""

import itertools

import pytest
import torch
from torch import nn

from fewstep.checks import ConfigError
from fewstep.diffusion.condition import CONTEXT, LABEL, Condition
from fewstep.diffusion.schedule import DDPMTable
from fewstep.files import read_json
from fewstep.nets.folder import load_model, save_model
from fewstep.nets.patched import BLOCK, PatchedUNet, block_at, collage, inner, join, split
from fewstep.rng import generator, initial_weights

SMALL = {"image_size": 8, "in_channels": 1, "channels": 8, "multipliers": (1, 2), "attention": (4,)}


def network(seed=0, **values):
    """A network whose weights are all drawn, those that start at zero, too."""
    with initial_weights(seed):
        net = PatchedUNet({**SMALL, **values})
        for name, p in net.named_parameters():
            if "conv" in name or "proj" in name:
                nn.init.normal_(p, std=0.2)
    return net.double().eval().requires_grad_(False)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("side", [2, 4])
def test_cutting_and_joining_are_inverse_to_the_bit(side):
    x = noise(3, 2, 2 * side, 5 * side)
    assert torch.equal(join(split(x, side), 2, 5), x)
    patches = noise(3 * 10, 2, side, side)
    assert torch.equal(split(join(patches, 2, 5), side), patches)
    assert torch.equal(split(x, side)[10 + 5 + 2], x[1, :, side:, 2 * side : 3 * side])


def test_a_collage_takes_the_quarters_of_four_neighbours():
    rows, columns, s = 2, 3, 4
    maps = noise(2 * (rows + 1) * (columns + 1), 2, s, s)
    made = collage(maps, rows, columns).unflatten(0, (2, rows, columns))
    given = maps.unflatten(0, (2, rows + 1, columns + 1))
    half = (slice(0, s // 2), slice(s // 2, s))
    assert made.shape == (2, rows, columns, 2, s, s)
    for i, j, (a, b) in itertools.product(range(rows), range(columns), BLOCK):
        quarter = made[:, i, j][..., half[a], half[b]]
        assert torch.equal(quarter, given[:, i + a, j + b][..., half[1 - a], half[1 - b]])


def test_a_collage_of_what_is_made_pixel_by_pixel_is_that_of_the_image():
    x = noise(2, 1, 16, 24)
    padded = torch.nn.functional.pad(x, [4] * 4)
    of_grid = collage(torch.sin(split(padded, 8)), 2, 3)
    assert torch.equal(of_grid, torch.sin(split(x, 8)))
    constant = collage(torch.full((12, 1, 4, 4), 3.0), 2, 3)
    assert torch.equal(constant, torch.full((6, 1, 4, 4), 3.0))


def test_blocks_are_cut_out_where_their_corners_are():
    x = noise(3, 2, 16, 24)
    corners = torch.tensor([[0, 0], [1, 2], [0, 1]])
    padded = torch.nn.functional.pad(x, [4] * 4)
    for image, (i, j), block in zip(padded, corners.tolist(), block_at(x, corners, 8), strict=True):
        assert torch.equal(block, image[:, 8 * i : 8 * i + 16, 8 * j : 8 * j + 16])


@pytest.mark.parametrize("patch", [1, 2])
def test_a_block_in_training_is_what_the_whole_image_gives(patch):
    """Both paths, at each corner: the patch with collage, and the four without."""
    net = network(patch=patch, attention=(), n_classes=3)
    x, time = noise(4, 1, 16, 24), torch.tensor([100.0, 500.0, 900.0, 20.0], dtype=torch.float64)
    condition = Condition({LABEL: torch.tensor([0, 1, 2, 3])})
    corners = torch.tensor([[0, 0], [1, 2], [0, 1], [1, 0]])
    five = net(x, time, condition, corners)
    assert five.shape == (4, 5, 1, 8, 8)
    whole, plain = net(x, time, condition), net.plain(x, time, condition)
    for image, (i, j) in enumerate(corners.tolist()):
        middle = whole[image, :, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8]
        assert torch.allclose(five[image, 4], middle, atol=1e-12)
        block = block_at(plain, corners, 8)[image]
        inside = block_at(torch.ones_like(plain), corners, 8)[image]
        four = join(five[image, :4], 2, 2)[0]
        assert torch.allclose(inside * four, block, atol=1e-12)
    half = torch.tensor([[0.5, 0.5], [0.5, 1.5], [0.5, 0.5], [0.5, 0.5]])
    of_image = net.plain(x, time, condition, aligned=True)
    for image, j in enumerate([0, 8, 0, 0]):
        four = join(net(x, time, condition, half)[image, :4], 2, 2)[0]
        assert torch.allclose(four, of_image[image, :, :, j : j + 16], atol=1e-12)
    assert float((whole - plain).abs().max()) > 1e-3


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_few_rows_at_once_give_the_same_values(rows):
    net = network(context=3)
    x = noise(2, 1, 40, 16)
    condition = Condition({CONTEXT: noise(2, 4, 3)})
    assert torch.allclose(net(x, 300.0, condition, rows=rows), net(x, 300.0, condition), atol=1e-12)


def test_what_a_pixel_changes_is_near():
    net, x = network(), noise(1, 1, 40, 40)
    other = x.clone()
    other[..., 4 + 8 : 12 + 8, 4 + 16 : 12 + 16] += 1  # grid patch (2, 3)
    moved = (net(x, 400.0) != net(other, 400.0))[0, 0]
    near = torch.zeros(40, 40, dtype=torch.bool)
    near[8:24, 16:32] = True  # shifted patches (1..2, 2..3)
    assert not bool((moved & ~near).any()) and bool(moved[8:24, 16:32].any())


def test_one_patch_and_sizes_that_were_not_trained():
    net = network()
    assert net(noise(1, 1, 8, 8), 10.0).shape == (1, 1, 8, 8)
    assert net(noise(1, 1, 24, 56), 10.0).shape == (1, 1, 24, 56)
    encoded = []
    net.net.conv_in.register_forward_pre_hook(lambda module, inputs: encoded.append(inputs[0]))
    net(noise(2, 1, 8, 16), 10.0)
    (patches,) = encoded
    frame = 1 - torch.nn.functional.pad(torch.ones(8, 16), [4] * 4)
    whole = join(patches, 2, 3)
    assert patches.shape == (2 * 2 * 3, 1, 8, 8) and bool((whole * frame == 0).all())


def test_positions_and_images_conditions_count():
    net = network(n_classes=2)
    x = noise(1, 1, 8, 8).repeat(1, 1, 1, 3)
    out = net.plain(x, 500.0, aligned=True)
    assert float((out[..., :8] - out[..., 16:]).abs().max()) > 1e-3, "equal patches at other places"
    both = x.repeat(2, 1, 1, 1)
    classes = net(both, 500.0, Condition({LABEL: torch.tensor([0, 1])}))
    assert float((classes[0] - classes[1]).abs().max()) > 1e-3
    assert torch.allclose(net(x, 500.0), net(both, 500.0, Condition({LABEL: torch.tensor([2, 2])}))[:1])


def test_a_model_folder_keeps_it(tmp_path):
    net = network(n_classes=2).float()
    x = noise(1, 1, 16, 16).float()
    wanted = net(x, DDPMTable.linear().time_input(torch.tensor([0.5])))
    save_model(
        tmp_path / "m",
        net,
        schedule=DDPMTable.linear(),
        prediction="eps",
        shape=(1, 16, 16),
        name="m",
        card={},
    )
    model = load_model(tmp_path / "m")
    assert model.net.config() == net.config() and read_json(tmp_path / "m" / "config.json")["n_classes"] == 2
    # float32, laid out in another way
    assert torch.allclose(model.fn(x, torch.tensor([0.5])), wanted, atol=1e-4)


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"image_size": 6}, "must be a multiple of 4 for 2 levels, so that features can be halved"),
        ({"image_size": 2}, "must be a multiple of 4"),
        ({"image_size": 8, "multipliers": (1, 2, 2, 2)}, "must be a multiple of 16 for 4 levels"),
        ({"patch": 4}, "must be a multiple of 16 for 2 levels of squares of 4"),
        ({"maps": {"mask": 1}}, "takes classes and tokens as conditions.*got maps, mask"),
        ({"attention": (3,)}, "attention must name sides among"),
    ],
)
def test_networks_that_cannot_be_cut_are_refused(values, sentence):
    with pytest.raises(ConfigError, match=sentence):
        PatchedUNet({**SMALL, **values})


def test_images_that_cannot_be_cut_are_refused():
    net = network()
    for shape, nearest in (((1, 1, 20, 17), "24 x 16|16 x 16"), ((1, 1, 4, 8), "8 x 8")):
        with pytest.raises(ConfigError, match=f"must be multiples of the patch's, 8; got .* is ({nearest})"):
            net(noise(*shape), 1.0)
    with pytest.raises(ConfigError, match="one time for each image; got a time for each pixel"):
        net(noise(1, 1, 8, 8), noise(1, 1, 8, 8))
    assert inner(noise(1, 1, 8, 8), 2).shape == (1, 1, 4, 4)
