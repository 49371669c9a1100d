"""Rules of the house that a syntax tree can check."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src" / "fewstep").rglob("*.py"))
DRAWS = {
    "rand",
    "randn",
    "randint",
    "randperm",
    "normal",
    "multinomial",
    "bernoulli",
    "rand_like",
    "randn_like",
}


def random_calls_without_generator(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        last = name.rsplit(".", 1)[-1]
        if last == "manual_seed" or name.startswith(("np.random.", "numpy.random.", "random.")):
            found.append(f"{name} at line {node.lineno}")
        if name.startswith("torch.") and last in DRAWS and "generator" not in {k.arg for k in node.keywords}:
            found.append(f"{name} without generator at line {node.lineno}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_random_numbers_come_from_an_argument(path):
    if path.name not in ("rng.py", "runner.py"):  # the runner of a bundle stands alone, without this package
        assert not random_calls_without_generator(ast.parse(path.read_text()))


def test_the_random_number_rule_sees_what_it_forbids():
    bad = "torch.randn(3)\nnp.random.rand()\ntorch.manual_seed(0)\ntorch.rand(2, generator=g)\n"
    assert len(random_calls_without_generator(ast.parse(bad))) == 3


def test_every_cited_key_is_in_the_bibliography():
    known = set(re.findall(r"^@\w+\{([^,\s]+),", (ROOT / "docs/references.bib").read_text(), re.MULTILINE))
    cited = {
        (key, path.name)
        for path in SOURCES
        for key in re.findall(r"\[([a-z]+\d{4}[a-z0-9]*)[,;\]]", path.read_text())
    }
    assert cited, "no citation found: the pattern above must be wrong"
    assert not {(key, name) for key, name in cited if key not in known}


def test_papers_table_names_modules_and_tests_that_exist():
    rows = re.findall(r"^\| \d+ \|.*$", (ROOT / "docs/papers.md").read_text(), re.MULTILINE)
    assert len(rows) == 12
    for row in rows:
        for path in re.findall(r"`((?:src|tests)/[^`]+)`", row):
            assert (ROOT / path).exists(), f"{path} in docs/papers.md"


def test_core_imports_without_the_pipeline_extra():
    """A bare GPU machine has torch, numpy, pillow, safetensors and tqdm, and nothing else of ours."""
    modules = [
        ".".join(("fewstep", *path.relative_to(ROOT / "src/fewstep").with_suffix("").parts))
        for path in SOURCES
        if path.relative_to(ROOT / "src/fewstep").parts[0] not in ("app", "pipeline", "interop")
        and "stage" not in path.relative_to(ROOT / "src/fewstep").parts
    ]
    assert "fewstep.methods.s3.space" in modules
    blocked = [
        "mlflow",
        "optuna",
        "pandas",
        "typer",
        "pydantic",
        "snakemake",
        "dvc",
        "matplotlib",
        "sklearn",
        "lmdb",
        "grimp",
        "jaxtyping",
    ]
    code = (
        f"import sys\nfor name in {blocked}: sys.modules[name] = None\n"
        f"import importlib\nfor name in {modules}: importlib.import_module(name.removesuffix('.__init__'))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_layers_hold():
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


PAPERS = sorted(
    path.name for path in (ROOT / "src/fewstep/methods").iterdir() if (path / "__init__.py").exists()
)
"""Folders of papers."""


def test_papers_are_named_in_their_folders_and_in_the_one_list_alone():
    """What a paper needs elsewhere would be an edit elsewhere for each new one."""
    assert len(PAPERS) >= 4
    named = re.compile(rf"methods\.({'|'.join(PAPERS)})\b")
    allowed = ROOT / "src/fewstep/app/stages/__init__.py"
    for path in SOURCES:
        if path.relative_to(ROOT / "src/fewstep").parts[0] in ("app", "pipeline") and path != allowed:
            assert not named.search(path.read_text()), path
