"""Models of patches through the commands: training, larger images, measurement, a run, the tutorial."""

import numpy as np
import pytest
from e2e.blocks import ROOT, run
from e2e.shell import made, made_as_run, refused
from PIL import Image

from fewstep.app.params import Settings
from fewstep.files import read_json
from fewstep.interop.load import load_model
from fewstep.methods.patchdm.stage import measures
from fewstep.methods.patchdm.stage.panel import panel
from fewstep.methods.patchdm.stage.run import read_record
from fewstep.nets.patched import PatchedUNet

TRAIN = ("--steps", 12, "--warmup", 2, "--batch-size", 16, "--ema-decay", 0.5, "--channels", 8)


@pytest.fixture(scope="module")
def folder(study, tmp_path_factory):
    """Models of patches of 4 pixels of digits of 8, and a plan of each."""
    folder = tmp_path_factory.mktemp("enlarge")
    for name in ("patchdm", "patchdm-pixels"):
        made("train", "--objective", name, "--tile", 4, "--attention", 2, "--class-conditional", "true", "--data",
             study / "data", "--out", name, "--checkpoints", f"ck-{name}", *TRAIN, cwd=folder)  # fmt: skip
        for nfe in (2, 3):
            made("plan", "ddim", "--model", name, "--nfe", nfe, "--grid", "uniform-t", "--to-zero", "--out",
                 f"{name}-plans/{nfe}.json", cwd=folder)  # fmt: skip
    return folder


def pixels(path):
    with Image.open(path) as image:
        return np.array(image)


def test_pictures_of_other_sizes(folder, tmp_path):
    draw = ("enlarge", "--model", folder / "patchdm", "--plan", folder / "patchdm-plans" / "3.json", "--size",
            "8x20,16x16", "--pictures", 3)  # fmt: skip
    assert "3 images of 8x20, 3 images of 16x16" in made(*draw, "--out", tmp_path / "a")
    seeds = [2_400_000_000 + i for i in range(3)]
    drawn = [pixels(tmp_path / "a" / f"8x20-{seed}.png") for seed in seeds]
    assert [image.shape for image in drawn] == [(8, 20)] * 3 and not np.array_equal(drawn[0], drawn[1])
    sheet = pixels(tmp_path / "a" / "8x20.png")
    assert sheet.shape == (8, 3 * 21 - 1) and np.array_equal(sheet[:, 21:41], drawn[1])
    record = read_json(tmp_path / "a" / "enlarge.json")
    assert record["plan"]["nfe"] == 3 and record["tile"] == 4 and record["trained"] == "8x8"
    made(*draw, "--rows", 1, "--batch-size", 2, "--out", tmp_path / "b")
    again = pixels(tmp_path / "b" / f"8x20-{seeds[2]}.png")
    assert int(np.abs(again.astype(int) - drawn[2]).max()) <= 1  # rounding


def measured(study, folder, out, name, *options):
    made("enlarge", "--model", folder / name, "--plan", folder / f"{name}-plans", "--data", study / "data",
         "--reference", study / "stats.npz", "--extractor", study / "extractor", "--images", 20, "--resamples", 10,
         *options, "--out", out / "enlarge")  # fmt: skip
    return read_record(out / "enlarge")


def test_seams_distances_and_memory_are_measured_judged_and_shown(study, folder, tmp_path):
    record = measured(study, folder, tmp_path / "one", "patchdm", "--size", "8x16", "--memory", "8,16")
    other = measured(
        study, folder, tmp_path / "other", "patchdm-pixels", "--decodes", "shift,plain", "--size", "8x8"
    )
    assert [row["decode"] for row in other["larger"]] == ["shift", "plain"]
    first = pixels(tmp_path / "other" / "enlarge" / "8x8-2400000000.png")
    assert np.array_equal(pixels(tmp_path / "other" / "enlarge" / "seams.png")[:8, :8], first)
    assert [(row["decode"], row["nfe"]) for row in record["results"]] == [
        (decode, nfe) for nfe in (3, 2) for decode in ("collage", "plain")
    ]
    assert [(row["size"], row["decode"]) for row in record["larger"]] == [
        ("8x16", "collage"),
        ("8x16", "plain"),
    ]
    assert [row["side"] for row in record["memory"]] == [8, 16]
    strip = pixels(tmp_path / "one" / "enlarge" / "seams.png")
    assert strip.shape == (2 * 9 - 1, 12 * 9 - 1) and not np.array_equal(strip[:8], strip[9:])
    shown = panel([tmp_path / "one" / "enlarge"], None)
    assert "alone, on one grid (plain)" in shown.html and "Images of 8x16 pixels" in shown.html

    (growth,) = measures.memory_growth(tmp_path / "one")
    assert growth.value == 1
    (whole,) = measures.memory_growth(tmp_path / "one", network="whole")
    assert whole.value > 3.5
    collage = next(row for row in record["results"] if (row["decode"], row["nfe"]) == ("collage", 3))
    worst = max(
        collage["seams"][kind]["value"] / record["real"]["seams"][kind]["value"] for kind in collage["seams"]
    )
    (of_real,) = measures.seam_ratio(tmp_path / "one", of="collage", to="real", plan="*nfe3")
    assert of_real.value == pytest.approx(worst) and of_real.low < worst < of_real.high
    shift = next(row for row in other["results"] if (row["decode"], row["nfe"]) == ("shift", 3))
    setting = {"of": "collage", "to": "shift", "plan": "*nfe3", "to_run": "other"}
    (distance,) = measures.fd_ratio(tmp_path / "one", **setting)
    assert distance.value == pytest.approx(collage["fd"] / shift["fd"])
    assert len(measures.fd_ratio(tmp_path / "other", of="shift", to="plain")) == 2
    (seams,) = measures.seam_ratio(tmp_path / "one", **setting)
    assert seams.low < seams.value < seams.high
    with pytest.raises(ValueError, match=r"must hold shift by .*nfe3 for this claim; they have collage by"):
        measures.fd_ratio(tmp_path / "one", of="collage", to="shift", plan="*nfe3")
    with pytest.raises(ValueError, match="must hold the memory at two sides"):
        measures.memory_growth(tmp_path / "other")
    measured(study, folder, tmp_path / "other", "patchdm-pixels", "--decodes", "shift", "--seed", 5)
    with pytest.raises(ValueError, match="one and other must measure images alike.*they differ in seed"):
        measures.fd_ratio(tmp_path / "one", **setting)


def test_mistakes_are_one_sentence(study, folder, tmp_path):
    out = ("--out", tmp_path / "o")
    draw = ("enlarge", "--model", folder / "patchdm", "--plan", folder / "patchdm-plans" / "3.json", *out)
    assert "--size must name a size or more, height x width, such as 16x64; got none" in refused(*draw)
    assert "must be multiples of the patch's, 4; got 8 x 9; the nearest size is 8 x 8" in refused(
        *draw, "--size", "8x9"
    )
    assert "got 2 x 8; the nearest size is 4 x 8" in refused(*draw, "--size", "2x8")
    assert (
        "Other sizes need a model of patches, from fewstep train --objective patchdm --tile SIDE; "
        in refused(
            "enlarge",
            "--model",
            study / "model",
            "--plan",
            study / "plans",
            "--match",
            "ddim*",
            "--size",
            "8x8",
            *out,
        )
    )
    assert "images are drawn by one plan; got 2; choose with --match" in refused(
        "enlarge", "--model", folder / "patchdm", "--plan", folder / "patchdm-plans", "--size", "8x8", *out
    )
    measure = (*draw, "--data", study / "data")
    assert "With --data there must be --reference and --extractor" in refused(*measure)
    given = ("--reference", study / "stats.npz", "--extractor", study / "extractor")
    assert "--images must be 4 or more, to be measured; got 3" in refused(*measure, *given, "--images", 3)
    assert "--match must fit a plan or more" in refused(*measure, *given, "--images", 9, "--match", "heun*")
    assert "--conditions must be left out" in refused(*draw, "--size", "8x8", "--conditions", study / "data")
    train = (
        "train",
        "--data",
        study / "data",
        "--out",
        tmp_path / "m",
        "--checkpoints",
        tmp_path / "ck",
        *TRAIN,
    )
    assert "--objective patchdm needs a network of patches, with --tile" in refused(
        *train, "--objective", "patchdm"
    )
    of_patches = (*train, "--objective", "patchdm", "--attention", 2)
    assert "must be a multiple of 4 for 2 levels, so that features can be halved" in refused(
        *of_patches, "--tile", 6
    )
    assert "must be multiples of the patch's, 12; got 8 x 8" in refused(
        *of_patches, "--tile", 12, "--attention", 6
    )
    assert "leave out --tile" in refused(*train, "--objective", "rad", "--tile", 4, "--attention", 2)
    assert "need images of 2 x 2 patches of 8 or more; got 1 x 1" in refused(
        *train, "--objective", "patchdm-pixels", "--tile", 8, "--attention", 4
    )
    assert not (tmp_path / "o").exists() and not (tmp_path / "m").exists()


def test_a_run_searches_and_aligns_plans_for_patches_and_shows_larger_images(tmp_path):
    """The commands of the workflow in order, each with its spec."""
    settings = Settings.model_validate(
        {
            "prepare": {"limit": 200, "workers": 1},
            "model": {"channels": 8, "tile": 4, "attention": [2]},
            "train": {"objective": "patchdm", "steps": 3, "batch_size": 16, "warmup": 2},
            "extractor": {"steps": 2, "batch_size": 16},
            "plans": {"nfe": [3], "presets": ["ddim"], "grids": ["uniform-t"]},
            "search": {"nfe": [3], "trials": 2, "noises": 16, "trial_noises": 16, "teacher_nfe": 10,
                       "polish_iterations": 1, "polish_noises": 4, "frechet_iterations": 1, "frechet_images": 20,
                       "finalists": 1, "finalist_images": 20, "look_noises": 2, "batch_size": 20},
            "align": {"nfe": [3], "objectives": ["trajectory"], "noises": 16, "gate_noises": 16, "teacher_substeps": 1,
                      "refine_iterations": 1, "refine_images": 20, "choice_images": 20},
            "compose": {"images": 20, "target_nfe": 3, "rounds": 1},
            "sample": {"n": 20},
            "evaluate": {"resamples": 10},
            "enlarge": {"images": 20, "size": ["8x16"], "memory": [8, 16], "resamples": 10},
        }
    )  # fmt: skip
    made_as_run(settings, cwd=tmp_path)
    assert isinstance(load_model(tmp_path / "results/r/train").net, PatchedUNet)
    names = {row["name"] for row in read_record(tmp_path / "results/r/enlarge")["results"]}
    assert {"ddim.uniform-t.to-zero.nfe3", "searched.nfe3"} <= names
    page = (tmp_path / "results/r/report/index.html").read_text(encoding="utf-8")
    assert "Images of 8x16 pixels by a model trained at 8x8" in page
    assert (tmp_path / "results/r/report/figures/enlarge/seams.svg").exists()


SMALLER = {
    "train": "--steps 2 --warmup 1 --batch-size 4 --channels 8",
    "plan": "--nfe 2",
    "enlarge": "--pictures 2 --images 8 --memory 32 --resamples 10",
}


def test_the_tutorial_draws_larger_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_ZOO", str(ROOT / "zoo"))
    rng = np.random.default_rng(0)
    (tmp_path / "my-images").mkdir()
    for i in range(40):
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((32, 32)).save(tmp_path / "my-images" / f"{i}.png")
    run("docs/tutorials/patches.md", cwd=tmp_path, smaller=SMALLER)
    assert pixels(tmp_path / "huge" / "256x512-2400000001.png").shape == (256, 512, 3)
    assert (tmp_path / "varied" / "64x64.png").exists()
    record = read_record(tmp_path / "measured")
    assert {row["decode"] for row in record["results"]} == {"collage", "plain"}


@pytest.mark.slow
@pytest.mark.timeout(1800)  # two trainings, on a machine that others use, too
def test_the_collage_hides_seams_that_plain_decoding_shows(tmp_path):
    """Digits of 16 pixels, as `benchmarks/patches.py` measures them: 1.2 and 1.9 times the contrast of real ones."""
    made("prepare", "digits", "--size", 16, "--out", "data", cwd=tmp_path)
    made("extractor", "--data", "data", "--out", "extractor", cwd=tmp_path)
    made("stats", "data", "--extractor", "extractor", "--out", "stats.npz", cwd=tmp_path)
    for name, decodes in (("patchdm", "collage,plain"), ("patchdm-pixels", "shift,plain")):
        made("train", "--data", "data", "--objective", name, "--tile", 8, "--class-conditional", "true", "--steps",
             1500, "--batch-size", 16, "--threads", 1, "--out", name, "--checkpoints", f"ck-{name}",
             cwd=tmp_path)  # fmt: skip
        made("plan", "ddim", "--model", name, "--nfe", 20, "--grid", "uniform-t", "--to-zero", "--out", "plan.json",
             cwd=tmp_path)  # fmt: skip
        made("enlarge", "--model", name, "--plan", "plan.json", "--data", "data", "--images", 500, "--reference",
             "stats.npz", "--extractor", "extractor", "--size", "16x64", "--decodes", decodes, "--resamples", 50,
             "--out", f"run-{name}/enlarge", cwd=tmp_path)  # fmt: skip
    own, other = tmp_path / "run-patchdm", tmp_path / "run-patchdm-pixels"
    (collage,) = measures.seam_ratio(own, of="collage", to="real")
    (plain,) = measures.seam_ratio(own, of="plain", to="real")
    assert collage.value < 1.3 and plain.value > 1.6
    (distance,) = measures.fd_ratio(own, of="collage", to="plain")
    assert distance.value < 0.8 and distance.high < 1
    (less,) = measures.seam_ratio(own, of="collage", to="shift", to_run=other.name)
    (than,) = measures.seam_ratio(other, of="shift", to="plain")
    assert less.high < 1 and than.high < 1, "collage, shift, none"
    (nearer,) = measures.fd_ratio(own, of="collage", to="shift", to_run=other.name)
    assert nearer.high < 1
    record = read_record(own / "enlarge")
    worst = {row["decode"]: measures.worst_seam(record, row["seams"])[0] for row in record["larger"]}
    assert worst["collage"] < 1.3 and worst["plain"] > 1.6, "a size that was not trained"
