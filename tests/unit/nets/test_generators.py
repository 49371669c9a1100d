"""Generators as models: shapes, what a critic must not do, and one network call from noise to the image."""

import pytest
import torch
from torch import nn

from fewstep.checks import ConfigError
from fewstep.nets.dcgan import DCGANDiscriminator, DCGANGenerator
from fewstep.nets.folder import load_model, save_generator
from fewstep.nets.resnet_gan import ResNetCritic, ResNetGenerator
from fewstep.rng import ImageNoise, generator, initial_weights
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.sample import sample

PAIRS = [(DCGANGenerator, DCGANDiscriminator), (ResNetGenerator, ResNetCritic)]


@pytest.mark.parametrize("generator_of, discriminator_of", PAIRS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (3, 32, 32), (1, 28, 28), (3, 64, 64)])
def test_images_have_their_shape_and_every_image_has_a_logit(generator_of, discriminator_of, shape):
    net = generator_of(shape, 2, 5)
    images = net.images(torch.randn(3, 5, generator=generator(0)))
    assert images.shape == (3, *shape)
    assert images.abs().max() <= 1
    assert discriminator_of(shape, 2)(images).shape == (3,)


def test_a_critic_judges_each_image_by_itself():
    """Else its gradient penalty would mean nothing. The published one at 32 pixels merges four images into a logit."""
    with initial_weights(0):
        critic = ResNetCritic((3, 32, 32), 4)
    x = torch.randn(4, 3, 32, 32, generator=generator(1))
    alone = torch.cat([critic(one[None]) for one in x])
    torch.testing.assert_close(critic(x), alone)


def test_latent_vectors_of_dcgan_become_uniform():
    net = DCGANGenerator((1, 8, 8), 2, 64)
    seen = []
    net.first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    net.images(torch.randn(2000, 64, generator=generator(0)))
    (z,) = seen
    assert z.min() >= -1 and z.max() <= 1
    # 128 000 uniform numbers: standard deviation 1/sqrt(3), its error 0.0007
    assert abs(z.std() - 3**-0.5) < 0.003


@pytest.mark.parametrize(
    "shape, latent, message",
    [
        ((1, 8, 8), 65, "must have 1 to 64 numbers"),
        ((1, 8, 8), 0, "must have 1 to 64 numbers"),
        ((1, 8, 16), 4, "square"),
        ((1, 9, 9), 4, "even side"),
        ((1, 2, 2), 4, "4 pixels or more"),
        ((8, 8), 4, r"\(C, H, W\)"),
    ],
)
def test_shapes_that_cannot_be_made_are_refused(shape, latent, message):
    with pytest.raises(ConfigError, match=message):
        DCGANGenerator(shape, 2, latent)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generator") / "model"
    with initial_weights(0):
        net = DCGANGenerator((1, 8, 8), 4, 10)
        for conv in net.convs:
            nn.init.normal_(conv.weight, 0, 0.5)  # far enough from grey that bytes differ
    save_generator(folder, net, name="toy", card={})
    return folder, net.eval()


def test_a_generator_is_a_model_of_one_call(saved):
    folder, net = saved
    model = load_model(folder)
    plan = PRESETS["ddim"](model.schedule, 1, grid="uniform-t", to_zero=True)
    images = sample(model, plan, seeds=range(20), batch_size=20)
    noise = ImageNoise(range(20), (1, 8, 8))()
    with torch.no_grad():
        own = net.images(noise.flatten(1)[:, :10])
    assert (
        images.float() - (127.5 * own + 128).floor().clamp(0, 255)
    ).abs().max() <= 1  # rounding at a level's edge
    assert images.float().std() > 5
    torch.testing.assert_close(images[7:9], sample(model, plan, seeds=[7, 8], batch_size=1), atol=1, rtol=0)


def test_a_generator_is_sampled_in_one_call_alone(saved):
    model = load_model(saved[0])
    plan = PRESETS["ddim"](model.schedule, 4, grid="uniform-t", to_zero=True)
    with pytest.raises(ConfigError, match="makes an image in 1 network call; the plan .* has 4"):
        sample(model, plan, seeds=[0])
