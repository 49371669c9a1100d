"""Which files a result says that it was made from."""

import shutil

import pytest
from unit.interop.tiny import save

from fewstep.interop.load import load_model
from fewstep.pipeline.recorded import record, seen_from

WEIGHTS = {"config.json", "diffusion_pytorch_model.safetensors"}
BESIDE = {"../model_index.json", "../scheduler/scheduler_config.json"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    return {kind: save(kind, folder / kind) for kind in ("ddim", "ldm")}


def names(folder):
    return set(record(folder, beside=folder.parent)["sha256"])


def test_a_pipeline_is_recorded_whole_by_its_folder_or_by_that_of_its_network(saved):
    parts = {f"{part}/{name}" for part in ("unet", "vqvae") for name in WEIGHTS}
    inside = {"model_index.json", "scheduler/scheduler_config.json"}
    assert names(saved["ldm"]) == parts | inside
    assert names(saved["ldm"] / "unet") == WEIGHTS | BESIDE | {f"../vqvae/{name}" for name in WEIGHTS}
    assert names(saved["ddim"] / "unet") == WEIGHTS | BESIDE


@pytest.mark.parametrize("place", ["scheduler/scheduler_config.json", "scheduler_config.json"])
def test_a_scheduler_beside_a_network_alone_is_recorded(saved, tmp_path, place):
    shutil.copytree(saved["ddim"] / "unet", tmp_path / "unet")
    (tmp_path / place).parent.mkdir(exist_ok=True)
    shutil.copy(saved["ddim"] / "scheduler/scheduler_config.json", tmp_path / place)
    assert load_model(tmp_path / "unet").prediction == "v", "it is read from there"
    assert names(tmp_path / "unet") == WEIGHTS | {f"../{place}"}


def test_other_folders_are_recorded_for_themselves(saved, tmp_path):
    """Also where they stand in one that diffusers has saved."""
    folder = shutil.copytree(saved["ddim"], tmp_path / "p") / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "card.json").write_text("{}")
    assert names(folder) == {"config.json"}
    found = record(folder / "config.json", beside=tmp_path / "eval")
    assert found["path"] == "../p/model/config.json"
    assert set(found["sha256"]) == {""}
    assert seen_from(found, tmp_path / "eval", tmp_path)["path"] == "p/model/config.json"
