"""What a reviewer does with a certificate: verify it elsewhere, compare two, and be told of whatever was changed."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from e2e.shell import fewstep, made, refused
from PIL import Image

from fewstep.checks import ConfigError
from fewstep.metrics import weights
from fewstep.metrics.certificate import content_sha256, read_certificate
from fewstep.metrics.extractor import BATCH
from fewstep.pipeline import verification
from fewstep.pipeline.recorded import record
from fewstep.pipeline.samples import read_samples
from fewstep.pipeline.verification import Verifier

NAME = "ddim.uniform-t.to-zero.nfe4"


@pytest.fixture
def clone(study, tmp_path):
    """The study in another place."""
    return shutil.copytree(study, tmp_path / "clone")


def signed(path, change):
    """Change a certificate and sign it anew, as somebody who cheats would."""
    document = json.loads(path.read_text())
    change(document)
    document["sha256"] = content_sha256(document)
    path.write_text(json.dumps(document))
    return path


def failures(done):
    return [line for line in done.stdout.splitlines() if line.startswith("failed")]


def fd(document):
    return next(record for name, record in document["results"].items() if name.startswith("FD"))


def verified(*arguments, cwd):
    """What verify says, by what it looked at; the exit status."""
    done = fewstep("verify", *arguments, cwd=cwd)
    lines = (line.split("  ", 1) for line in done.stdout.splitlines() if "  " in line)
    return {rest.partition(": ")[0] + rest.partition(": ")[2]: mark for mark, rest in lines}, done


def test_a_certificate_verifies_in_another_place(clone):
    lines, done = verified(f"eval/{NAME}.json", "--resample", cwd=clone)
    assert done.returncode == 0, done.stdout
    assert set(lines.values()) == {"held"}
    for part in ("images.npy", "manifest.json", "stats.npz", "model: model.safetensors", "extractor: config.json",
                 "FD-digits", "KID", "images drawn again: the same, to the byte"):  # fmt: skip
        assert part in done.stdout


def test_both_feature_spaces_stand_in_a_certificate_and_are_derived_again(clone):
    """What plans were fitted in stands beside what nothing was fitted to; one space for both is refused."""
    made("unfitted", "--data", "data", "--out", "unfitted", "--steps", 30, cwd=clone)
    fitted = ("--fitted-reference", "stats.npz", "--fitted-extractor", "extractor")
    reported = ("--reference", "unfitted", "--extractor", "unfitted")
    evaluate = ("evaluate", f"samples/{NAME}.npz", "--resamples", 20)
    made(*evaluate, *reported, *fitted, "--out", "both.json", cwd=clone)
    document, before = read_certificate(clone / "both.json"), read_certificate(clone / f"eval/{NAME}.json")
    (same,) = document["results"].keys() & before["results"].keys()
    assert same.startswith("FD-digits-cnn") and document["results"][same] == before["results"][same]
    assert {name.split("-")[2] for name in document["results"].keys() - {same}} == {"res"}
    lines, done = verified("both.json", "--resample", cwd=clone)
    assert done.returncode == 0 and set(lines.values()) == {"held"}, done.stdout
    assert "fitted_extractor: its weights" in done.stdout
    signed(clone / "both.json", lambda d: d["results"][same].update(value=0.5))
    assert [same in line for line in failures(verified("both.json", cwd=clone)[1])] == [True]

    sentence = refused(
        *evaluate,
        "--reference",
        "stats.npz",
        "--extractor",
        "extractor",
        *fitted,
        "--out",
        "c.json",
        cwd=clone,
    )
    assert "must differ from those that plans were fitted in, but both are of digits-cnn" in sentence
    sentence = refused(*evaluate, *reported, *fitted[:2], "--out", "c.json", cwd=clone)
    assert "--fitted-reference and --fitted-extractor must be given together" in sentence
    assert not (clone / "c.json").exists()


@pytest.mark.parametrize(
    "path",
    [
        "data/images.npy", "data/labels.npy", "data/manifest.json", "model/model.safetensors", "model/config.json",
        "extractor/model.safetensors", "extractor/config.json", "stats.npz", f"plans/{NAME}.json",
        f"samples/{NAME}.npz",
    ],
)  # fmt: skip
def test_one_flipped_byte_is_reported_by_name(clone, path):
    content = bytearray((clone / path).read_bytes())
    content[len(content) // 2] ^= 1
    (clone / path).write_bytes(content)
    _, done = verified(f"eval/{NAME}.json", cwd=clone)
    assert done.returncode == 1, done.stdout
    assert any(path.split("/")[-1] in line for line in failures(done)), done.stdout


def test_another_file_of_the_same_images_must_be_named(clone):
    """A byte of the archive's directory, its time, changes nothing that is read."""
    path = clone / f"samples/{NAME}.npz"
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 12] ^= 1
    path.write_bytes(content)
    _, done = verified(f"eval/{NAME}.json", cwd=clone)
    assert done.returncode == 1
    assert [line for line in failures(done) if line.startswith(f"failed  images: {NAME}.npz")] == failures(
        done
    )
    _, done = verified(f"eval/{NAME}.json", "--images", path, cwd=clone)
    assert done.returncode == 0, done.stdout
    assert f"not reached  images: {NAME}.npz: another file" in done.stdout


@pytest.mark.parametrize(
    "path",
    ["extractor", "extractor/config.json", "stats.npz", "data", "model", f"samples/{NAME}.npz"],
)
def test_what_is_missing_is_no_failure(clone, path):
    (clone / path).rename(clone / "elsewhere")
    _, done = verified(f"eval/{NAME}.json", "--resample", cwd=clone)
    assert done.returncode == 0, done.stdout
    role = {"stats.npz": "reference"}.get(path, "images" if "npz" in path else path.partition("/")[0])
    assert f"not reached  {role}: " in done.stdout
    assert ("held  extractor: its weights" in done.stdout) == (role != "extractor")
    assert "held  reference: its numbers" in done.stdout or role == "reference"


def test_public_weights_that_are_not_here_are_no_failure(study, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "_places", lambda file: [tmp_path / file.name])
    monkeypatch.setattr(weights, "_download", lambda url, path: False)

    def looked_at(dtype):
        certificate = read_certificate(study / f"eval/{NAME}.json")
        del certificate["files"]["extractor"]
        certificate["protocol"]["extractor"] |= {"id": "inception2015", "dtype": dtype}
        return next(
            line
            for line in Verifier(certificate, study / "eval", {}, device="cuda").lines()
            if line.what == "extractor"
        )

    line = looked_at("float32")
    assert line.outcome == "not reached"
    assert "pt_inception" in line.detail
    (tmp_path / weights.INCEPTION_2015.name).write_bytes(b"damaged")
    assert looked_at("float32").outcome == "failed"

    asked = []

    def load(name, **options):
        asked.append(options)
        raise ConfigError("no such package")

    monkeypatch.setattr(verification, "load_extractor", load)
    assert looked_at("float32/openvino").outcome == "not reached"
    assert asked == [{"device": "cpu", "backend": "openvino"}]


def test_a_number_that_was_improved_is_found(clone):
    path = clone / f"eval/{NAME}.json"
    document = json.loads(path.read_text())
    fd(document)["value"] *= 0.9
    path.write_text(json.dumps(document))
    assert "sha256 that it states" in refused("verify", path)
    _, done = verified(signed(path, lambda d: None), cwd=clone)
    assert done.returncode == 1
    assert "failed  FD-digits" in done.stdout


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: fd(d)["replicates"].append(fd(d)["replicates"].pop(0)), "not the same: replicates"),
        (lambda d: fd(d)["replicates"].pop(), "not the same: replicates"),
        (lambda d: fd(d).update(baseline=1.0), "not the same: baseline"),
        (lambda d: fd(d).update(mean_term=0.0), "not the same: mean_term"),
        (lambda d: fd(d).update(level=0.5, interval_method="guess"), "not the same: interval_method, level"),
        (lambda d: d["results"].pop(next(iter(d["results"]))), "measured, but not certified"),
        (lambda d: d["results"].update(FID=fd(d)), "certified, but not measured"),
        (lambda d: d["costs"].update(network_ms_per_image=1e-6), "costs.network_ms_per_image"),
        (lambda d: d["costs"].update(nfe=1), "costs.nfe"),
        (lambda d: d["costs"].update(device="a phone"), "costs.device"),
        (lambda d: d.update(costs=None), "costs"),
        (lambda d: d["subject"]["plan"].update(nfe=1), "nfe is 1 and 4"),
        (lambda d: d["subject"]["plan"].update(sampler="searched"), "sampler is 'searched' and 'ddim'"),
        (lambda d: d["subject"]["plan"].update(name="ours"), "name is 'ours'"),
        (lambda d: d["subject"]["plan"].update(grid="ours"), "grid is 'ours'"),
        (lambda d: d["subject"]["plan"].update(hash="0" * 64), "hash is '000"),
        (lambda d: d["subject"]["plan"]["steps"].pop("nodes"), "plan.nodes must be there"),
        (lambda d: d["subject"]["model"].update(name="ours"), "model.name is 'ours'"),
        (lambda d: d["subject"]["draw"].update(batch_size=1), "draw.batch_size is 1"),
        (lambda d: d["subject"].update(model=None, plan=None, draw=None), "draw"),
        (lambda d: d["subject"]["data"].update(name="cifar10"), "data.name is 'cifar10'"),
        (lambda d: d["protocol"]["evaluation"].update(resamples=3), "resamples: Input should be"),
        (lambda d: d["protocol"]["evaluation"].update(metrics=["inf"]), "FD at infinitely many images needs"),
        (lambda d: d["subject"]["plan"]["steps"].update(name="another"), "plan"),
        (
            lambda d: d["subject"]["plan"]["steps"]["provenance"].update(seeds={"trials": [50, 99]}),
            "searched on",
        ),
        (lambda d: d["protocol"].update(seeds="60-119"), "protocol.seeds"),
        (lambda d: d["protocol"]["extractor"].update(resize="64/bicubic"), "resize"),
        (lambda d: d["subject"].update(images_sha256="0" * 64), "other images"),
        (lambda d: d["protocol"].update(preset="edm-50k"), "edm-50k needs the n 50000"),
    ],
)
def test_signed_lies_about_the_images_are_found(clone, change, said):
    _, done = verified(signed(clone / f"eval/{NAME}.json", change), cwd=clone)
    assert done.returncode == 1
    assert any(said in line for line in failures(done)), done.stdout


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["subject"]["draw"].update(batch_size=10**9), "batch_size: Input should be"),
        (lambda d: d["costs"].update(nfe=1), "costs.nfe is 1 and 4"),
        (lambda d: d["protocol"].update(n=59), "protocol.n is 59 and 60"),
        (lambda d: fd(d)["replicates"].reverse(), "replicates"),
    ],
)
def test_signed_lies_are_found_without_the_images(clone, change, said):
    (clone / f"samples/{NAME}.npz").unlink()
    _, done = verified(signed(clone / f"eval/{NAME}.json", change), "--resample", cwd=clone)
    assert done.returncode == 1
    assert any(said in line for line in failures(done)), done.stdout


def test_a_changed_model_is_not_drawn_from(clone):
    config = clone / "model/config.json"
    document = json.loads(config.read_text())
    document["shape"] = [1, 8, 4]
    config.write_text(json.dumps(document))
    _, done = verified(f"eval/{NAME}.json", "--resample", cwd=clone)
    assert done.returncode == 1
    assert "failed  model: config.json" in done.stdout
    assert "failed  images drawn again: " in done.stdout
    assert "nothing was drawn" in done.stdout
    path = signed(clone / f"eval/{NAME}.json", lambda d: d["files"].pop("model"))
    _, done = verified(path, "--resample", "--model", clone / "model", cwd=clone)
    assert done.returncode == 1
    assert "they are (60, 8, 4, 1), those that were measured (60, 8, 8, 1)" in done.stdout


def test_other_bytes_without_a_reference_are_not_judged(clone):
    """Another machine may draw other bytes, too: their metrics would decide."""
    (clone / f"samples/{NAME}.npz").unlink()
    (clone / "stats.npz").unlink()
    path = signed(clone / f"eval/{NAME}.json", lambda d: d["subject"].update(images_sha256="0" * 64))
    _, done = verified(path, "--resample", cwd=clone)
    assert done.returncode == 0, done.stdout
    assert "not reached  images drawn again: not the same bytes" in done.stdout


def test_images_that_were_drawn_by_force_are_drawn_again(clone):
    plan = clone / f"plans/{NAME}.json"
    document = json.loads(plan.read_text())
    document["model"]["fingerprint"] = "0" * 64
    plan.write_text(json.dumps(document))
    draw = ("sample", "model", plan, "--seeds", "0-59", "--out", "forced.npz")
    assert "sample with force" in refused(*draw, cwd=clone)
    made(*draw, "--force", cwd=clone)
    assert measured(clone, clone / "forced.npz", out=clone / "forced.json").returncode == 0
    _, done = verified("forced.json", "--resample", cwd=clone)
    assert done.returncode == 0, done.stdout
    assert "images drawn again: the same, to the byte" in done.stdout


def test_the_scheduler_of_a_network_of_diffusers_counts(clone, pipelines):
    """All that is read is looked at, also beside the folder that was named."""
    folder = shutil.copytree(pipelines["ddim"], clone / "pipeline")
    files = record(folder / "unet", beside=clone / "eval")
    path = signed(clone / f"eval/{NAME}.json", lambda d: d["files"].update(model=files))
    _, done = verified(path, cwd=clone)
    assert done.returncode == 0, done.stdout
    assert "held  model: scheduler_config.json" in done.stdout
    scheduler = folder / "scheduler/scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("v_prediction", "epsilon"))
    _, done = verified(path, cwd=clone)
    assert done.returncode == 1
    assert [line.partition(": /")[0] for line in failures(done)] == ["failed  model: scheduler_config.json"]


def test_the_model_alone_is_enough_to_draw_the_images_again(study, tmp_path):
    shutil.copy(study / f"eval/{NAME}.json", tmp_path)
    _, done = verified(
        f"{NAME}.json", "--resample", "--model", study / "model", "--reference", study / "stats.npz",
        "--extractor", study / "extractor", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "images drawn again: the same, to the byte" in done.stdout
    assert "held  FD-digits" in done.stdout
    assert "not reached  images" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == [f"{NAME}.json"]


def test_another_model_does_not_pass(study, clone):
    made("train", "--data", "data", "--out", "other", "--checkpoints", "ck2", "--steps", 3, "--warmup", 1,
         "--channels", 8, "--batch-size", 8, cwd=clone)  # fmt: skip
    _, done = verified(f"eval/{NAME}.json", "--resample", "--model", clone / "other", cwd=clone)
    assert done.returncode == 1
    assert "is another model" in done.stdout


def test_truncated_and_foreign_files_are_one_sentence(study, tmp_path):
    text = (study / f"eval/{NAME}.json").read_text()
    (tmp_path / "c.json").write_text(text[: len(text) // 2])
    assert "damaged" in refused("verify", tmp_path / "c.json")
    shutil.copy(study / f"plans/{NAME}.json", tmp_path / "p.json")
    assert "fewstep.certificate/2" in refused("verify", tmp_path / "p.json")
    assert "no such file" in refused("compare", tmp_path / "no.json", tmp_path / "no.json")
    assert "two certificates" in refused("compare", study / f"eval/{NAME}.json")


def test_compare_says_which_is_better(study, tmp_path):
    said = made("compare", study / f"eval/{NAME}.json", study / "eval/unipc-2.uniform-t.to-zero.nfe4.json")
    assert any(verdict in said for verdict in ("better", "worse", "not distinguishable"))
    same = made("compare", study / f"eval/{NAME}.json", study / f"eval/{NAME}.json")
    assert "+0 [+0, +0]" in same
    assert "not distinguishable" in same


def test_times_of_different_devices_are_not_compared(clone):
    path = clone / f"eval/{NAME}.json"

    def slower(document):
        document["costs"]["network_ms_per_image"] *= 2

    other = signed(shutil.copy(path, clone / "other.json"), slower)
    assert "2.00x" in made("compare", path, other)
    signed(other, lambda d: d["costs"].update(device="another chip"))
    assert "2.00x" not in made("compare", path, other)


def test_numbers_of_different_n_refuse_to_be_compared(study, tmp_path):
    made(
        "sample",
        study / "model",
        study / f"plans/{NAME}.json",
        "--seeds",
        "0-79",
        "--out",
        tmp_path / "s.npz",
    )
    made("evaluate", tmp_path / "s.npz", "--reference", study / "stats.npz", "--extractor", study / "extractor",
         "--resamples", 20, "--out", tmp_path / "c.json")  # fmt: skip
    sentence = refused("compare", study / f"eval/{NAME}.json", tmp_path / "c.json")
    assert "protocol.n is 60 and 80" in sentence or "protocol.n is 80 and 60" in sentence


def measured(study, *images, out, options=()):
    return fewstep("evaluate", *images, "--reference", study / "stats.npz", "--extractor", study / "extractor",
                   "--resamples", 20, "--out", out, *options)  # fmt: skip


def test_images_of_any_program_are_measured_alike(study, tmp_path):
    """Image files and bare arrays with the pixels of a samples file have its numbers; a lossy codec is told."""
    samples = read_samples(study / f"samples/{NAME}.npz")
    for folder, suffix in (("png", "png"), ("jpeg", "jpg")):
        (tmp_path / folder / "a").mkdir(parents=True)
        for i, image in enumerate(samples.images):
            Image.fromarray(image[:, :, 0]).save(tmp_path / folder / "a" / f"{i:03d}.{suffix}")
    np.savez(tmp_path / "bare.npz", arr_0=samples.images)
    np.savez_compressed(tmp_path / "small.npz", arr_0=samples.images)
    files = [tmp_path / "png", tmp_path / "bare.npz", tmp_path / "small.npz", tmp_path / "jpeg"]
    assert measured(study, *files, out=tmp_path / "e").returncode == 0
    own = read_certificate(study / f"eval/{NAME}.json")
    assert read_certificate(tmp_path / "e/jpeg.json")["protocol"]["codec"] == "jpeg"
    for name in ("png", "bare", "small"):
        found = read_certificate(tmp_path / f"e/{name}.json")
        assert found["results"] == own["results"]
        assert found["subject"]["model"] is None
        assert found["protocol"]["codec"] == ("lossless" if name == "png" else "unknown")
    for name in ("png", "bare"):
        assert verified(tmp_path / f"e/{name}.json", cwd=tmp_path)[1].returncode == 0
    (tmp_path / "png/a/003.png").write_bytes((tmp_path / "png/a/004.png").read_bytes())
    _, done = verified(tmp_path / "e/png.json", cwd=tmp_path)
    assert "failed  images" in done.stdout
    said = made("compare", tmp_path / "e/bare.json", study / f"eval/{NAME}.json")
    assert "+0 [+0, +0]" in said, "what nobody knows of bare images does not stand in the way"
    assert "taken as equal: seeds, codec, quantisation, ema, dtype" in said
    assert "codec is 'lossless' and 'jpeg'" in refused(
        "compare", tmp_path / "e/jpeg.json", study / f"eval/{NAME}.json"
    )


def test_a_measurement_goes_on_where_it_was_stopped(study, tmp_path, monkeypatch):
    """Shards make the parts of samples and features; a lost one is made again alone, with the same result."""
    from fewstep.pipeline import parts

    plan = study / f"plans/{NAME}.json"
    made(
        "sample", study / "model", plan, "--seeds", "0-59", "--batch-size", 10, "--out", tmp_path / "one.npz"
    )
    assert measured(study, tmp_path / "one.npz", out=tmp_path / "one.json").returncode == 0
    monkeypatch.setattr(parts, "IMAGES", 20)
    draw = (
        "sample",
        study / "model",
        plan,
        "--seeds",
        "0-59",
        "--batch-size",
        10,
        "--out",
        tmp_path / "s.npz",
    )
    made(*draw[:-1], tmp_path / "few.npz", "--shard", "4/6")
    assert [part.name.split(".")[-2] for part in (tmp_path / ".few.npz.parts").iterdir()] == ["30-39"]
    for worker in ("1/2", "2/2"):
        made(*draw, "--shard", worker)
    drawn = sorted((tmp_path / ".s.npz.parts").iterdir())
    assert [path.name.split(".")[-2] for path in drawn] == ["0-19", "20-39", "40-59"]
    kept = drawn[0].stat().st_mtime_ns
    drawn[1].unlink()
    drawn[2].write_bytes(drawn[2].read_bytes()[:-100])
    made(*draw, "--shard", "2/2")
    assert drawn[0].stat().st_mtime_ns == kept
    assert drawn[1].exists()
    made(*draw)
    assert not drawn[0].parent.exists()
    one, parted = read_samples(tmp_path / "one.npz"), read_samples(tmp_path / "s.npz")
    assert parted.sha256 == one.sha256
    assert parted.meta["seeds"] == "0-59"
    monkeypatch.setattr(parts, "IMAGES", BATCH["cpu"])
    assert (
        measured(study, tmp_path / "s.npz", out=tmp_path / "c.json", options=["--shard", "1/2"]).returncode
        == 0
    )
    assert not (tmp_path / "c.json").exists()
    features = sorted((tmp_path / ".c.json.features").rglob("*.npz"))
    assert [path.name for path in features] == ["000000000-000000016.npz", "000000032-000000048.npz"]
    assert measured(study, tmp_path / "s.npz", out=tmp_path / "c.json").returncode == 0
    assert not features[0].exists()
    assert (
        read_certificate(tmp_path / "c.json")["results"] == read_certificate(tmp_path / "one.json")["results"]
    )


def test_kept_features_spare_the_network(study, tmp_path):
    samples = study / f"samples/{NAME}.npz"
    assert (
        measured(study, samples, out=tmp_path / "c.json", options=["--features", tmp_path / "f"]).returncode
        == 0
    )
    assert verified(tmp_path / "c.json", "--features", tmp_path / "f", cwd=tmp_path)[1].returncode == 0
    (part,) = (tmp_path / "f").rglob("*.npz")
    with np.load(part) as arrays:
        features = arrays["features"] + 0.1
    np.savez(part, features=features)
    _, done = verified(tmp_path / "c.json", "--features", tmp_path / "f", cwd=tmp_path)
    assert done.returncode == 1
    assert "failed  FD-digits" in done.stdout


@pytest.mark.parametrize("text", ["0/2", "3/2", "half"])
def test_a_shard_that_is_none(study, tmp_path, text):
    sentence = refused("sample", study / "model", study / f"plans/{NAME}.json", "--out", tmp_path / "s.npz",
                       "--shard", text)  # fmt: skip
    assert "--shard must be K/N" in sentence
    assert text in sentence


@pytest.mark.slow
def test_processes_of_torchrun_share_the_parts(study, tmp_path):
    plan = study / f"plans/{NAME}.json"
    arguments = [study / "model", plan, "--seeds", "0-8999", "--batch-size", 500]
    made("sample", *arguments, "--out", tmp_path / "one.npz")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
                "fewstep"]  # fmt: skip
    subprocess.run(
        [*torchrun, "sample", *map(str, arguments), "--out", tmp_path / "two.npz"],
        check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True,
    )  # fmt: skip
    assert read_samples(tmp_path / "one.npz").sha256 == read_samples(tmp_path / "two.npz").sha256


def test_a_published_protocol_is_kept_or_refused(study, tmp_path):
    samples = study / f"samples/{NAME}.npz"
    for name, words in (("edm-50k", ("n 50000", "got 60")), ("edm", ("ddim-cifar10-50k", "edm"))):
        done = measured(study, samples, out=tmp_path / "c.json", options=["--protocol", name])
        assert done.returncode == 2
        assert not [word for word in words if word not in done.stderr], done.stderr
        assert list(tmp_path.iterdir()) == []
    assert "minimum of 3" in made("protocols")
