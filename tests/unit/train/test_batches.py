import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy import ToyImages

from fewstep.checks import ConfigError, DataError
from fewstep.data.pairs import pairs_of
from fewstep.data.pixels import to_unit
from fewstep.diffusion.condition import Condition
from fewstep.train.batches import image_batches, indices


@given(n=st.integers(1, 30), batch_size=st.integers(1, 70), seed=st.integers(0, 5))
def test_every_epoch_sees_every_image_once(n, batch_size, seed):
    steps = -(-3 * n // batch_size)
    row = torch.cat([indices(s, n=n, batch_size=batch_size, seed=seed) for s in range(steps)])
    for epoch in range(3):
        assert sorted(row[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))


def test_epochs_and_seeds_differ():
    orders = {
        tuple(indices(step, n=50, batch_size=50, seed=seed).tolist()) for step in (0, 1) for seed in (0, 1)
    }
    assert len(orders) == 4


@pytest.mark.parametrize("flip", [False, True])
def test_processes_share_the_batch_of_one(flip):
    images = ToyImages()
    values = {"batch_size": 12, "seed": 4, "flip": flip}
    whole = image_batches(images, **values)(7)
    parts = [image_batches(images, **values, rank=r, world_size=3)(7) for r in range(3)]
    assert torch.equal(torch.cat([p.x0 for p in parts]), whole.x0)
    assert torch.equal(torch.cat([p.labels for p in parts]), whole.labels)
    drawn = torch.arange(12)
    assert torch.equal(torch.cat([p.cut(drawn) for p in parts]), drawn)


def test_flips_mirror_some_images():
    images = ToyImages()
    rows = indices(0, n=20, batch_size=20, seed=1)
    plain = to_unit(images.batch(rows))
    flipped = image_batches(images, batch_size=20, seed=1, flip=True)(0).x0
    mirrored = (flipped == plain.flip(-1)).flatten(1).all(1)
    assert 0 < mirrored.sum() < 20
    assert torch.equal(flipped[~mirrored], plain[~mirrored])


def test_bad_values_are_refused():
    with pytest.raises(ConfigError, match="3 processes"):
        image_batches(ToyImages(), batch_size=8, seed=0, world_size=3)
    with pytest.raises(ConfigError, match="empty"):
        image_batches(ToyImages(0), batch_size=8, seed=0)


def told(n=20):
    """A number per image, and a map whose columns are told apart."""
    numbers = torch.arange(n)[:, None, None]
    return Condition(
        {"context": numbers.half(), "mask": torch.arange(4.0).expand(n, 1, 4, 4) + numbers[..., None]}
    )


@pytest.mark.parametrize("flip", [False, True])
def test_each_image_keeps_its_condition(flip):
    images = ToyImages()
    values = {"batch_size": 12, "seed": 4, "flip": flip, "condition": told()}
    whole = image_batches(images, **values)(3)
    chosen = indices(3, n=20, batch_size=12, seed=4)
    assert whole.condition.values["context"].dtype == torch.float32
    assert whole.condition.values["context"].flatten().long().tolist() == chosen.tolist()
    parts = [image_batches(images, **values, rank=r, world_size=3)(3).condition for r in range(3)]
    assert Condition.cat(parts) == whole.condition


def test_a_map_is_mirrored_with_its_image():
    images = ToyImages()
    images.pixels = torch.arange(4, dtype=torch.uint8).expand(20, 1, 4, 4)
    batch = image_batches(images, batch_size=20, seed=4, flip=True, condition=told())(0)
    mirrored = batch.x0[:, 0, 0, 0] > batch.x0[:, 0, 0, 3]
    mask = batch.condition.values["mask"][:, 0, 0]
    assert torch.equal(mask[:, 0] > mask[:, 3], mirrored) and 0 < mirrored.sum() < 20


def test_another_number_of_conditions_than_images_is_refused():
    with pytest.raises(DataError, match="each of the 20 images, in their order, .*; got 19"):
        image_batches(ToyImages(), batch_size=4, seed=0, condition=told(19))


def rows_of(batch):
    """The rows of conditions that a batch was given."""
    return [int(row) for row in batch.condition.values["context"].flatten()]


def test_each_image_is_given_each_of_its_rows():
    images, conditions = ToyImages(), told(60)
    seen: dict[int, set[int]] = {}
    for step in range(30):
        batch = image_batches(images, batch_size=20, seed=1, condition=conditions)(step)
        for i, row in zip(indices(step, n=20, batch_size=20, seed=1).tolist(), rows_of(batch), strict=True):
            assert row % 20 == i
            seen.setdefault(i, set()).add(row)
    assert all(rows == {i, i + 20, i + 40} for i, rows in seen.items())


def test_pairs_say_which_rows_an_image_is_given():
    images, conditions = ToyImages(), told(7)
    pairs = pairs_of([5, 6, 0], [3, 3, 11])
    at = image_batches(images, batch_size=40, seed=1, condition=conditions, pairs=pairs)
    batch = at(0)
    own = {3: {5, 6}, 11: {0}}
    for target, rows in own.items():
        pixels = to_unit(images.batch([target]))[0]
        mine = [row for x0, row in zip(batch.x0, rows_of(batch), strict=True) if torch.equal(x0, pixels)]
        assert len(mine) == 20 and set(mine) == rows, "images without a pair are left out"
    parts = [
        image_batches(images, batch_size=40, seed=1, condition=conditions, pairs=pairs, rank=r, world_size=2)(
            0
        )
        for r in range(2)
    ]
    assert [row for part in parts for row in rows_of(part)] == rows_of(batch)
    with pytest.raises(DataError, match="target_id of pairs must be below 20, .*; got 20"):
        image_batches(images, batch_size=8, seed=0, condition=conditions, pairs=pairs_of([0], [20]))


def test_latents_are_no_bytes():
    images = ToyImages()
    latents = torch.randn(20, 4, 2, 2)
    images.batch = lambda rows: latents[torch.as_tensor(rows)]
    batch = image_batches(images, batch_size=20, seed=1)(0)
    assert torch.equal(batch.x0, latents[indices(0, n=20, batch_size=20, seed=1)])
