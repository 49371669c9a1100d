"""Planes, the choice of C, the mixing step and attributes: closed forms and small tables."""

import numpy as np
import pytest
import torch
from unit.data.formats import encoded, noise, write_celeba, write_files
from unit.sampling.test_inverse import gaussian

from fewstep.checks import ConfigError, DataError
from fewstep.data.celeba import celeba_source
from fewstep.data.engine import prepare_source
from fewstep.data.folder import folder_source
from fewstep.data.packed import load_dataset
from fewstep.diffusion.schedule import DDPMTable
from fewstep.methods.boundary.attribute import NEITHER, WITH, WITHOUT, Attribute, some_of
from fewstep.methods.boundary.choice import best, scores, success_at
from fewstep.methods.boundary.mixing import Norms, Point, halved, mixing_step, sampled_norms
from fewstep.methods.boundary.plane import Plane, fit_plane, require_both
from fewstep.metrics.extractor import Extractor, Head
from fewstep.rng import generator
from fewstep.sampling.presets import PRESETS


def clouds(n, distance=2.0, dimensions=20):
    """Two normal clouds, and the direction from one to the other."""
    rng = generator(0)
    direction = torch.randn(dimensions, generator=rng, dtype=torch.float64)
    direction /= direction.norm()
    positive = np.arange(n) % 2 == 0
    x = torch.randn(n, dimensions, generator=rng, dtype=torch.float64) + 5
    return x + torch.from_numpy(positive)[:, None] * distance * direction, positive, direction


def test_the_plane_of_two_clouds_lies_between_them_across_their_difference():
    x, positive, direction = clouds(2000)
    plane = fit_plane(x.reshape(-1, 1, 4, 5), positive, 0.01)
    assert plane.normal.shape == (1, 4, 5) and float(plane.normal.norm()) == pytest.approx(1)
    assert float(plane.normal.flatten() @ direction) > 0.98
    middle = 5 + direction  # half of the distance of 2
    assert abs(float(plane.distance(middle.reshape(1, 1, 4, 5)))) < 0.25
    # of two normal clouds at distance 2, the share on the right side is that below 1 standard deviation
    assert plane.accuracy(x.reshape(-1, 1, 4, 5), positive) == pytest.approx(0.841, abs=0.03)
    other = fit_plane(x.reshape(-1, 1, 4, 5), ~positive, 0.01)
    assert torch.allclose(other.normal, -plane.normal, atol=1e-3) and other.offset == pytest.approx(
        -plane.offset, abs=0.05
    )


def test_it_is_the_plane_of_scikit_learn():
    from sklearn.svm import SVC

    x, positive, _ = clouds(60, dimensions=200)
    plane, machine = fit_plane(x, positive, 0.1), SVC(kernel="linear", C=0.1).fit(x.numpy(), positive)
    own = plane.distance(x).numpy() * np.linalg.norm(machine.coef_)
    assert np.allclose(own, machine.decision_function(x.numpy()), atol=2e-3), "to the tolerance of the solver"
    assert plane.scale == pytest.approx(float(plane.distance(x).abs().mean()))


def test_moves_are_projections():
    x, positive, _ = clouds(200)
    plane = fit_plane(x, positive, 1.0)
    moved = plane.to(x, 2.0)
    assert torch.allclose(plane.distance(moved), torch.full((200,), 2 * plane.scale).double(), atol=1e-9)
    normal = plane.normal

    def across(y):
        return y - (y @ normal)[:, None] * normal

    assert torch.allclose(across(moved), across(x), atol=1e-12)
    assert torch.allclose(plane.to(moved, -1.0), plane.to(x, -1.0), atol=1e-12), "the last edit counts"
    here = float(plane.distance(x[:1])) / plane.scale
    assert torch.allclose(plane.to(x[:1], here), x[:1], atol=1e-12)
    turned = torch.zeros(20, dtype=torch.float64)
    turned[0] = 1
    turned -= (turned @ normal) * normal
    other = Plane(turned / turned.norm(), 0.3, 1.0, 1.0)
    assert torch.allclose(other.to(plane.to(x, 2.0), 1.0), plane.to(other.to(x, 1.0), 2.0), atol=1e-9)
    assert plane.to(x.float(), 1.0).dtype == torch.float32


def test_too_few_on_a_side_are_refused():
    x, positive, _ = clouds(40)
    with pytest.raises(
        DataError, match="10 images or more on each side; got 0 with the attribute and 40 without"
    ):
        fit_plane(x, np.zeros(40, bool), 1.0)
    with pytest.raises(DataError, match="got 9 with"):
        require_both(np.arange(40) < 9)
    with pytest.raises(DataError, match="must differ for a plane between them"):
        fit_plane(torch.ones(40, 3), positive, 1.0)


def test_c_is_chosen_by_success_at_equal_change_of_content_and_not_by_how_far_images_go():
    """The larger C needs less change for the same success, though the smaller succeeds more at its own distances."""
    far = np.array([0.2, 0.4, 0.8]), np.array([0.3, 0.6, 0.9])
    near = np.array([0.05, 0.1, 0.2]), np.array([0.3, 0.6, 0.8])
    assert best({1e-3: far, 1.0: near}) == 1.0
    found = scores({1e-3: far, 1.0: near})
    assert found[1e-3] == pytest.approx(np.mean(0.3 * np.arange(1, 21) / 20))
    assert success_at(far, 0.3) == pytest.approx(0.45) and success_at(near, 9.0) == 0.8
    none = np.array([0.0, 0.0, 0.0]), np.zeros(3)
    assert best({1.0: none, 1e-3: none}) == 1e-3, "of equal ones the widest margin"


def point(t, gap, error):
    return Point(t, Norms(8, 1, 100), Norms(8 - gap, 1, 100), Norms(8 - 1.5 * gap, 1, 100), error, {})


def test_the_mixing_step_is_the_latest_with_a_small_gap_and_error():
    points = [point(0.1, 0.2, 1e-4), point(0.2, 0.8, 1e-3), point(0.3, 0.9, 0.2), point(0.5, 1.4, 1e-3)]
    chosen, within = mixing_step(points, most_gap=1, most_error=0.01)
    assert chosen.t == 0.2 and within
    chosen, within = mixing_step(points, most_gap=0.1, most_error=0.01)
    assert chosen.t == 0.1 and not within
    assert points[0].gap == pytest.approx(0.2) and points[0].limit_gap == pytest.approx(0.1)


def test_norms_on_the_way_from_noise_are_those_of_the_marginals():
    schedule = DDPMTable.linear()
    model, ts = gaussian(0.0, 0.3), [0.5, 0.2, 0.05]
    for t, norms in zip(ts, sampled_norms(model, ts, seeds=range(3000), batch_size=1000), strict=True):
        std = (float(schedule.alpha(t)) ** 2 * 0.09 + float(schedule.sigma(t)) ** 2) ** 0.5
        # of |x| of a normal number; a standard error of 3000 is 1.4 %, and 80 steps err a little
        assert norms.mean == pytest.approx(std * (2 / np.pi) ** 0.5, rel=0.05) and norms.n == 3000


def test_a_halved_plan_has_every_second_node():
    plan = PRESETS["ddim"](DDPMTable.linear(), 6, grid="uniform-t", t_start=0.5, to_zero=True)
    half = halved(plan)
    assert half.nfe == 3 and half.nodes[:3] == plan.nodes[:6:2] and half.to_zero


@pytest.fixture
def packed(tmp_path):
    files = {
        f"{split}/{name}/{i}.png": encoded(noise(6, 6, 3, seed=10 * i + len(name)))
        for split in ("train", "test")
        for name in ("cat", "horse")
        for i in range(6)
    }
    prepare_source(
        folder_source(write_files(tmp_path / "raw", files)), tmp_path / "packed", name="x", workers=1
    )
    return tmp_path / "packed"


def test_one_class_against_another(packed):
    assert Attribute("cat/horse").sides(packed, "train").tolist() == 6 * [WITHOUT] + 6 * [WITH]
    assert Attribute("horse/cat").sides(packed, "test").tolist() == 6 * [WITH] + 6 * [WITHOUT]
    assert Attribute("cat/horse").file == "cat-horse"
    for name in ("cat/dog", "cat", "cat/cat", "Smiling"):
        with pytest.raises(
            ConfigError, match="must be one of A/B of the classes cat, horse, brightness, red, green"
        ):
            Attribute(name).sides(packed, "train")


@pytest.mark.parametrize("name", ["brightness", "blue"])
def test_what_is_measured_has_an_upper_and_a_lower_third(packed, name):
    train = load_dataset(packed, "train")
    attribute = Attribute(name)
    sides = attribute.sides(packed, "train")
    pixels = train.images.astype(float)
    values = (
        pixels.mean((1, 2, 3)) if name == "brightness" else pixels[..., 2].sum((1, 2)) / pixels.sum((1, 2, 3))
    )
    assert sorted(sides) == 4 * [NEITHER] + 4 * [WITHOUT] + 4 * [WITH]
    assert values[sides == WITH].min() > values[sides == NEITHER].max() > values[sides == WITHOUT].max()
    judge = attribute.judge(packed, None)
    assert np.array_equal(judge(train.batch(range(12))), values > np.median(values))


def test_the_measures_of_a_grey_dataset(tmp_path):
    files = {f"train/{i}.png": encoded(noise(6, 6, 3, seed=i)) for i in range(4)}
    prepare_source(
        folder_source(write_files(tmp_path / "raw", files), grey=True), tmp_path / "p", name="g", workers=1
    )
    assert len(Attribute("brightness").sides(tmp_path / "p", "train")) == 4
    with pytest.raises(ConfigError, match="--attribute blue needs images of 3 channels; g has 1"):
        Attribute("blue").sides(tmp_path / "p", "train")


def test_the_attributes_of_celeba(tmp_path):
    source = write_celeba(tmp_path / "celeba", n=9)
    prepare_source(celeba_source(source, size=8), tmp_path / "packed", name="celeba", workers=1)
    train = load_dataset(tmp_path / "packed", "train")
    name = train.manifest["attributes"][1]
    assert Attribute(name).sides(tmp_path / "packed", "train").tolist() == train.attributes[:, 1].tolist()
    with pytest.raises(ConfigError, match=f"must be one of {train.manifest['attributes'][0]}"):
        Attribute("Levitating").sides(tmp_path / "packed", "train")


def test_a_table_by_rows_of_the_dataset(packed, tmp_path):
    table = tmp_path / "mine.csv"
    table.write_text("row,striped,old\n0,1,1\n1,-1,\n5,0,1\n11,1,0\n13,1,1\n")
    attribute = Attribute(f"{table}:striped")
    assert attribute.sides(packed, "train").tolist() == [1, 0, -1, -1, -1, 0, -1, -1, -1, -1, -1, 1]
    assert attribute.sides(packed, "test").tolist() == [-1, 1, *10 * [-1]] and attribute.file == "striped"
    for text, why in (
        ("row,other\n0,1\n", "must have the columns row and striped; it has row, other"),
        ("row,striped\n24,1\n", "row must be below 24"),
        ("row,striped\n1,yes\n", "and 'yes'"),
    ):
        table.write_text(text)
        with pytest.raises(DataError, match=why):
            attribute.sides(packed, "train")
    with pytest.raises(DataError, match="must be a readable table"):
        Attribute(f"{tmp_path / 'none.csv'}:striped").sides(packed, "train")


def test_some_rows_are_from_all_over():
    rows = np.arange(10, 30)
    assert some_of(rows, 3).tolist() == [10, 20, 29] and some_of(rows, 30) is rows


def test_judges_of_classes_and_of_tables(packed, tmp_path):
    """The mean of each channel as features: the classifier knows two classes, the regression learns its own border."""
    head = Head(np.array([[1, 0, 0], [0, 1, 0]], np.float32), None)
    extractor = Extractor("means", 3, "none", "0" * 64, lambda x: x.float().mean((2, 3)), head=head)
    images = torch.zeros(2, 3, 6, 6, dtype=torch.uint8)
    images[0, 0], images[1, 1] = 200, 200
    assert Attribute("cat/horse").judge(packed, extractor)(images).tolist() == [False, True]
    assert Attribute("horse/cat").judge(packed, extractor)(images).tolist() == [True, False]
    assert Attribute("cat/horse").judge(packed, None) is None
    train = load_dataset(packed, "train")
    red = train.images[..., 0].astype(float).mean((1, 2))
    rows = "\n".join(f"{row},{int(value > np.median(red))}" for row, value in enumerate(red))
    (tmp_path / "red.csv").write_text(f"row,red\n{rows}\n")
    judge = Attribute(f"{tmp_path / 'red.csv'}:red").judge(packed, extractor)
    assert (judge(train.batch(range(12))) == (red > np.median(red))).mean() > 0.9
