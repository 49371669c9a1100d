"""The tutorial does what it says: its commands and its Python are run in order, in a folder with what it starts from.

So that this ends soon, some commands get options at their end, where the last one of a name counts: see `SMALLER`.
The text itself is not changed.
"""

import contextlib
import os
import subprocess
import sys
from unittest import mock

import pytest
import torch
from e2e.blocks import blocks, run
from e2e.shell import COMMAND, made
from PIL import Image

from fewstep.interop.load import load_model
from fewstep.rng import generator
from fewstep.sampling.plan import load_plan
from fewstep.sampling.sample import solve

PAGE = "docs/tutorials/diffusers.md"

SMALLER = {
    "search": "--nfe 5 --trials 6 --noises 16 --trial-noises 16 --teacher-nfe 20 --polish-iterations 2 "
    "--polish-noises 16 --frechet-iterations 1 --frechet-images 64 --finalists 1 --finalist-images 64",
    "sample": "--seeds 0-99",
    "evaluate": "--resamples 20",
}
CLASSIFIER = dict.fromkeys(("search", "stats", "evaluate"), "--extractor extractor")
"""In place of the EfficientNet, which takes 10 ms an image on a slow core."""


def smaller(name, *, classifier):
    return f"{SMALLER.get(name, '')} {CLASSIFIER.get(name, '') if classifier else ''}"


@pytest.fixture(scope="module")
def beginning(tmp_path_factory):
    """`my-images`, digits in folders of their classes, and `my-pipeline`, trained on them for seconds."""
    from diffusers import DDPMPipeline, DDPMScheduler
    from sklearn.datasets import load_digits
    from unit.interop.tiny import unet

    folder = tmp_path_factory.mktemp("tutorial")
    digits = load_digits()
    pixels = (digits.images[:600] * 255 / 16).astype("uint8")
    for i, (image, label) in enumerate(zip(pixels, digits.target, strict=False)):
        path = folder / "my-images" / str(label) / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)

    x0 = torch.from_numpy(pixels)[:, None].expand(-1, 3, -1, -1) / 127.5 - 1
    net, scheduler, rng = unet(), DDPMScheduler(), generator(0)
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(80):
        some = x0[torch.randint(len(x0), (64,), generator=rng)]
        k, eps = torch.randint(1000, (64,), generator=rng), torch.randn(some.shape, generator=rng)
        loss = (net(scheduler.add_noise(some, eps, k), k).sample - eps).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    DDPMPipeline(net.eval(), scheduler).save_pretrained(folder / "my-pipeline")
    return folder


def assert_done(folder):
    """What the tutorial promises at its end; its scheduler makes the images of the plan."""
    from diffusers import DDPMPipeline

    plan = load_plan(folder / "found/searched.nfe5.json")
    assert plan.nfe == 5
    names = {path.stem for path in (folder / "eval").glob("*.json")}
    assert names == {"searched.nfe5", "dpmpp-2m.nfe5", "ddim.nfe5"}
    assert "searched" in (folder / "report/index.html").read_text(encoding="utf-8")
    with scheduler_of(folder) as scheduler:
        pipe = DDPMPipeline.from_pretrained(folder / "my-pipeline")
        pipe.scheduler = scheduler
        pipe.set_progress_bar_config(disable=True)
        images = pipe(batch_size=2, num_inference_steps=5, generator=generator(7), output_type="np").images
    noise = torch.randn((2, 3, 8, 8), generator=generator(7))
    ours = solve(load_model(folder / "my-pipeline"), plan, noise)
    theirs = torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1
    # float32 against float64 coefficients, and the start of unit variance in place of the schedule's 0.99998
    assert (theirs - ours.clamp(-1, 1)).abs().max() < 2e-3


@contextlib.contextmanager
def scheduler_of(folder):
    with mock.patch.object(sys, "path", [str(folder / "scheduler"), *sys.path]):
        from fewstep_scheduler import PlanScheduler

        yield PlanScheduler.from_pretrained(folder / "scheduler")
    del sys.modules["fewstep_scheduler"]


def test_the_tutorial_in_one_process(beginning):
    """Each command on one line, which is what this test can run."""
    made("prepare", "folder", "--source", "my-images", "--out", "labelled", cwd=beginning)
    made("extractor", "--data", "labelled", "--out", "extractor", "--steps", 30, cwd=beginning)
    names = {*SMALLER, *CLASSIFIER}
    run(PAGE, cwd=beginning, smaller={name: smaller(name, classifier=True) for name in names})
    assert_done(beginning)


@pytest.mark.slow
def test_the_tutorial_in_a_shell(beginning, tmp_path):
    """As a reader does it, with the extractor that it names."""
    for name in ("my-images", "my-pipeline"):
        (tmp_path / name).symlink_to(beginning / name)
    cases = "".join(f'{name}) command fewstep "$@" {smaller(name, classifier=False)};;\n' for name in SMALLER)
    script = f'set -euo pipefail\nfewstep() {{ case $1 in\n{cases}*) command fewstep "$@";; esac; }}\n'
    for block in blocks(PAGE):
        script += block.text if block.language == "bash" else f"python - <<'END'\n{block.text}END\n"
    environment = {**os.environ, "PATH": f"{COMMAND.parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "winner:" in done.stdout
    assert_done(tmp_path)


def test_the_tutorial_shows_the_whole_way():
    commands = [line[1] for block in blocks(PAGE) if block.language == "bash" for line in block.commands]
    for name in (
        "prepare",
        "search",
        "plan",
        "sample",
        "stats",
        "evaluate",
        "leaderboard",
        "report",
        "export",
    ):
        assert name in commands
