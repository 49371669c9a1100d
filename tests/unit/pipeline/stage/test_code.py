"""The code of a result is what its command imports, without what only describes."""

import subprocess
import sys
from pathlib import Path

import pytest

from fewstep.checks import ConfigError
from fewstep.pipeline.stage.code import code_hash, modules_of

HASH = "from fewstep.pipeline.stage.code import code_hash, modules_of; "


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package of the name with the module that hashes, and little else."""
    source = Path(__file__).parents[4] / "src" / "fewstep"
    package = tmp_path / "fewstep"
    for name in ("__init__", "checks", "files", "pipeline/__init__", "pipeline/stage/code"):
        target = package / f"{name}.py"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text((source / f"{name}.py").read_text() if "__init__" not in name else "")
    (package / "pipeline" / "stage" / "__init__.py").write_text("")
    (package / "room").mkdir()
    (package / "room" / "__init__.py").write_text("")
    (package / "room" / "a.py").write_text("from fewstep.room import b\n")
    (package / "room" / "b.py").write_text("def f(x):\n    return x + 1\n")
    (package / "room" / "settings.py").write_text("X = 1\n")
    return package


def hashed(package: Path, code: str = "print(code_hash(('fewstep.room.a',)))") -> str:
    run = [sys.executable, "-c", HASH + code]
    done = subprocess.run(run, cwd=package.parent, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_code_counts_but_its_comments_do_not(package: Path) -> None:
    before = hashed(package)
    b = package / "room" / "b.py"
    b.write_text('"""Doc."""\n# why\ndef f(x: int) -> int:\n    """Doc."""\n    return (x + 1)\n')
    assert hashed(package) == before
    b.write_text("def f(x):\n    return x + 2\n")
    assert hashed(package) != before


def test_imports_inside_functions_and_packages_on_the_way_count(package: Path) -> None:
    (package / "room" / "a.py").write_text("def g():\n    from fewstep.other.c import d\n    return d\n")
    (package / "other").mkdir()
    (package / "other" / "__init__.py").write_text("from fewstep.other import e\n")
    (package / "other" / "c.py").write_text("d = 1\n")
    (package / "other" / "e.py").write_text("d = 1\n")
    found = hashed(package, "print(*sorted(modules_of(('fewstep.room.a',))))").split()
    assert found == [f"fewstep.{name}" for name in ("other", "other.c", "other.e", "room", "room.a")]


def test_a_template_counts_for_the_module_of_its_name_alone(package: Path) -> None:
    """What a panel says of a result must not make the result stale."""
    before = hashed(package)
    (package / "room" / "panel.html.j2").write_text("<p>")
    assert hashed(package) == before
    page = package / "room" / "a.html.j2"
    page.write_text("<p>")
    after = hashed(package)
    assert after != before
    page.write_text("<div>")
    assert hashed(package) not in (before, after)


def test_settings_and_what_only_they_import_do_not_count(package: Path) -> None:
    (package / "room" / "a.py").write_text("from fewstep.room import b, settings\n")
    before = hashed(package)
    (package / "room" / "settings.py").write_text("from fewstep.room import z\n\nX = 2\n")
    (package / "room" / "z.py").write_text("Y = 1\n")
    assert hashed(package) == before


def test_imports_for_types_alone_do_not_count(package: Path) -> None:
    before = hashed(package, "print(*sorted(modules_of(('fewstep.room.a',))))")
    text = "from typing import TYPE_CHECKING\nfrom fewstep.room import b\nif TYPE_CHECKING:\n    import fewstep.files\n"
    (package / "room" / "a.py").write_text(text)
    assert hashed(package, "print(*sorted(modules_of(('fewstep.room.a',))))") == before


def test_a_module_that_does_not_exist_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"there is no fewstep\.nowhere"):
        code_hash(("fewstep.nowhere",))


def test_a_stage_depends_on_its_own_paper_alone() -> None:
    from fewstep.app.stages import STAGES

    for stage in STAGES:
        papers = {
            name.split(".")[2] for name in modules_of(stage.roots) if name.startswith("fewstep.methods.")
        }
        assert len(papers) <= 1, f"{stage.name} depends on {papers}"


@pytest.mark.parametrize("stage", ["train", "extractor"])
def test_training_does_not_depend_on_the_loaders(stage):
    """A mended loader changes the dataset or not; where it does not, no model is trained again."""
    code = modules_of((f"fewstep.app.stages.{stage}",))
    assert "fewstep.data.packed" in code
    assert not code & {
        f"fewstep.data.{loader}" for loader in ("prepare", "engine", "celeba", "lsun", "folder", "cifar10")
    }
