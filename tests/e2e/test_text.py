"""Text-to-image pipelines through the commands, as a user types them: search, align, sample, evaluate, export."""

import json
import shutil
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from e2e.shell import made, refused

sys.path.insert(0, str(Path(__file__).parents[1] / "unit/interop"))

from fewstep.data.prompts import digest
from fewstep.interop.load import load_model
from fewstep.pipeline.conditions import with_conditions
from fewstep.rng import ImageNoise
from fewstep.sampling.plan import load_plan
from fewstep.sampling.sample import solve

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, about processors that are not used

FOUND = [f"a {colour} {thing}" for colour in ("red", "blue", "green") for thing in ("cat", "house", "boat")]
REPORTED = [f"two {colour} {thing}s" for colour in ("red", "grey") for thing in ("cup", "tree", "bird")]
SMALL = (
    "--look-noises", 1, "--teacher-nfe", 10, "--trials", 2, "--polish-iterations", 1, "--polish-noises", 2,
    "--finalists", 1, "--finalist-images", 16, "--batch-size", 16,
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two pipelines, their calls, and prompts to search and to report on."""
    from tiny_text import CALLS, pipeline

    folder = tmp_path_factory.mktemp("text")
    for kind in ("sd15", "flux"):
        pipeline(kind).save_pretrained(folder / kind)
        (folder / f"{kind}.yaml").write_text(json.dumps(CALLS[kind]))
    (folder / "found.txt").write_text("\n".join(FOUND) + "\n")
    (folder / "reported.csv").write_text("id,words\n" + "".join(f"{i},{p}\n" for i, p in enumerate(REPORTED)))
    return folder


@pytest.fixture(scope="module")
def searched(place):
    for kind in ("sd15", "flux"):
        made(
            "search", "--model", kind, "--call", f"{kind}.yaml", "--prompts", "found.txt", "--nfe", 2,
            "--analytic", "false", "--out", f"{kind}-found", *SMALL, cwd=place,
        )  # fmt: skip
    return place


@pytest.mark.parametrize("kind", ["sd15", "flux"])
def test_a_search_and_its_plan_in_the_pipeline(searched, tmp_path, kind):
    plan = load_plan(searched / f"{kind}-found/searched.nfe2.json")
    assert plan.nfe == 2 and plan.provenance["call"]["guidance_scale"] == (7.5 if kind == "sd15" else 3.5)
    assert set(plan.provenance["prompts"]) == {digest(prompt) for prompt in FOUND}
    said = made(
        "export", kind, searched / f"{kind}-found/searched.nfe2.json", "--call", f"{kind}.yaml",
        "--out", tmp_path / "scheduler", cwd=searched,
    )  # fmt: skip
    assert "num_inference_steps=2" in said
    text = (tmp_path / "scheduler/README.md").read_text()
    assert "pipe(prompt, num_inference_steps=2, guidance_scale=" in text
    with mock.patch.object(sys, "path", [str(tmp_path / "scheduler"), *sys.path]):
        from fewstep_scheduler import PlanScheduler
        from tiny_text import CALLS, pipeline

        pipe = pipeline(kind)
        model = load_model(searched / kind, call=CALLS[kind])
        noise = ImageNoise([0], model.shape)()
        own, pipe.scheduler = pipe.scheduler, PlanScheduler.from_pretrained(tmp_path / "scheduler")
        try:
            theirs = pipe(
                FOUND[4], num_inference_steps=2, latents=noise, output_type="latent", **CALLS[kind]
            ).images
        finally:
            pipe.scheduler = own
        del sys.modules["fewstep_scheduler"]
    model = with_conditions(model, searched / "found.txt")
    ours = solve(model, plan, noise, condition=model.condition_of([4]))
    assert float((theirs - ours).abs().max() / ours.std()) < 1e-3  # float32, as in the tests of the scheduler


def test_images_of_prompts_are_measured_and_drawn_again(searched, tmp_path):
    common = ("--call", "sd15.yaml", "--prompts", "reported.csv:words")
    made(
        "plan",
        "dpmpp-2m",
        "--model",
        "sd15",
        "--nfe",
        3,
        "--to-zero",
        "--out",
        tmp_path / "2m.json",
        cwd=searched,
    )
    made(
        "sample", "sd15", "sd15-found/searched.nfe2.json", tmp_path / "2m.json", *common, "--seeds", "0-23",
        "--batch-size", 8, "--out", tmp_path / "samples", cwd=searched,
    )  # fmt: skip
    other = ("--seeds", "100-139", "--out", tmp_path / "ref.npz")
    made("sample", "sd15", tmp_path / "2m.json", *common, *other, cwd=searched)
    with np.load(tmp_path / "samples/searched.nfe2.npz") as arrays:
        meta = json.loads(str(arrays["meta"]))
    assert meta["conditions"]["rows"] == len(REPORTED) and meta["costs"]["network_calls"] == 4
    assert meta["files"]["conditions"]["column"] == "words" and "call" in meta["files"]
    images = np.load(tmp_path / "ref.npz")["arr_0"]
    from PIL import Image

    for i, image in enumerate(images):
        path = tmp_path / f"images/{i % 2}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    made("prepare", "folder", "--source", "images", "--out", "data", cwd=tmp_path)
    made("extractor", "--data", "data", "--out", "extractor", "--steps", 5, cwd=tmp_path)
    made("stats", "data", "--extractor", "extractor", "--out", "stats.npz", cwd=tmp_path)
    made(
        "evaluate", "samples", "--reference", "stats.npz", "--extractor", "extractor", "--resamples", 10, "--metrics",
        "fd", "--out", "eval", cwd=tmp_path,
    )  # fmt: skip
    said = made("verify", "eval/searched.nfe2.json", "--resample", cwd=tmp_path)
    assert "failed" not in said.partition("\n\n")[0] or "0 failed" in said


def test_alignment_of_a_pipeline(searched, tmp_path):
    made("plan", "ddim", "--model", "flux", "--call", "flux.yaml", "--nfe", 2, "--grid", "shifted:3", "--to-zero",
         "--out", tmp_path / "ddim.json", cwd=searched)  # fmt: skip
    made(
        "align", "--model", "flux", "--call", "flux.yaml", "--prompts", "found.txt", "--plan", tmp_path / "ddim.json",
        "--objectives", "trajectory", "--noises", 16, "--gate-noises", 16, "--refine-iterations", 0,
        "--teacher-substeps", 1,
        "--out", tmp_path / "aligned.json", cwd=searched,
    )  # fmt: skip
    assert load_plan(tmp_path / "aligned.json").nfe == 2


def test_prompts_that_were_searched_on_are_refused(searched, tmp_path):
    (tmp_path / "mixed.txt").write_text("\n".join([*REPORTED[:4], FOUND[0].upper(), FOUND[1]]))
    said = refused(
        "sample", "sd15", "sd15-found/searched.nfe2.json", "--call", "sd15.yaml", "--prompts", tmp_path / "mixed.txt",
        "--seeds", "0-5", "--out", tmp_path / "x.npz", cwd=searched,
    )  # fmt: skip
    assert "must not have been searched on, but 2 of 6 were" in said


def test_another_call_is_another_model(searched, tmp_path):
    (tmp_path / "other.yaml").write_text("guidance_scale: 3.0\n")
    said = refused(
        "sample", "sd15", "sd15-found/searched.nfe2.json", "--call", tmp_path / "other.yaml", "--prompts",
        "reported.csv:words", "--seeds", "0-5", "--out", tmp_path / "x.npz", cwd=searched,
    )  # fmt: skip
    assert "The plan is for the model with fingerprint" in said


def changed(place, tmp_path, change):
    folder = shutil.copytree(place / "sd15", tmp_path / "sd15")
    change(folder)
    return folder


def without(name):
    return lambda folder: shutil.rmtree(folder / name)


def pickled(folder):
    file = next((folder / "unet").glob("*.safetensors"))
    torch.save({}, file.with_suffix(".bin"))
    file.unlink()


def pointer(folder):
    next((folder / "vae").glob("*.safetensors")).write_text(
        "version https://git-lfs.github.com/spec/v1\noid x\n"
    )


def cut(folder):
    file = next((folder / "unet").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:2000])


def custom(folder):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"unet": ["my_code", "MyUNet"]}))


def vocabulary(folder):
    for file in (folder / "tokenizer").iterdir():
        if file.name != "tokenizer_config.json":
            file.unlink()


@pytest.mark.parametrize(
    "change, words",
    [
        (without("text_encoder"), "text_encoder must be there"),
        (pickled, "pickled weights are never opened"),
        (pointer, "is a pointer of git-lfs"),
        (cut, "must be a complete StableDiffusionPipeline, but reading it fails"),
        (custom, "no code of a folder is run; got ['my_code', 'MyUNet']"),
        (vocabulary, "must hold a vocabulary"),
    ],
)
def test_folders_that_are_not_whole(place, tmp_path, change, words):
    said = refused(
        "plan", "ddim", "--model", changed(place, tmp_path, change), "--nfe", 3, "--out", tmp_path / "p.json"
    )
    assert words in " ".join(said.split())
    assert not (tmp_path / "p.json").exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((), "needs --prompts, a list of prompts"),
        (
            ("--prompts", "none.txt"),
            "must be a list of prompts (.txt, .csv, .parquet), but there is no such file",
        ),
        (("--prompts", "reported.csv"), "must have the column prompt or caption or text; it has id, words"),
        (("--prompts", "reported.csv:nothing"), "must have the column nothing"),
        (("--prompts", "found.txt:x"), "A text has no columns"),
        (("--prompts", "found.txt", "--guidance", "2"), "Guidance 2.0 needs"),
    ],
)
def test_prompts_that_cannot_be(place, tmp_path, arguments, words):
    made("plan", "ddim", "--model", "sd15", "--nfe", 2, "--out", tmp_path / "p.json", cwd=place)
    said = refused(
        "sample",
        "sd15",
        tmp_path / "p.json",
        "--seeds",
        "0-3",
        "--out",
        tmp_path / "x.npz",
        *arguments,
        cwd=place,
    )
    assert words in said
