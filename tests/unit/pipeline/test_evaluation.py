from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fewstep.checks import ConfigError
from fewstep.pipeline.evaluation import _maker, _require_independent
from fewstep.pipeline.images import ImageSet


def drawn(seeds, level, model="a" * 64):
    images = np.full((4, 2, 2, 1), level, np.uint8)
    meta = {"model": {"fingerprint": model}, "plan_hash": "p", "guidance": 1.0}
    return ImageSet(images, f"set{level}", Path(f"{level}.npz"), seeds=seeds, meta=meta)


def test_runs_of_other_seeds_are_independent():
    _require_independent([drawn("0-3", 1), drawn("4-7", 2), drawn("8-11", 3)])


@pytest.mark.parametrize(
    "other",
    [drawn("3-6", 2), replace(drawn("4-7", 1), meta=None), replace(drawn("0-3", 1), path=Path("copy.npz"))],
)
def test_runs_that_share_seeds_or_images_are_named(other):
    with pytest.raises(ConfigError, match="must be independent, but 1.npz and"):
        _require_independent([drawn("0-3", 1), other])


def test_sets_of_two_models_are_no_runs_of_one():
    assert _maker(drawn("0-3", 1)) != _maker(drawn("4-7", 2, model="b" * 64))
    assert _maker(drawn("0-3", 1)) == _maker(drawn("4-7", 2))
