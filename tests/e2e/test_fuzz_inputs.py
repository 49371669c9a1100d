"""Files that commands read, damaged in every way: the work is done, or one sentence is said and nothing is left."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from e2e.mutations import (
    array_changes,
    arrays_of,
    changed,
    changes,
    damaged,
    damages,
    json_text,
    npz,
    with_arrays_changed,
)
from e2e.shell import fewstep, made
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fewstep.app.keys import make_specs
from fewstep.app.params import Settings, load_params
from fewstep.checks import ConfigError
from fewstep.data.conditions import save_conditions
from fewstep.diffusion.condition import Condition
from fewstep.diffusion.schedule import VPLinear
from fewstep.files import canonical_json, sha256_text, write_json
from fewstep.interop.zoo import zoo_folder
from fewstep.metrics.reference import export_reference, load_reference
from fewstep.nets.classifier import Classifier
from fewstep.nets.folder import save_classifier, save_model
from fewstep.nets.unet import UNet
from fewstep.rng import initial_weights

ROOT = Path(__file__).parents[2]
TINY = "cifar10-32-tiny"
EXAMPLES = int(os.environ.get("FEWSTEP_FUZZ", "12"))
"""Of each kind of file; more find more."""

few = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=EXAMPLES,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
# numbers near the end of their range, which the file states and the result shows
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """A small file of every kind, of networks that nobody has trained."""
    folder = tmp_path_factory.mktemp("valid")
    net = UNet(8, 1, 8, multipliers=(1,), blocks=1, attention=())
    save_model(folder / "model", net, schedule=VPLinear(), prediction="v", shape=(1, 8, 8), name="m", card={})
    with initial_weights(0):
        classifier = Classifier(1, 10, channels=4, features=8)
    save_classifier(folder / "extractor", classifier, shape=(1, 8, 8), name="digits-cnn", card={})
    made("prepare", "digits", "--limit", 100, "--workers", 1, "--out", "data", cwd=folder)
    made("stats", "data", "--extractor", "extractor", "--out", "stats.npz", cwd=folder)
    made("plan", "unipc-2", "--model", "model", "--nfe", 3, "--to-zero", "--out", "plan.json", cwd=folder)
    made("sample", "model", "plan.json", "--seeds", "0-19", "--out", "samples.npz", cwd=folder)
    made("evaluate", "samples.npz", "--reference", "stats.npz", "--extractor", "extractor", "--metrics", "fd,kid",
         "--resamples", 10, "--out", "certificate.json", cwd=folder)  # fmt: skip
    export_reference(folder / "foreign.npz", load_reference(folder / "stats.npz"))
    write_json(folder / "spec.json", make_specs("digits", {"digits": Settings()})["plans/nfe4"].as_json())
    return folder


COMMANDS = {
    "plan.json": ("sample", "model", "plan.json", "--seeds", "0-1", "--out", "new/out.npz"),
    "certificate.json": ("verify", "certificate.json"),
    "samples.npz": (
        "evaluate", "samples.npz", "--reference", "stats.npz", "--extractor", "extractor", "--metrics", "fd",
        "--resamples", "10", "--out", "new/out.json",
    ),
    "stats.npz": (
        "evaluate", "samples.npz", "--reference", "stats.npz", "--extractor", "extractor", "--metrics", "fd,kid,pr,mem",
        "--resamples", "10", "--out", "new/out.json",
    ),
    "foreign.npz": ("stats", "foreign.npz", "--extractor", "extractor", "--out", "new/out.npz"),
    "model/config.json": ("plan", "ddim", "--model", "model", "--nfe", "4", "--out", "new/out.json"),
    "model/model.safetensors": ("plan", "ddim", "--model", "model", "--nfe", "4", "--out", "new/out.json"),
    "extractor/config.json": (
        "evaluate", "samples.npz", "--reference", "stats.npz", "--extractor", "extractor", "--metrics", "fd",
        "--resamples", "10", "--out", "new/out.json",
    ),
    "data/manifest.json": ("stats", "data", "--extractor", "extractor", "--out", "new/out.npz"),
    "spec.json": ("plans", "--spec", "spec.json", "--model", "model", "--nfe", "4", "--out", "new/out"),
}  # fmt: skip


def checked(valid, file, content, *arguments, keeps=False):
    """Run a command on a folder in which one file holds something else.

    Args: keeps: whether what has been measured may be kept for the next try, hidden beside the output.
    """
    path, new = valid / file, valid / "new"
    kept, before = path.read_bytes(), set(valid.rglob("*"))
    path.write_bytes(content)
    try:
        done = fewstep(*arguments, cwd=valid)
        lines = [line for line in done.stderr.splitlines() if line.startswith("fewstep: ")]
        if done.returncode == 2:
            assert len(lines) == 1 and done.stderr.strip().endswith(lines[0]), done.stderr
            assert len(lines[0]) < 1500, lines
            left = {p for p in valid.rglob("*") if p != new} - before
            assert not left or (keeps and all(p.relative_to(new).parts[0].startswith(".") for p in left)), (
                left
            )
        else:
            assert done.returncode == 0 or (done.returncode == 1 and arguments[0] == "verify"), done.stderr
        return done
    finally:
        path.write_bytes(kept)
        shutil.rmtree(new, ignore_errors=True)


def test_the_commands_work_on_what_is_valid(valid):
    for file, command in COMMANDS.items():
        done = checked(valid, file, (valid / file).read_bytes(), *command)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", COMMANDS)
def test_damaged_bytes(valid, file):
    @few
    @given(damages)
    def run(damage):
        checked(valid, file, damaged((valid / file).read_bytes(), *damage), *COMMANDS[file])

    run()


@pytest.mark.parametrize("file", [file for file in COMMANDS if file.endswith(".json")])
def test_changed_fields(valid, file):
    document = json.loads((valid / file).read_bytes())

    @few
    @given(changes)
    def run(changes):
        checked(valid, file, json_text(changed(document, changes)), *COMMANDS[file])

    run()


def signed(document):
    """As somebody who cheats signs it; what has no one text stays unsigned."""
    try:
        content = {key: value for key, value in document.items() if key != "sha256"}
        return document | {"sha256": sha256_text(canonical_json(content))}
    except (ValueError, AttributeError, TypeError):
        return document


@pytest.mark.parametrize("command", ["verify", "compare", "leaderboard"])
def test_signed_certificates(valid, command):
    document = json.loads((valid / "certificate.json").read_bytes())
    shutil.copy(valid / "certificate.json", valid / "other.json")
    options = {"verify": (), "compare": ("other.json",), "leaderboard": ()}[command]

    @few
    @given(changes)
    def run(changes):
        content = json_text(signed(changed(document, changes)))
        checked(valid, "certificate.json", content, command, "certificate.json", *options)

    run()


@pytest.mark.parametrize("file", ["samples.npz", "stats.npz"])
def test_changed_facts_beside_arrays(valid, file):
    arrays = arrays_of((valid / file).read_bytes())
    document = json.loads(str(arrays["meta"]))

    @few
    @given(changes)
    def run(changes):
        meta = json_text(changed(document, changes)).decode()
        checked(valid, file, npz(arrays | {"meta": np.array(meta)}), *COMMANDS[file])

    run()


@pytest.mark.parametrize("file", ["samples.npz", "stats.npz", "foreign.npz"])
def test_changed_arrays(valid, file):
    arrays = arrays_of((valid / file).read_bytes())

    @few
    @given(array_changes)
    def run(changes):
        checked(valid, file, npz(with_arrays_changed(arrays, changes)), *COMMANDS[file], keeps=True)

    run()


# Other folders


@pytest.mark.parametrize("file", ["manifest.json", "conditions.safetensors"])
def test_conditions(valid, tmp_path_factory, file):
    folder = tmp_path_factory.mktemp("conditions")
    net = UNet(8, 1, 8, multipliers=(1,), blocks=1, attention=(), context=4, maps={"map": 1})
    save_model(folder / "model", net, schedule=VPLinear(), prediction="v", shape=(1, 8, 8), name="m", card={})
    save_conditions(
        folder / "rows", Condition({"context": torch.ones(5, 3, 4), "map": torch.ones(5, 1, 8, 8)})
    )
    command = ("sample", "model", valid / "plan.json", "--force", "--conditions", "rows", "--seeds", "0-1", "--out",
               "new/out.npz")  # fmt: skip
    kept = (folder / "rows" / file).read_bytes()
    assert checked(folder, f"rows/{file}", kept, *command).returncode == 0

    @few
    @given(changes, damages, st.booleans())
    def run(changes, damage, is_damaged):
        content = kept if file.endswith("safetensors") else json_text(changed(json.loads(kept), changes))
        content = damaged(content, *damage) if is_damaged or content == kept else content
        checked(folder, f"rows/{file}", content, *command)

    run()


def test_models_of_the_zoo(valid, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("zoo")
    shutil.copytree(zoo_folder() / TINY, folder / TINY)
    monkeypatch.setenv("FEWSTEP_ZOO", str(folder))
    for file in ("card.json", "zoo.json"):
        document = json.loads((folder / TINY / file).read_bytes())

        @few
        @given(changes, damages, st.booleans())
        def run(changes, damage, is_damaged):
            content = json_text(changed(document, changes))  # noqa: B023
            content = damaged(content, *damage) if is_damaged else content
            for arguments in (("zoo",), ("zoo", TINY)):
                checked(folder, f"{TINY}/{file}", content, *arguments)  # noqa: B023

        run()


def test_pipelines_of_diffusers(pipelines, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines")
    shutil.copytree(pipelines["ldm"], folder / "ldm")
    for file in (
        "model_index.json",
        "unet/config.json",
        "scheduler/scheduler_config.json",
        "vqvae/config.json",
    ):
        document = json.loads((folder / "ldm" / file).read_bytes())

        @few
        @given(changes, damages, st.booleans())
        def run(changes, damage, is_damaged):
            content = json_text(changed(document, changes))  # noqa: B023
            content = damaged(content, *damage) if is_damaged else content
            checked(folder, f"ldm/{file}", content, "plan", "ddim", "--model", "ldm", "--nfe", "3",  # noqa: B023
                    "--out", "new/out.json")  # fmt: skip

        run()


def test_stamps(valid, tmp_path_factory):
    """A stamp that is torn must be replaced, whatever it holds."""
    folder = tmp_path_factory.mktemp("stamped")
    shutil.copytree(valid / "model", folder / "model")
    made("plans", "--spec", valid / "spec.json", "--model", "model", "--nfe", 4, "--out", "plans", cwd=folder)
    document = json.loads((folder / "plans/spec.json").read_bytes())

    @few
    @given(changes, damages, st.booleans())
    def run(changes, damage, is_damaged):
        content = json_text(changed(document, changes))
        path = folder / "plans/spec.json"
        path.write_bytes(damaged(content, *damage) if is_damaged else content)
        made("plans", "--model", "model", "--nfe", 4, "--presets", "ddim", "--grids", "karras", "--out", "plans",
             cwd=folder)  # fmt: skip

    run()


def test_params(tmp_path):
    document = yaml.safe_load((ROOT / "params.yaml").read_bytes())
    document["runs"] = {"digits": document["runs"]["digits"]}
    text = yaml.safe_dump(document).encode()

    @settings(few, max_examples=2 * EXAMPLES)
    @given(changes, damages, st.booleans())
    def run(changes, damage, is_damaged):
        path = tmp_path / "params.yaml"
        if is_damaged:
            path.write_bytes(damaged(text, *damage))
        else:
            path.write_text(
                yaml.safe_dump(changed(document, changes)), encoding="utf-8", errors="surrogatepass"
            )
        try:
            load_params(path)
        except ConfigError as error:
            assert all(line.startswith(("params.yaml: ", f"{path}: ")) for line in str(error).splitlines())

    run()
