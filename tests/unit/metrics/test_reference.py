import json
import pickle

import numpy as np
import pytest
import torch

from fewstep.checks import ConfigError, DataError
from fewstep.files import sha256_file
from fewstep.metrics import reference as module
from fewstep.metrics.baseline import real_baseline
from fewstep.metrics.evaluate import evaluate_samples
from fewstep.metrics.extractor import Extractor
from fewstep.metrics.frechet import frechet
from fewstep.metrics.reference import (
    Baseline,
    build_reference,
    export_reference,
    from_features,
    import_reference,
    load_reference,
    save_reference,
)
from fewstep.metrics.statistics import Statistics

D = 6
DATASET = {"name": "toy", "fingerprint": "f" * 64, "split": "train", "heldout_split": "test"}


def extractor(name="toy-net", sha="a" * 64):
    """The first six pixels."""
    return Extractor(name, D, "none", sha, lambda x: x.float().flatten(1)[:, :D])


def draw(n, seed):
    return np.random.default_rng(seed).standard_normal((n, D)).astype(np.float32)


@pytest.fixture
def reference():
    return from_features(draw(50, 0), extractor().protocol, dataset=DATASET, heldout=draw(20, 1))


def test_round_trip(reference, tmp_path):
    save_reference(tmp_path / "stats.npz", reference)
    loaded = load_reference(tmp_path / "stats.npz", extractor=extractor())
    assert loaded.meta == reference.meta and loaded.protocol == reference.protocol
    assert loaded.statistics.n == 50 and loaded.statistics.known("factor")
    assert np.array_equal(loaded.statistics.cov, reference.statistics.cov)
    assert np.array_equal(loaded.statistics.features, reference.statistics.features)
    assert np.array_equal(loaded.heldout, reference.heldout)


def test_equal_statistics_make_equal_files(reference, tmp_path):
    for name in ("a.npz", "b.npz"):
        save_reference(tmp_path / name, reference)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def write_dataset(folder, images, splits):
    from fewstep.files import sha256_file, write_json

    folder.mkdir()
    np.save(folder / "images.npy", images)
    manifest = {
        "schema": "fewstep.dataset/1", "name": "toy", "source": {}, "n": len(images),
        "shape": list(images.shape[1:]), "classes": None, "splits": splits,
        "transform": "none", "skipped": [],
        "sha256": {"images": sha256_file(folder / "images.npy")},
    }  # fmt: skip
    write_json(folder / "manifest.json", manifest)


def test_build_from_a_dataset(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1), np.uint8)
    write_dataset(tmp_path / "data", images, {"train": [0, 30], "test": [30, 40]})
    built = build_reference(tmp_path / "data", extractor())
    expected = Statistics.from_features(images[:30].reshape(30, 16)[:, :D].astype(np.float32))
    assert np.array_equal(built.statistics.mu, expected.mu)
    assert built.heldout.shape == (10, D)
    assert (
        built.protocol["name"] == "toy" and built.protocol["split"] == "train" and built.protocol["n"] == 30
    )
    assert built.meta["dataset"]["heldout_split"] == "test"
    turned = build_reference(tmp_path / "data", extractor(), split="test", heldout="test")
    assert turned.heldout is None and turned.meta["dataset"]["heldout_split"] is None


def test_a_large_set_is_streamed_to_the_same_bits_and_keeps_no_features(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (700, 4, 4, 1), np.uint8)
    write_dataset(tmp_path / "data", images, {"train": [0, 600], "test": [600, 700]})
    whole = build_reference(tmp_path / "data", extractor())
    monkeypatch.setattr(module, "KEEP_BYTES", 50 * D * 4)
    streamed = build_reference(tmp_path / "data", extractor())
    assert streamed.protocol == whole.protocol, "the hash of mean and covariance among it"
    assert whole.statistics.features is not None and streamed.statistics.features is None
    assert len(streamed.heldout) == 50
    save_reference(tmp_path / "stats.npz", streamed)
    assert load_reference(tmp_path / "stats.npz").statistics.features is None


def test_another_extractor_is_refused_with_both_names(reference, tmp_path):
    save_reference(tmp_path / "stats.npz", reference)
    with pytest.raises(ConfigError, match=r"toy-net.*other-net"):
        load_reference(tmp_path / "stats.npz", extractor=extractor("other-net"))
    with pytest.raises(ConfigError, match="weights_sha256"):
        load_reference(tmp_path / "stats.npz", extractor=extractor(sha="b" * 64))


def test_pytorch_fid_round_trip(reference, tmp_path):
    export_reference(tmp_path / "fid.npz", reference)
    with np.load(tmp_path / "fid.npz") as file:
        assert set(file.files) == {"mu", "sigma"}
        assert file["mu"].dtype == file["sigma"].dtype == np.float64
    found = import_reference(tmp_path / "fid.npz", extractor(), name="toy")
    assert found.meta["provenance"] == "external" and found.protocol["n"] is None
    assert np.array_equal(found.statistics.cov, reference.statistics.cov)
    save_reference(tmp_path / "ours.npz", found)
    assert load_reference(tmp_path / "ours.npz").meta == found.meta


def test_adm_statistics_and_images(tmp_path):
    own = Statistics.from_features(draw(30, 2))
    np.savez(tmp_path / "adm.npz", mu=own.mu, sigma=own.cov, mu_s=np.zeros(3), sigma_s=np.eye(3))
    found = import_reference(tmp_path / "adm.npz", extractor(), name="lsun", n=30)
    assert found.protocol == {**found.protocol, "name": "lsun", "n": 30}
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "images.npz", arr_0=images)
    found = import_reference(tmp_path / "images.npz", extractor(), name="lsun")
    features = torch.from_numpy(images).permute(0, 3, 1, 2).float().flatten(1)[:, :D].numpy()
    assert frechet(found.statistics, Statistics.from_features(features)).value == pytest.approx(0, abs=1e-3)


# of these four images, by hand: mean (1, 2), and sums of products of deviations 4, 4 and 22, divided by 4 - 1
BY_HAND = np.array([[0, 1], [0, 1], [2, 0], [2, 6]], np.float32)
MU, SIGMA = np.array([1.0, 2.0]), np.array([[4 / 3, 4 / 3], [4 / 3, 22 / 3]])


def two(name="two"):
    return Extractor(name, 2, "none", "a" * 64, lambda x: x.float().flatten(1)[:, :2])


def pickled(path, content):
    path.write_bytes(pickle.dumps(content))
    return path


@pytest.mark.parametrize("kind", ["pytorch-fid", "clean-fid", "ADM", "ADM spatial", "EDM", "EDM2"])
def test_statistics_of_every_program_are_those_by_hand(kind, tmp_path):
    """Against the same mean moved by (3, 4) and four times the covariance, the distance is 25 + trace of it."""
    path, network, n, taken = tmp_path / "stats.npz", two(), None, ["mu", "sigma"]
    other = {"mu": MU + 100, "sigma": SIGMA * 2}
    match kind:
        case "ADM":  # with images that are not those behind the statistics
            images = np.zeros((3, 1, 1, 3), np.uint8)
            np.savez(path, images, mu=MU, sigma=SIGMA, mu_s=other["mu"], sigma_s=other["sigma"])
        case "ADM spatial":
            network, taken = two("two-spatial"), ["mu_s", "sigma_s"]
            np.savez(path, **other, mu_s=MU, sigma_s=SIGMA)
        case "EDM2":
            path, n = tmp_path / "stats.pkl", 4
            pickled(path, {"num_images": 4, "fid": {"mu": MU, "sigma": SIGMA}, "fd_dinov2": other})
        case "clean-fid":
            np.savez_compressed(path, mu=MU.astype(np.float32), sigma=SIGMA.astype(np.float32))
        case _:
            np.savez(path, mu=MU, sigma=SIGMA)
    found = import_reference(path, network, name="toy", split="train")
    assert found.statistics.mu == pytest.approx(MU, abs=1e-6)  # float32 of clean-fid here
    assert found.statistics.cov == pytest.approx(SIGMA, abs=1e-6)
    assert found.statistics.features is None and found.heldout is None and found.statistics.n == n
    assert found.protocol["n"] == n and found.meta["provenance"] == "external"
    assert found.meta["source"] == {"file": path.name, "sha256": sha256_file(path), "arrays": taken}
    assert found.meta["dataset"] == {
        "name": "toy",
        "fingerprint": None,
        "split": "train",
        "heldout_split": None,
    }
    moved = Statistics(4, MU + [3, 4], 4 * SIGMA)
    assert frechet(moved, found.statistics).value == pytest.approx(25 + SIGMA.trace(), rel=1e-5)
    own = frechet(Statistics.from_features(BY_HAND), found.statistics)
    assert own.value == pytest.approx(0, abs=1e-5)
    save_reference(tmp_path / "ours.npz", found)
    assert load_reference(tmp_path / "ours.npz", extractor=network).meta == found.meta


def test_foreign_statistics_have_a_distance_and_no_more(tmp_path):
    np.savez(tmp_path / "stats.npz", mu=MU, sigma=SIGMA)
    found = import_reference(tmp_path / "stats.npz", two(), name="toy", n=50)
    assert found.protocol["n"] == 50
    (record,) = evaluate_samples(BY_HAND, found, two(), metrics=["fd"], resamples=4).values()
    assert record["value"] == pytest.approx(0, abs=1e-9) and record["baseline"] is None
    with pytest.raises(ConfigError, match="keeps its features"):
        evaluate_samples(BY_HAND, found, two(), metrics=["kid"])


@pytest.mark.parametrize(
    "arrays, n, message",
    [
        ({"mu": MU, "sigma": SIGMA[:1]}, None, r"mu \(D,\) and sigma \(D, D\)"),
        ({"mu": MU, "sigma": SIGMA * [[1, 2], [1, 1]]}, None, "sigma must be a covariance"),
        ({"mu": MU, "sigma": -SIGMA}, None, "sigma must be a covariance"),
        ({"mu": MU, "sigma": SIGMA * np.nan}, None, "finite"),
        ({"mu": MU, "sigma": SIGMA + 0j}, None, "real numbers, got complex128"),
        ({"mu": MU.astype(str), "sigma": SIGMA}, None, "real numbers, got <U"),
        ({"mu": MU, "sigma": SIGMA}, 1, "2 or more"),
        ({"arr_0": np.zeros((3, 1, 1, 3), np.uint8)}, 4, "tells 3"),
    ],
)
def test_what_are_no_statistics_is_refused(arrays, n, message, tmp_path):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=message):
        import_reference(tmp_path / "x.npz", two(), name="x", n=n)


class Malice:
    def __reduce__(self):
        return print, ("x",)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"num_images": 4, "fd_dinov2": {"mu": MU, "sigma": SIGMA}}, "fid with mu and sigma; got num_images"),
        ({"fid": {"mu": 1, "sigma": SIGMA}}, "real numbers, got int"),
        ({"fid": {"mu": MU, "sigma": SIGMA}, "num_images": 1.5}, "tells 1.5"),
        ({"fid": Malice()}, "numpy arrays alone"),
        ([MU], "must hold a dict"),
    ],
)
def test_pickles_of_anything_else_are_refused(content, message, tmp_path, capsys):
    with pytest.raises(DataError, match=message):
        import_reference(pickled(tmp_path / "x.pkl", content), two(), name="x")
    assert capsys.readouterr().out == "", "no code was run"


def test_own_statistics_are_not_imported(reference, tmp_path):
    """They would lose their features, and the name of their extractor would be taken from the caller."""
    save_reference(tmp_path / "ours.npz", reference)
    with pytest.raises(DataError, match="fewstep has written it; use it as it is, as --reference"):
        import_reference(tmp_path / "ours.npz", two(), name="toy")
    (tmp_path / "stats.pkl").write_bytes(b"")
    with pytest.raises(DataError, match="import statistics of another program with fewstep stats FILE"):
        load_reference(tmp_path / "stats.pkl")


def test_import_refuses_what_does_not_fit(tmp_path):
    np.savez(tmp_path / "wide.npz", mu=np.zeros(9), sigma=np.eye(9))
    with pytest.raises(DataError, match="9 features, but toy-net has 6"):
        import_reference(tmp_path / "wide.npz", extractor(), name="x")
    np.savez(tmp_path / "other.npz", weights=np.zeros(9))
    with pytest.raises(DataError, match=r"mu and sigma, or images arr_0; got weights"):
        import_reference(tmp_path / "other.npz", extractor(), name="x")
    np.savez(tmp_path / "float.npz", arr_0=np.zeros((2, 4, 4, 3)))
    with pytest.raises(DataError, match="uint8"):
        import_reference(tmp_path / "float.npz", extractor(), name="x")


def test_missing_truncated_and_foreign_files_are_refused(reference, tmp_path):
    path = tmp_path / "stats.npz"
    with pytest.raises(DataError, match="no such file"):
        load_reference(path)
    save_reference(path, reference)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="damaged"):
        load_reference(path)
    export_reference(path, reference)
    with pytest.raises(DataError, match="import statistics of another program with fewstep stats"):
        load_reference(path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"schema": "other/1"}, "schema"),
        ({"colour": "red"}, r"unknown fields \(colour\)"),
        ({"sha256": "0" * 64}, "hash"),
    ],
)
def test_changed_meta_is_refused(reference, tmp_path, change, message):
    path = tmp_path / "stats.npz"
    save_reference(path, reference)
    with np.load(path) as file:
        arrays = dict(file)
    arrays["meta"] = np.array(json.dumps({**json.loads(str(arrays["meta"])), **change}))
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=message):
        load_reference(path)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("mu", np.full(D, np.nan), "finite"),
        ("sigma", np.eye(D + 1), "sigma"),
        ("features", np.zeros((5, D + 1)), "features must belong to 6"),
        ("sqrt_factor", np.zeros((D + 1, 2)), "sqrt_factor must belong to 6"),
        ("meta", np.array("{"), "JSON"),
    ],
)
def test_changed_arrays_are_refused(reference, tmp_path, name, value, message):
    path = tmp_path / "stats.npz"
    save_reference(path, reference)
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, name: value})
    with pytest.raises(DataError, match=message):
        load_reference(path)


def compact(reference, path, **baselines):
    save_reference(path, reference, compact=True, **baselines)
    return load_reference(path, extractor=extractor())


def test_a_compact_file_holds_rounded_moments_and_the_hash_of_these(reference, tmp_path):
    found = compact(reference, tmp_path / "small.npz")
    for name in ("mu", "cov"):
        full, rounded = getattr(reference.statistics, name), getattr(found.statistics, name)
        assert rounded.dtype == np.float64
        assert np.array_equal(rounded, full.astype(np.float32))
    assert found.statistics.features is None and found.heldout is None and found.meta["n_heldout"] == 0
    assert found.meta["sha256"] != reference.meta["sha256"], "other numbers, other hash"
    whole = tmp_path / "whole.npz"
    save_reference(whole, found)
    assert load_reference(whole).meta["sha256"] == found.meta["sha256"], "the same numbers at full width"
    again = compact(found, tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "small.npz").read_bytes()
    assert again.meta == found.meta


def test_distances_to_a_compact_reference_are_those_to_the_full_one(reference, tmp_path):
    found = compact(reference, tmp_path / "small.npz")
    assert not found.statistics.known("factor")
    far, near = Statistics.from_features(1.5 * draw(200, 3) + 1), Statistics.from_features(draw(40, 4))
    # each number is off by at most 6e-8 of itself, and the distance is a sum of less than a hundred of them
    tolerance = 1e-5 * np.trace(reference.statistics.cov)
    for fake in (far, near):
        expected = frechet(fake, reference.statistics).value
        assert frechet(fake, found.statistics).value == pytest.approx(expected, abs=tolerance)


def test_baselines_outlive_the_features(reference, tmp_path):
    known = {n: real_baseline(reference, n) for n in (10, 20)}
    found = compact(reference, tmp_path / "small.npz", baselines=known)
    assert found.baselines == known
    assert {n: real_baseline(found, n) for n in (10, 20)} == known
    assert real_baseline(found, 30) is None
    (record,) = evaluate_samples(draw(20, 5), found, extractor(), metrics=["fd"], resamples=10).values()
    assert (record["baseline"], record["baseline_source"]) == known[20]
    assert compact(found, tmp_path / "again.npz").baselines == known, "kept when written again"
    assert compact(reference, tmp_path / "none.npz").baselines == {}


def test_a_compact_reference_refuses_what_needs_features(reference, tmp_path):
    found = compact(reference, tmp_path / "small.npz")
    with pytest.raises(ConfigError, match="keeps its features"):
        evaluate_samples(draw(20, 5), found, extractor(), metrics=["fd", "kid"])


@pytest.mark.parametrize("damage", [["10"], {"ten": {"value": 1, "source": "x"}}, {"10": {"value": 1}}])
def test_damaged_baselines_are_refused(reference, tmp_path, damage):
    reference.meta["baselines"] = damage
    save_reference(tmp_path / "stats.npz", reference)
    with pytest.raises(DataError, match="baselines must give a value and a source"):
        load_reference(tmp_path / "stats.npz")


def test_baselines_stand_in_a_full_file_too(reference, tmp_path):
    known = {500: Baseline(3.0, "somebody's")}
    save_reference(tmp_path / "stats.npz", reference, baselines=known)
    found = load_reference(tmp_path / "stats.npz")
    assert found.baselines == known and found.statistics.known("factor")
