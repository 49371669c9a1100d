import torch

from fewstep.rng import ImageNoise, generator


def test_an_image_does_not_depend_on_its_batch():
    together = ImageNoise(range(5, 9), (3, 4, 4))
    alone = ImageNoise([7], (3, 4, 4))
    for _ in range(3):  # x_T and two later draws
        torch.testing.assert_close(together()[2], alone()[0], rtol=0, atol=0)


def test_streams_are_independent_and_repeatable():
    first, again, other = generator(3, "order", 0), generator(3, "order", 0), generator(3, "order", 1)
    a, b, c = (torch.randn(1000, generator=g) for g in (first, again, other))
    assert torch.equal(a, b)
    # correlation of independent draws: 5 standard errors of 1 / sqrt(1000)
    assert abs(float(torch.corrcoef(torch.stack([a, c]))[0, 1])) < 0.16
