from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.checks import ConfigError, DataError
from fewstep.data.conditions import save_conditions
from fewstep.diffusion.condition import Classes, Condition, Entry, Stored
from fewstep.diffusion.denoiser import Model
from fewstep.diffusion.schedule import VPLinear
from fewstep.pipeline.conditions import (
    conditions_of_images,
    identity_of,
    row_ranges,
    rows_used,
    with_conditions,
)
from fewstep.pipeline.seeds import SeedBlocks, require_unseen, require_unseen_rows
from fewstep.sampling.presets import PRESETS

VP = VPLinear()
ROWS = Condition({"context": torch.arange(20.0).reshape(10, 1, 2)})
ENTRIES = {"context": Entry((None, 2))}


def model(conditions=None):
    return Model(lambda x, t, c=None: x, schedule=VP, shape=(3,), name="toy", conditions=conditions)


@pytest.fixture
def folder(tmp_path):
    save_conditions(tmp_path / "c", ROWS, source={"fingerprint": "f" * 64})
    return tmp_path / "c"


def test_rows_of_a_folder_are_bound_to_the_model(folder):
    bound = with_conditions(model(Stored(None, None, ENTRIES)), folder)
    assert bound.condition_of([13]) == ROWS[[3]]
    assert identity_of(bound) == {"sha256": ROWS.sha256, "rows": 10}


def test_model_without_stored_conditions_needs_no_folder():
    for needs_none in (model(), model(Classes(3)), model(Stored(ROWS))):
        assert with_conditions(needs_none, None) is needs_none
    assert identity_of(model()) is identity_of(model(Classes(3))) is None


def test_what_does_not_go_together_is_one_sentence(folder):
    with pytest.raises(
        ConfigError, match="toy needs --conditions, a folder of rows with context floating point"
    ):
        with_conditions(model(Stored(None, None, ENTRIES)), None)
    with pytest.raises(
        ConfigError, match="must be left out for toy, which takes no stored conditions .nothing."
    ):
        with_conditions(model(), folder)
    with pytest.raises(ConfigError, match=r"takes no stored conditions \(label int64 \(B\)\)"):
        with_conditions(model(Classes(3)), folder)
    with pytest.raises(DataError, match="--conditions .*must have the names mask; got context"):
        with_conditions(model(Stored(None, None, {"mask": Entry((1, 2, 2))})), folder)
    with pytest.raises(DataError, match="has no manifest.json"):
        with_conditions(model(Stored(None, None, ENTRIES)), folder.parent)


class Images(SimpleNamespace):
    def __len__(self):
        return self.n


def test_rows_belong_to_the_images_of_one_dataset(folder):
    assert conditions_of_images(folder, Images(n=10, of_images="f" * 64), "data") == ROWS
    with pytest.raises(DataError, match="must be of the images of data, with fingerprint 0000"):
        conditions_of_images(folder, Images(n=10, of_images="0" * 64), "data")
    with pytest.raises(DataError, match="one row for each image of data, 11, .* has 10"):
        conditions_of_images(folder, Images(n=11, of_images="f" * 64), "data")
    save_conditions(folder, ROWS)
    assert conditions_of_images(folder, Images(n=10, of_images="0" * 64), "data") == ROWS


# Rows that found a plan


@given(st.integers(0, 1000), st.integers(1, 60), st.integers(1, 25))
def test_ranges_are_the_rows_of_the_seeds(first, n, rows):
    seeds = range(first, first + n)
    covered = [row for low, high in row_ranges(seeds, rows) for row in range(low, high + 1)]
    assert sorted(covered) == sorted({seed % rows for seed in seeds})


def plan(**provenance):
    return replace(PRESETS["ddim"](VP, 2), name="found", provenance=provenance)


def test_rows_of_a_search_are_refused_for_its_report():
    used = rows_used(model(Stored(ROWS)), {"trials": [20, 22], "choice": [48, 51]}, {})
    assert used["conditions"] == {
        "trials": {"sha256": ROWS.sha256, "rows": [[0, 2]]},
        "choice": {"sha256": ROWS.sha256, "rows": [[0, 1], [8, 9]]},
    }
    found, identity = plan(**used), identity_of(model(Stored(ROWS)))
    require_unseen_rows(found, range(103, 108), identity)
    for seeds, rows in (
        (range(100, 104), "0-3 overlap 0-2 .trials"),
        (range(3, 9), "3-8 overlap 8-9 .choice"),
    ):
        with pytest.raises(
            ConfigError, match=f"Conditions to report on must not have been searched on, .* {rows}"
        ):
            require_unseen_rows(found, seeds, identity)
    # other conditions, or none that are counted
    require_unseen_rows(found, range(100, 104), {"sha256": "0" * 64, "rows": 10})
    require_unseen_rows(found, range(100, 104), None)
    require_unseen(found, range(100, 104))


def test_a_plan_keeps_the_rows_of_those_it_was_made_of():
    first = rows_used(model(Stored(ROWS)), {"trials": [0, 2]}, {})
    both = rows_used(model(Stored(ROWS[:5])), {"align-fit": [0, 2]}, first)["conditions"]
    assert both["trials"] == first["conditions"]["trials"]
    assert both["align-fit"] == {"sha256": ROWS[:5].sha256, "rows": [[0, 2]]}
    assert rows_used(model(), {"align-fit": [0, 2]}, first) == first


def test_classes_are_shared_by_searches_and_reports():
    assert rows_used(model(Classes(3)), {"trials": [0, 2]}, {}) == {}
    assert rows_used(model(), {"trials": [0, 2]}, {}) == {}


def test_purposes_of_one_search_share_rows_but_no_seeds_and_reports_share_neither():
    """As `SeedBlocks` says: rows of their own for each purpose would leave none for a report."""
    blocks = SeedBlocks(0, {"trials": 3, "finalists": 4})
    used = rows_used(model(Stored(ROWS)), blocks.as_json(), {})
    assert [used["conditions"][name]["rows"] for name in ("trials", "finalists")] == [[[0, 2]], [[0, 3]]]
    assert not set(blocks["trials"]) & set(blocks["finalists"])
    found, identity = plan(seeds=blocks.as_json(), **used), identity_of(model(Stored(ROWS)))
    require_unseen_rows(found, range(4, 10), identity)
    with pytest.raises(ConfigError, match="must not have been searched on"):
        require_unseen_rows(found, range(3, 10), identity)
