"""The pages do what they say: the commands of each are run, or it says why they are not."""

import json
import re
import subprocess

import pytest
from e2e.blocks import ROOT, blocks, fences, run
from PIL import Image

RUN_BY = {
    "docs/index.md": "here",
    "docs/tutorials/own-data.md": "here",
    "docs/tutorials/diffusers.md": "tests/e2e/test_tutorial.py",
    "docs/tutorials/text-to-image.md": "tests/e2e/test_text.py",
    "docs/tutorials/inpainting.md": "tests/e2e/test_inpaint.py",
    "docs/tutorials/patches.md": "tests/e2e/test_enlarge.py",
    "docs/tutorials/editing.md": "tests/e2e/test_edit.py",
    "docs/plan.md": "tests/unit/sampling/test_document.py",
    "CONTRIBUTING.md": "tests/workflow/test_workflow.py",
}
"""Pages whose blocks are run, and the test that runs them."""

NOT_RUN = {
    "docs/measured.md": "the commands behind its tables, of minutes to hours",
    "docs/cluster.md": "clusters, databases and servers; make test-cluster has some of its own",
}
"""Pages none of whose blocks are run, and why."""

COMMAND = re.compile(
    r"^\s*(?:\$ |\w*\$ )?(?:fewstep|make|snakemake|dvc|python|pip|torchrun|docker) ", re.MULTILINE
)


def pages():
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return [name for name in names if not name.startswith("benchmarks/results/")]


@pytest.mark.parametrize("page", pages())
def test_every_block_of_commands_is_run_or_says_why_not(page):
    for block in fences(page) if page not in NOT_RUN else ():
        if block.language in ("bash", "python") and block.reason is None:
            assert page in RUN_BY, f"{page}: no test runs {block.text!r}"
        elif block.language in ("", "console", "sh", "text") and COMMAND.search(block.text):
            assert block.reason, f"{page}: mark as bash and run it, or say why not: {block.text!r}"


def test_no_page_is_listed_in_vain():
    for page, test in RUN_BY.items():
        assert blocks(page), page
        assert test == "here" or page.rsplit("/", 1)[-1] in (ROOT / test).read_text(encoding="utf-8")


def test_the_first_page(tmp_path):
    smaller = {
        "train": "--steps 30 --channels 8 --warmup 5 --ema-decay 0.5",
        "extractor": "--steps 30",
        "sample": "--seeds 0-59",
        "evaluate": "--resamples 20",
    }
    run("docs/index.md", cwd=tmp_path, smaller=smaller)
    names = {path.stem for path in (tmp_path / "certificates").glob("*.json")}
    assert names == {"unipc-2.nfe5", "ddim.nfe50"}


def test_own_data(tmp_path):
    from sklearn.datasets import load_digits

    digits = load_digits()
    for i, (image, label) in enumerate(zip(digits.images[:200] * 255 / 16, digits.target, strict=False)):
        path = tmp_path / "my-images" / str(label % 2) / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.astype("uint8")).save(path)
    smaller = {
        "train": "--steps 20 --channels 8 --warmup 5 --ema-decay 0.5",
        "plans": "--nfe 5 --presets ddim --grids uniform-t",
        "extractor": "--steps 20",
        "search": "--trials 1 --noises 16 --trial-noises 16 --teacher-nfe 10 --look-noises 2 --analytic false "
        "--polish-iterations 0 --frechet-iterations 0 --finalists 1 --finalist-images 32",
        "sample": "--seeds 0-59",
        "evaluate": "--resamples 20",
    }
    run("docs/tutorials/own-data.md", cwd=tmp_path, smaller=smaller)
    certificate = json.loads((tmp_path / "certificates/searched.json").read_text(encoding="utf-8"))
    assert certificate["subject"]["plan"]["nfe"] == 5 and certificate["protocol"]["n"] == 60
