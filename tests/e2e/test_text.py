"""Text-to-image pipelines through the commands, as a user types them: search, align, sample, evaluate, export."""

import functools
import json
import shutil
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from e2e.blocks import run
from e2e.shell import made, refused
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "unit/interop"))

from fewstep.data.prompts import digest
from fewstep.interop.load import load_model
from fewstep.pipeline.conditions import with_conditions
from fewstep.pipeline.samples import read_samples
from fewstep.rng import ImageNoise
from fewstep.sampling.plan import load_plan
from fewstep.sampling.sample import solve

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of transformers, about processors that are not used
    pytest.mark.timeout(1500),  # two searches, on a machine that others use, too
]

PAGE = "docs/tutorials/text-to-image.md"
FOUND = [f"a {colour} {thing}" for colour in ("red", "blue", "green") for thing in ("cat", "house", "boat")]
REPORTED = [f"two {colour} {thing}s" for colour in ("red", "grey") for thing in ("cup", "tree", "bird")]
SMALLER = {
    "search": "--look-noises 1 --teacher-nfe 10 --trials 2 --polish-iterations 1 --polish-noises 2 --finalists 1 "
    "--finalist-images 16 --batch-size 16",
    "sample": "--seeds 0-5 --batch-size 6",
}
"""Options at the end of the tutorial's commands, where the last one of a name counts."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two pipelines in folders of their own, each with its call, and prompts to search and to report on."""
    from tiny_text import CALLS, pipeline

    folder = tmp_path_factory.mktemp("text")
    for kind in ("sd15", "flux"):
        own = folder / kind
        pipeline(kind).save_pretrained(own / "my-pipeline")
        (own / "call.yaml").write_text(json.dumps(CALLS[kind]))
        (own / "search-prompts.txt").write_text("\n".join(FOUND) + "\n")
        (own / "report-prompts.txt").write_text("\n".join(REPORTED) + "\n")
        (own / "table.csv").write_text("id,words\n" + "".join(f"{i},{p}\n" for i, p in enumerate(REPORTED)))
    return folder


@pytest.fixture(scope="module")
def searched(place):
    """From a kind to its folder after all of the tutorial."""

    @functools.cache
    def after(kind):
        run(PAGE, cwd=place / kind, smaller=SMALLER, may_fail=("doctor",))
        return place / kind

    return after


@pytest.mark.parametrize("kind", ["sd15", "flux"])
def test_the_tutorial_and_its_scheduler_in_the_pipeline(searched, kind):
    from tiny_text import CALLS, pipeline

    own = searched(kind)
    plan = load_plan(own / "found/searched.nfe4.json")
    assert plan.nfe == 4 and plan.provenance["call"]["guidance_scale"] == (7.5 if kind == "sd15" else 3.5)
    assert set(plan.provenance["prompts"]) == {digest(prompt) for prompt in FOUND}
    assert "pipe(prompt, num_inference_steps=4, guidance_scale=" in (own / "scheduler/README.md").read_text()
    kinds = [found["kind"] for found in json.loads((own / "doctor/doctor.json").read_text())["findings"]]
    assert kinds == (["leading", "residual-noise", "calls"] if kind == "sd15" else [])
    scores = json.loads((own / "scores.json").read_text())["samples"]
    assert scores.keys() == {"searched.nfe4", "dpmpp-2m.nfe4", "unipc-2.nfe8"}
    assert all(one["paired_distance"]["prompts"] == len(REPORTED) for one in scores.values())
    with mock.patch.object(sys, "path", [str(own / "scheduler"), *sys.path]):
        from fewstep_scheduler import PlanScheduler

        pipe = pipeline(kind)
        model = with_conditions(load_model(own / "my-pipeline", call=CALLS[kind]), own / "search-prompts.txt")
        noise = ImageNoise([0], model.shape)()
        before, pipe.scheduler = pipe.scheduler, PlanScheduler.from_pretrained(own / "scheduler")
        try:
            more = {**CALLS[kind], "latents": noise, "output_type": "latent"}
            theirs = pipe(FOUND[4], num_inference_steps=4, **more).images
        finally:
            pipe.scheduler = before
        del sys.modules["fewstep_scheduler"]
    ours = solve(model, plan, noise, condition=model.condition_of([4]))
    assert float((theirs - ours).abs().max() / ours.std()) < 1e-3  # float32, as in the tests of the scheduler


def test_images_of_prompts_are_measured_and_drawn_again(searched, tmp_path):
    own = searched("sd15")
    common = ("--call", "call.yaml", "--prompts", "table.csv:words", "--batch-size", 12)
    plan = "found/searched.nfe4.json"
    made("sample", "my-pipeline", plan, *common, "--seeds", "0-11", "--out", tmp_path / "drawn.npz", cwd=own)
    samples = read_samples(tmp_path / "drawn.npz")
    assert samples.meta["conditions"]["rows"] == len(REPORTED) and samples.meta["costs"]["network_calls"] == 8
    assert samples.meta["files"]["conditions"]["column"] == "words" and "call" in samples.meta["files"]
    assert samples.meta["model"]["call"]["pipeline"] == "StableDiffusionPipeline"
    other = ("--seeds", "100-139", "--out", tmp_path / "other.npz")
    made("sample", "my-pipeline", "dpmpp-2m.nfe4.json", *common, *other, cwd=own)
    for i, image in enumerate(read_samples(tmp_path / "other.npz").images):
        path = tmp_path / f"images/{i % 2}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    made("prepare", "folder", "--source", "images", "--out", "data", cwd=tmp_path)
    made("extractor", "--data", "data", "--out", "extractor", "--steps", 5, cwd=tmp_path)
    made("stats", "data", "--extractor", "extractor", "--out", "stats.npz", cwd=tmp_path)
    made(
        "evaluate", "drawn.npz", "--reference", "stats.npz", "--extractor", "extractor", "--resamples", 10,
        "--metrics", "fd", "--out", "certificate.json", cwd=tmp_path,
    )  # fmt: skip
    made("verify", "certificate.json", "--resample", cwd=tmp_path)  # status 1 where anything failed


@pytest.mark.slow
def test_alignment_of_a_pipeline(searched, tmp_path):
    own = searched("flux")
    model = ("--model", "my-pipeline", "--call", "call.yaml")
    more = ("--nfe", 2, "--grid", "shifted:3", "--to-zero", "--out", tmp_path / "ddim.json")
    made("plan", "ddim", *model, *more, cwd=own)
    made(
        "align", *model, "--prompts", "search-prompts.txt", "--plan", tmp_path / "ddim.json", "--objectives",
        "trajectory", "--noises", 16, "--gate-noises", 16, "--refine-iterations", 0, "--teacher-substeps", 1,
        "--out", tmp_path / "aligned.json", cwd=own,
    )  # fmt: skip
    assert load_plan(tmp_path / "aligned.json").nfe == 2


def sample_of(own, tmp_path, *arguments):
    return refused(
        "sample", "my-pipeline", "found/searched.nfe4.json", "--seeds", "0-5", "--out", tmp_path / "x.npz",
        *arguments, cwd=own,
    )  # fmt: skip


def test_prompts_that_were_searched_on_are_refused(searched, tmp_path):
    (tmp_path / "mixed.txt").write_text("\n".join([*REPORTED[:4], FOUND[0].upper(), FOUND[1]]))
    said = sample_of(searched("sd15"), tmp_path, "--call", "call.yaml", "--prompts", tmp_path / "mixed.txt")
    assert "must not have been searched on, but 2 of 6 were" in said


def test_another_call_is_another_model(searched, tmp_path):
    (tmp_path / "other.yaml").write_text("guidance_scale: 3.0\n")
    other = ("--call", tmp_path / "other.yaml", "--prompts", "report-prompts.txt")
    assert "The plan is for the model with fingerprint" in sample_of(searched("sd15"), tmp_path, *other)


def test_scores_by_clip_and_their_mistakes(searched, tmp_path):
    import transformers
    from tiny_text import clip_tokenizer

    own = searched("sd15")
    vision = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**vision, "vocab_size": 514, "max_position_embeddings": 77, "eos_token_id": 513}
    vision |= {"image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    transformers.CLIPModel(config).save_pretrained(tmp_path / "clip")
    clip_tokenizer().save_pretrained(tmp_path / "clip")
    common = ("score", "samples", "--prompts", "report-prompts.txt", "--out", tmp_path / "scores.json")
    made(*common, "--clip", tmp_path / "clip", cwd=own)
    record = json.loads((tmp_path / "scores.json").read_text())
    assert len(record["clip"]) == 64
    assert all({"clip", "clip_floor"} <= one.keys() for one in record["samples"].values())
    assert "give --clip or --fine" in refused(*common, cwd=own)
    assert "must be a folder of a CLIPModel" in refused(*common, "--clip", "samples", cwd=own)
    wrong = refused(*common, "--fine", "fine.npz", "--prompts", "search-prompts.txt", cwd=own)
    assert "must be drawn with the prompts of search-prompts.txt" in wrong


def changed(place, tmp_path, change):
    folder = shutil.copytree(place / "sd15/my-pipeline", tmp_path / "sd15")
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
        (("--prompts", "table.csv"), "must have the column prompt or caption or text; it has id, words"),
        (("--prompts", "table.csv:nothing"), "must have the column nothing"),
        (("--prompts", "report-prompts.txt:x"), "A text has no columns"),
        (("--prompts", "report-prompts.txt", "--guidance", "2"), "Guidance 2.0 needs"),
    ],
)
def test_prompts_that_cannot_be(place, tmp_path, arguments, words):
    own = place / "sd15"
    made("plan", "ddim", "--model", "my-pipeline", "--nfe", 2, "--out", tmp_path / "p.json", cwd=own)
    more = ("--seeds", "0-3", "--out", tmp_path / "x.npz", *arguments)
    assert words in refused("sample", "my-pipeline", tmp_path / "p.json", *more, cwd=own)
