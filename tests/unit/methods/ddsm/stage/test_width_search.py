"""Widths evaluated one by one: against closed forms, what is refused, and tables of cost."""

from dataclasses import replace

import pytest
from unit.methods.ddsm.stage.slimming import SETTINGS, N, ddim, influences, pixels, searched, slimmable, table
from unit.sampling.toys import small_mixture

from fewstep.checks import ConfigError
from fewstep.diffusion.schedule import VPLinear
from fewstep.methods.ddsm.stage.width_search import cost_table, width_seeds
from fewstep.methods.ddsm.widths import with_widths
from fewstep.sampling.presets import PRESETS
from fewstep.sampling.task import Task


def test_errors_of_the_gaussian_are_those_of_the_closed_form(tmp_path):
    """DDIM on one Gaussian is affine, so that an error u in a step moves every image by its influence times u."""
    search, influence = searched(tmp_path), influences(ddim())
    for widths in [(1, 0, 0, 0, 0, 0), (0, 0, 1, 0, 1, 0), (1,) * N]:
        expected = 0.1 * sum(influence[i] for i in range(N) if widths[i])
        # noise and states are float32, with 24 bits, over six steps
        assert search.error(widths, "uniform") == pytest.approx(expected, rel=1e-4)


def test_with_an_extractor_errors_are_distances_of_features(tmp_path):
    plain = searched(tmp_path / "a", model=slimmable((0.0, 0.01)))
    doubled = replace(pixels(), forward=lambda images: 2 * images.flatten(1) / 127.5 - 2)
    seen = searched(tmp_path / "b", model=slimmable((0.0, 0.01)), extractor=doubled)
    widths = (1,) * N
    # images beyond [-1, 1] are clamped before features are made of them, so theirs can only be nearer
    assert 0.5 < seen.error(widths, "uniform") / (2 * plain.error(widths, "uniform")) <= 1 + 1e-4


def test_what_cannot_have_widths_is_refused(tmp_path):
    one_width = Task(small_mixture().model(VPLinear()))
    with pytest.raises(ConfigError, match="must have several widths"):
        searched(tmp_path, task=one_width)
    with pytest.raises(ConfigError, match="has widths already"):
        searched(tmp_path, plan=with_widths(ddim(), (1, 0, 0, 0, 0, 0)))
    silent_plan = PRESETS["ddim"](VPLinear(), 1).with_node(0, eval="afs_zero")
    with pytest.raises(ConfigError, match="does not call it"):
        searched(tmp_path, plan=silent_plan)


def test_what_another_search_left_is_refused(tmp_path):
    searched(tmp_path).error((1,) * N, "uniform")
    assert searched(tmp_path).evaluated
    with pytest.raises(ConfigError, match="must be of this search"):
        searched(tmp_path, costs=replace(table(), widths=(5.0, 1.0)))


def test_times_are_measured_once(tmp_path):
    settings = SETTINGS.model_copy(update={"cost": "ms", "latency_batch": 4})
    task = Task(slimmable())
    first = cost_table(task, settings, tmp_path / "costs.json")
    assert first.kind == "ms" and min(first.widths) > 0
    assert cost_table(task, settings, tmp_path / "costs.json") == first


def test_images_have_seeds_by_purpose():
    assert dict(width_seeds(SETTINGS)) == {
        "search": range(1_600_000_000, 1_600_000_016),
        "choice": range(1_601_000_000, 1_601_000_064),
    }
