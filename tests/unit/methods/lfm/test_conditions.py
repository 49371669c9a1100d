import pytest
import torch
import torch.nn.functional as F

from fewstep.checks import DataError
from fewstep.methods.lfm.conditions import foreground_maps, halved, masked, pasted, projected
from fewstep.nets.unet import UNet
from fewstep.rng import generator

IMAGES = torch.rand(3, 2, 8, 8, generator=generator(0)) * 2 - 1
HOLE = torch.zeros(3, 8, 8, dtype=torch.bool)
HOLE[:, 2:5, 4:] = True


def test_the_encoder_never_sees_the_hole():
    other = torch.where(HOLE[:, None], torch.rand(IMAGES.shape, generator=generator(1)), IMAGES)
    condition = masked(IMAGES, HOLE, lambda x: F.avg_pool2d(x, 2), 2)
    assert condition == masked(other, HOLE, lambda x: F.avg_pool2d(x, 2), 2)
    assert condition.values["known"].shape == (3, 2, 4, 4) and condition.values["mask"].shape == (3, 1, 4, 4)
    assert set(condition.values["mask"].unique().tolist()) == {-1.0, 1.0}
    of_pixels = masked(IMAGES, HOLE, lambda x: x, 1).values["known"]
    assert float(of_pixels[HOLE[:, None].expand(-1, 2, -1, -1)].max()) == -1


def test_a_network_of_latents_of_4_channels_sees_9():
    condition = masked(IMAGES, HOLE, lambda x: torch.cat([x, x], 1)[..., ::2, ::2], 2)
    maps = {name: value.shape[1] for name, value in condition.values.items()}
    net = UNet(4, 4, 8, maps=maps)
    assert net.conv_in.in_channels + net.maps_in.in_channels == 9
    assert net(torch.zeros(3, 4, 4, 4), 1.0, condition).shape == (3, 4, 4, 4)


def test_pasting_keeps_what_is_known_to_the_bit():
    filled = torch.rand(IMAGES.shape, generator=generator(2))
    out = pasted(IMAGES, filled, HOLE)
    hole = HOLE[:, None].expand_as(out)
    assert torch.equal(out[~hole], IMAGES[~hole]) and torch.equal(out[hole], filled[hole])


def test_maps_name_the_class_of_what_is_bright():
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    images[0, :, 0], images[1, :, :, 1] = 255, 128
    maps = foreground_maps(images, torch.tensor([4, 0]))
    assert maps[0, 0].tolist() == [5] * 4 and not maps[0, 1:].any()
    assert maps[1, :, 1].tolist() == [1] * 4


def test_halvings_are_bilinear():
    maps = torch.randint(0, 5, (2, 16, 16), generator=generator(3))
    one_hot = F.one_hot(maps, 5).permute(0, 3, 1, 2).float()
    for _ in range(3):
        one_hot = F.interpolate(one_hot, scale_factor=0.5, mode="bilinear", align_corners=False)
    assert torch.allclose(halved(maps, 5, 8), one_hot, atol=1e-6)
    assert torch.allclose(halved(maps, 5, 8).sum(1), torch.ones(2, 2, 2))
    with pytest.raises(DataError, match="Classes of a map must be 0 to 3; got 0 to 4"):
        halved(maps, 4, 8)


def test_the_published_map_encoder_mixes_classes_the_same_for_all():
    maps = halved(torch.arange(11).reshape(1, 1, 11).expand(1, 11, 11), 11, 1)
    out = projected(maps, seed=1)
    assert out.shape == (1, 4, 11, 11) and torch.equal(projected(maps, seed=1), out)
    assert not torch.allclose(projected(maps, seed=2), out, atol=0.1)
    # 11 classes in 4 channels: a linear map loses seven dimensions
    assert int(torch.linalg.matrix_rank(out[0, :, 0])) == 4 < int(torch.linalg.matrix_rank(maps[0, :, 0]))


def test_masks_that_do_not_fit_are_refused():
    for masks in (HOLE.float(), HOLE[:2], HOLE[:, :4]):
        with pytest.raises(
            DataError, match="Masks must be bool .3, 8, 8., one for each image, true in the hole; got"
        ):
            masked(IMAGES, masks, lambda x: x, 1)
