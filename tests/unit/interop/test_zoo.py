import json
import shutil

import pytest

import fewstep as fs
from fewstep.checks import ConfigError, DataError
from fewstep.interop import zoo
from fewstep.interop.zoo import entries, find, find_reference, references, verify, write_checksums, zoo_folder
from fewstep.metrics.reference import load_reference

TINY, STATISTICS = "cifar10-32-tiny", "cifar10-jpeg.effnet-lite0-p320"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working directory without a zoo."""
    monkeypatch.delenv("FEWSTEP_ZOO", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A zoo of one model and one file of statistics, named by the environment."""
    folder, source = tmp_path / "own", zoo_folder()
    shutil.copytree(source / TINY, folder / TINY)
    (folder / "reference").mkdir()
    shutil.copy(source / "reference" / f"{STATISTICS}.npz", folder / "reference")
    write_checksums(folder / "reference", licence="none")
    monkeypatch.setenv("FEWSTEP_ZOO", str(folder))
    return folder


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """As where a wheel is installed: no checkout around the code."""
    monkeypatch.setattr(zoo, "_OF_CHECKOUT", tmp_path / "site-packages" / "zoo")


def flip_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_model_is_found_by_name_from_any_working_directory():
    assert find(TINY) == find(f"zoo/{TINY}") == zoo_folder() / TINY
    models = [fs.load_model(TINY), fs.load_model(f"zoo/{TINY}"), fs.load_model(zoo_folder() / TINY)]
    assert {model.name for model in models} == {TINY}
    assert len({model.fingerprint for model in models}) == 1


def test_a_path_that_exists_is_itself(tmp_path):
    (tmp_path / TINY).mkdir()
    assert str(find(TINY)) == TINY
    with pytest.raises(DataError, match=r"config\.json"):
        fs.load_model(TINY)


def test_an_unknown_name_lists_those_there_are(own):
    shutil.copytree(own / TINY, own / "another")
    for name in ("cifar10-32-tyni", "zoo/cifar10-32-tyni", f"{TINY}/model", STATISTICS):
        with pytest.raises(DataError, match=rf"no model folder at {name}; .* the zoo: another, {TINY}\."):
            fs.load_model(name)


def test_the_zoo_is_the_environments_then_the_working_directorys_then_the_checkouts(tmp_path, monkeypatch):
    assert zoo_folder().samefile(zoo._OF_CHECKOUT)
    (tmp_path / "zoo").mkdir()
    assert zoo_folder().samefile(tmp_path / "zoo")
    (tmp_path / "own").mkdir()
    monkeypatch.setenv("FEWSTEP_ZOO", str(tmp_path / "own"))
    assert zoo_folder() == tmp_path / "own"


def test_without_a_zoo_all_places_are_named_and_paths_still_mean_paths(nowhere, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"FEWSTEP_ZOO \(not set\), \./zoo or .*site-packages/zoo"):
        zoo_folder()
    for name in ("m", "zoo/m"):
        with pytest.raises(
            DataError, match=rf"no model folder at {name}; .*set \$FEWSTEP_ZOO to .* if m is a model"
        ):
            find(name)
    with pytest.raises(DataError, match=r"no model folder at runs/m; give a folder .*config\.json\.$"):
        find("runs/m")
    with pytest.raises(DataError, match=r"no such file; make it with fewstep stats\.$"):
        find_reference("m")
    assert find(tmp_path) == tmp_path


def test_a_zoo_that_is_set_must_exist(tmp_path, monkeypatch):
    """No other zoo takes its place: a model of one name may be another there."""
    (tmp_path / "zoo").mkdir()
    monkeypatch.setenv("FEWSTEP_ZOO", "/gone")
    for named in (zoo_folder, lambda: find(TINY), lambda: find_reference(STATISTICS)):
        with pytest.raises(ConfigError, match=r"\$FEWSTEP_ZOO must be a folder, but there is none at /gone"):
            named()
    assert find(tmp_path) == tmp_path


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "card.json"])
def test_one_flipped_byte_is_reported_by_file(own, name):
    flip_byte(own / TINY / name)
    with pytest.raises(DataError, match=rf"{TINY}/{name} must have the sha256"):
        fs.load_model(TINY)


def test_a_missing_file_is_reported_by_name(own):
    (own / TINY / "metrics.jsonl").unlink()
    with pytest.raises(DataError, match=r"metrics\.jsonl must be there"):
        fs.load_model(TINY)


def test_every_file_of_the_zoo_has_a_checksum():
    folders = [path for path in zoo_folder().iterdir() if path.is_dir()]
    assert {TINY, "reference"} <= {folder.name for folder in folders}
    for folder in folders:
        files = (path for path in folder.rglob("*") if path.is_file())
        inside = {path.relative_to(folder).as_posix() for path in files}
        assert set(verify(folder)) == inside - {"README.md", "zoo.json"}


def test_checksums_are_written_again_after_a_change(own):
    card = own / TINY / "card.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "metrics": {"FD-x#500": {"value": 469.0}}}))
    with pytest.raises(DataError, match=r"card\.json"):
        verify(own / TINY)
    write_checksums(own / TINY, licence="none known")
    assert "card.json" in verify(own / TINY)
    assert zoo.licence_of(own / TINY) == "none known"
    (found,) = entries()
    assert (found.metric, found.value) == ("FD-x#500", 469.0)


def test_a_plan_of_a_model_keeps_to_its_checksum(own):
    plan = next((own / TINY / "plans").glob("*.json"))
    plan.write_text(plan.read_text().replace("0.", "0.0", 1))
    with pytest.raises(DataError, match=rf"plans/{plan.name} must have the sha256"):
        fs.load_model(TINY)


@pytest.mark.parametrize("sums", [None, {}, {"model.safetensors": "0" * 64}])
def test_a_name_stands_for_what_checksums_hold(own, sums):
    path = own / TINY / "zoo.json"
    path.unlink()
    if sums is not None:
        path.write_text(json.dumps({"schema": "fewstep.zoo/1", "sha256": sums}))
    with pytest.raises(DataError, match=r"zoo\.json must state checksums of .*config\.json, but has none"):
        fs.load_model(TINY)


def test_statistics_need_a_checksum_of_their_own(own):
    file = own / "reference" / f"{STATISTICS}.npz"
    file.rename(file.with_name("other.npz"))
    write_checksums(file.parent, licence="none")
    shutil.copy(file.with_name("other.npz"), file)
    with pytest.raises(DataError, match=rf"must state checksums of {STATISTICS}\.npz"):
        find_reference(STATISTICS)


def test_a_folder_without_checksums_has_nothing_to_keep_to(own):
    (own / TINY / "zoo.json").unlink()
    assert verify(own / TINY) == () and zoo.licence_of(own / TINY) is None
    assert fs.load_model(own / TINY).name == TINY
    with pytest.raises(DataError, match="must be a folder with files"):
        write_checksums(own / "nothing", licence="none")


@pytest.mark.parametrize(
    "content, message",
    [("{", "damaged"), ("[]", "got 'list'"), ('{"schema": "fewstep.zoo/1", "sha256": [1]}', "a sha256 for each file")],
)  # fmt: skip
def test_damaged_checksums_are_refused(own, content, message):
    (own / TINY / "zoo.json").write_text(content)
    with pytest.raises(DataError, match=rf"zoo\.json.*{message}"):
        fs.load_model(TINY)


def test_entries_say_what_the_card_says(own):
    (tiny,) = entries()
    assert (tiny.name, tiny.folder) == (TINY, own / TINY)
    card = json.loads((own / TINY / "card.json").read_text())
    assert (tiny.dataset, tiny.parameters) == ("cifar10-jpeg", 992_643)
    assert tiny.images_seen == card["images_seen"] > 1_000_000
    weights = (own / TINY / "model.safetensors").stat().st_size
    # two bytes a parameter in float16, and a header of names and shapes
    assert 2 * tiny.parameters < weights < 1.01 * 2 * tiny.parameters
    assert tiny.megabytes == weights / 1e6
    (own / TINY / "card.json").unlink()
    assert entries()[0].dataset is None


@pytest.mark.parametrize(
    "card, message",
    [
        ({"data": []}, "an object as 'data'"),
        ({"data": {"n": "many"}}, "a number as 'n'"),
        ({"parameters": "992643"}, "a number as 'parameters'"),
        ({"metrics": {"FD": {"value": "low"}}}, "a number as 'value'"),
        ([], "a JSON object"),
    ],
)
def test_a_card_of_other_kinds_is_one_sentence(own, card, message):
    (own / TINY / "card.json").write_text(json.dumps(card))
    with pytest.raises(DataError, match=rf"card\.json must .*{message}"):
        entries()


def test_a_card_may_leave_anything_out(own):
    (own / TINY / "card.json").write_text(json.dumps({"data": None, "metrics": {"FD": {}}}))
    (tiny,) = entries()
    assert (tiny.dataset, tiny.images, tiny.metric, tiny.value) == (None, None, "FD", None)


def test_statistics_are_found_by_dataset_or_by_full_name(own, tmp_path):
    file = own / "reference" / f"{STATISTICS}.npz"
    (tmp_path / "cifar10-jpeg").mkdir()  # a folder of the dataset itself is no file of statistics
    other = file.with_name("cifar10-jpeg.other.npz")
    for one in file.parent.glob("cifar10-jpeg.*.npz"):
        if one != file:
            one.unlink()
    assert find_reference("cifar10-jpeg") == find_reference(STATISTICS) == references()[STATISTICS] == file
    assert find_reference(file) == file
    with pytest.raises(DataError, match=rf"cifar10 must exist.*of the zoo: {STATISTICS}"):
        find_reference("cifar10")
    shutil.copy(file, other)
    assert find_reference("cifar10-jpeg", STATISTICS.partition(".")[2]) == file
    with pytest.raises(DataError, match=rf"must name one .* {STATISTICS}, cifar10-jpeg\.other"):
        find_reference("cifar10-jpeg")
    assert find_reference(STATISTICS) == file
    flip_byte(file)
    with pytest.raises(DataError, match=rf"{STATISTICS}\.npz must have the sha256"):
        find_reference(STATISTICS)


def test_the_statistics_of_the_zoo_are_small_and_know_what_real_images_score():
    path = find_reference(STATISTICS)
    assert path.stat().st_size < 1e6
    reference = load_reference(path)
    card = json.loads((find(TINY) / "card.json").read_text())
    assert reference.meta["dataset"]["fingerprint"] == card["data"]["fingerprint"], "of the model's images"
    values = [reference.baselines[n].value for n in (500, 1000, 2000, 5000, 10_000, 50_000)]
    assert values == sorted(values, reverse=True), "the bias of the distance falls with the number of images"
