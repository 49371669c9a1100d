"""Invariants of ViTGAN's networks: where the latent vector acts, overlapping windows, assembly, and the start."""

import pytest
import torch
import torch.nn.functional as F

from fewstep.checks import ConfigError
from fewstep.nets.folder import load_model, save_generator
from fewstep.nets.vitgan import (
    ModulatedLinear,
    SelfModulatedNorm,
    ViTDiscriminator,
    ViTGenerator,
    _grid,
    preserve_variance,
)
from fewstep.rng import generator, initial_weights

SMALL = {"width": 16, "latent": 16, "depth": 2, "heads": 4, "patch": 2}


def small_generator(shape=(1, 8, 8), **changes):
    with initial_weights(0):
        return ViTGenerator(shape, **{**SMALL, **changes})


def small_discriminator(shape=(1, 8, 8), **changes):
    with initial_weights(0):
        return ViTDiscriminator(shape, **{"width": 16, "depth": 2, "heads": 4, "patch": 2, **changes})


def test_the_normalisation_is_a_layer_norm_where_it_is_not_modulated():
    norm, x = SelfModulatedNorm(8), torch.randn(2, 5, 8, generator=generator(0))
    for layer in (norm.scale, norm.shift):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    torch.testing.assert_close(norm(x, torch.ones(2, 1, 8))[0], F.layer_norm(x, (8,), eps=1e-3))


def test_the_latent_vector_acts_through_the_normalisation_alone():
    norm, x = SelfModulatedNorm(8), torch.randn(1, 5, 8, generator=generator(0))
    w = torch.randn(3, 1, 8, generator=generator(1))
    w[2] = w[0]
    first, second, third = norm(x, w)[0]
    assert not torch.allclose(first, second)
    assert torch.equal(first, third)


def test_at_the_start_images_differ_by_their_latent_vectors():
    """With the default weights the images vary by 0.002 over latent vectors of 0.04 in all, and training stalls."""
    images = small_generator(width=64, latent=64).images(torch.randn(256, 64, generator=generator(0)))
    over_z, total = images.var(0).mean().sqrt(), images.std()
    assert over_z / total > 0.5
    assert 0.3 < total < 0.9  # set for about 0.5


def test_patches_stand_where_their_pixels_belong():
    """Patches painted with their own coordinates give the ramps of the whole image: no error of transposition."""
    net = small_generator((2, 8, 8))
    side, p = 4, 2
    pixels = net.centres[:, None] + net.pixels[None] / side  # of the image, (tokens, pixels, (x, y))
    image = net._assembled(pixels, 1)[0]
    ramp = (torch.arange(side * p) + 0.5) * 2 / (side * p) - 1
    torch.testing.assert_close(image[0], ramp[None].expand(8, 8))
    torch.testing.assert_close(image[1], ramp[:, None].expand(8, 8))


def test_modulation_equals_the_weights_of_each_token_written_out():
    layer = ModulatedLinear(6, 3, 4)
    preserve_variance(layer)
    x, tokens = torch.randn(7, 6, generator=generator(0)), torch.randn(5, 4, generator=generator(1))
    style = 1 + layer.style(tokens)
    weight = layer.weight[None] * style[:, None]
    weight = weight / (weight.square().sum(-1, keepdim=True) + 1e-8).sqrt()
    expected = torch.einsum("pc,toc->tpo", x, weight) + layer.bias
    torch.testing.assert_close(layer(x, tokens), expected, atol=1e-5, rtol=1e-4)


def test_windows_overlap_by_half_and_cover_each_pixel_four_times():
    net = small_discriminator()
    image = torch.randn(1, 1, 8, 8, generator=generator(0))
    windows = net.windows(image)
    assert windows.shape == (1, 16, 16)  # 4 x 4 windows of 4 x 4 pixels

    def folded(values):
        return F.fold(values.mT, 8, 4, padding=1, stride=2)

    count = folded(torch.ones_like(windows))
    assert (count[..., 1:-1, 1:-1] == 4).all()
    torch.testing.assert_close(folded(windows) / count, image)


@pytest.mark.parametrize("overlap, values", [(0, 4), (1, 16), (2, 36)])
def test_an_overlap_widens_windows_and_keeps_their_number(overlap, values):
    net = small_discriminator(overlap=overlap)
    assert net.windows(torch.zeros(1, 1, 8, 8)).shape == (1, 16, values)


@pytest.mark.parametrize("attention", ["l2", "dot"])
def test_a_discriminator_judges_each_image_by_itself(attention):
    net = small_discriminator((3, 16, 16), patch=4, attention=attention).eval()
    x = torch.randn(3, 3, 16, 16, generator=generator(0))
    torch.testing.assert_close(net(x), torch.cat([net(one[None]) for one in x]))


def test_a_generator_comes_back_from_its_folder(tmp_path):
    net = small_generator((3, 16, 16), patch=4, mapping=3).eval()
    save_generator(tmp_path / "model", net, name="toy", card={})
    model = load_model(tmp_path / "model")
    x = torch.randn(2, 3, 16, 16, generator=generator(0))
    with torch.no_grad():
        torch.testing.assert_close(model.fn(x, torch.ones(2)), net(x, torch.ones(2)))


def test_the_grid_goes_row_by_row_from_the_upper_left():
    assert _grid(2).tolist() == [[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]]


@pytest.mark.parametrize(
    "build, changes, message",
    [
        (small_generator, {"patch": 3}, "multiple of the patch; got 8 and 3"),
        (small_generator, {"heads": 5}, "multiple of the heads; got 16 and 5"),
        (small_generator, {"latent": 65}, "1 to 64 numbers"),
        (small_generator, {"mapping": 0}, "1 or more"),
        (small_discriminator, {"patch": 3}, "multiple of the patch"),
        (small_discriminator, {"overlap": 3}, "overlap 0 to 2"),
        (small_discriminator, {"attention": "cosine"}, "l2 or dot; got 'cosine'"),
    ],
)
def test_values_that_cannot_work_are_refused(build, changes, message):
    with pytest.raises(ConfigError, match=message):
        build(**changes)
