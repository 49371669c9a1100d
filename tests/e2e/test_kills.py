"""The commands of a workflow, killed at any moment that leaves a trace, and started again as the workflow does."""

import contextlib
import os
from pathlib import Path

import pytest
from e2e.shell import made, refused

from fewstep.app import keys
from fewstep.app.params import Settings
from fewstep.app.stages import STAGES
from fewstep.files import read_json, write_json
from fewstep.pipeline.stage.spec import STAMP

RUN = "tiny"
SETTINGS = Settings.model_validate(
    {
        "prepare": {"limit": 100, "workers": 1},
        "model": {"channels": 8, "attention": []},
        "train": {"steps": 4, "batch_size": 16, "warmup": 2, "log_every": 2, "checkpoint_seconds": 1e-9},
        "gan": {
            "network": "resnet",
            "width": 2,
            "latent": 4,
            "steps": 4,
            "batch_size": 16,
            "log_every": 2,
            "probe_every": 2,
            "probe_images": 100,
            "checkpoint_seconds": 1e-9,
            "lr_g": 0.05,
        },
        "extractor": {"steps": 2, "batch_size": 16},
        "plans": {"nfe": [3], "presets": ["ddim"], "grids": ["uniform-lambda"]},
        "search": {"nfe": []},
        "sample": {"n": 20},
        "evaluate": {"resamples": 10},
        "detect": {"nfe": []},
        "track": {"live": False},
    }
)


class Killed(BaseException):
    """In the place of SIGKILL: nothing that was begun is tidied up."""


@pytest.fixture(scope="module")
def workflow(tmp_path_factory):
    """Start the command of a result; the folder holds what the results before it are."""
    folder = tmp_path_factory.mktemp("killed")
    with contextlib.chdir(folder):
        specs = keys.make_specs(RUN, {RUN: SETTINGS})
        results = {result.place: result for result in STAGES.results(SETTINGS)}
        for place, spec in specs.items():
            write_json(keys.spec_path(RUN, place), spec.as_json())

        def start(place: str) -> None:
            words = STAGES.words(results[place], RUN, SETTINGS)
            made(*words, "--spec", keys.spec_path(RUN, place), cwd=folder)

        yield folder, start, results


def temporaries(folder: Path) -> list[Path]:
    return [
        Path(top, name) for top, dirs, names in os.walk(folder) for name in [*dirs, *names] if ".tmp-" in name
    ]


def killed_before_rename(number: int):
    """Patches under which the process dies before it renames something for the nth time."""
    patch = pytest.MonkeyPatch()
    rename, count = Path.replace, 0

    def replace(self, target):
        nonlocal count
        count += 1
        if count == number:
            raise Killed
        return rename(self, target)

    patch.setattr(Path, "replace", replace)
    patch.setattr("fewstep.files._remove", lambda path: None)
    return patch


OF_ONE_KIND = ["plans/nfe3", "onecall", "sample/plans/nfe3", "sample/onecall", "evaluate/plans/nfe3",
               "evaluate/onecall", "report"]  # fmt: skip
"""Results that are written as those of stats, or built in one folder; the report needs them all."""


@pytest.mark.parametrize(
    "place",
    [
        "prepare",
        "train",
        "extractor",
        "stats",
        pytest.param("gan", marks=pytest.mark.slow),  # as train, with pictures beside the checkpoints
        *(pytest.param(place, marks=pytest.mark.slow) for place in OF_ONE_KIND),
    ],
)
def test_a_command_that_was_killed_can_be_started_again(workflow, place):
    """From nothing, and where a result stands whose stamp the workflow has deleted, as it does before each start."""
    folder, start, results = workflow
    out = folder / results[place].folder(RUN)
    number, survived = 0, False
    while not survived:
        number += 1
        (out / STAMP).unlink(missing_ok=True)
        patch = killed_before_rename(number)
        try:
            start(place)
            survived = True
        except Killed:
            assert not (out / STAMP).exists()
        finally:
            patch.undo()
        start(place)
        stamp = read_json(out / STAMP)
        assert stamp["files"] and all((out / name).exists() for name in stamp["files"])
        assert temporaries(folder) == []
    assert number > 2


@pytest.mark.parametrize("command", ["train", "extractor"])
def test_a_folder_of_other_things_is_refused_before_training(workflow, command):
    folder, _, _ = workflow
    (folder / "notes").mkdir(exist_ok=True)
    (folder / "notes" / "thoughts.json").write_text("precious")
    training = (command, "--data", folder / "results" / RUN / "prepare", "--out", "notes", "--steps", 10**9)
    more = ("--checkpoints", "ck") if command == "train" else ()
    assert "it holds thoughts.json, which would be deleted" in refused(*training, *more, cwd=folder)
    assert (folder / "notes" / "thoughts.json").read_text() == "precious"
    assert not (folder / "ck").exists()
