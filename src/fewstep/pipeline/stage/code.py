"""Which code a result depends on: what the module of a command imports, directly or not, without what only describes.

A change of that code makes results stale; comments, formatting, docstrings and annotations of functions do not count.
"""

import ast
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import grimp

from fewstep.checks import ConfigError
from fewstep.files import sha256_text

PACKAGE = "fewstep"
DESCRIBE_ONLY = (
    PACKAGE,
    f"{PACKAGE}._typing",
    f"{PACKAGE}.process",
    f"{PACKAGE}.progress",
    f"{PACKAGE}.app",
    f"{PACKAGE}.app.stages",  # the list of stages
    f"{PACKAGE}.app.tracking",  # shows results, live or afterwards
    f"{PACKAGE}.pipeline.stage",  # where settings and inputs come from; their values are in the key
    f"{PACKAGE}.pipeline.stage.*",
    f"{PACKAGE}.pipeline.devices",  # where, not what
    f"{PACKAGE}.pipeline.environment",
    f"{PACKAGE}.*.settings",  # the values are in the key
    f"{PACKAGE}.methods.*.stage",  # declarations
    f"{PACKAGE}.app.stages.compose",
)
"""Modules on which no result depends; what only they import does not count either."""

_BESIDE = {".j2", ".css", ".js"}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_hash(roots: Sequence[str]) -> str:
    """Hash of what some modules do, and all that they import from this package.

    Args:
        roots: names of modules, such as `fewstep.app.stages.train`.

    Raises:
        ConfigError: There is no such module.
    """
    return _hash(tuple(sorted(set(roots))))


@cache
def _hash(roots: tuple[str, ...]) -> str:
    parts = [f"{name}\n{_meaning(file)}" for name, file in sorted(_files(modules_of(roots)))]
    return sha256_text("\0".join(parts))[:16]


@cache
def modules_of(roots: tuple[str, ...]) -> frozenset[str]:
    """The modules whose code counts: roots, what they import, and the packages that stand around these."""
    graph = _graph()
    seen: set[str] = set()
    todo = list(roots)
    while todo:
        name = todo.pop()
        if name in seen or (name not in roots and _only_describes(name)):
            continue
        if name not in graph.modules:
            raise ConfigError(f"The code of a stage must be modules of {PACKAGE}, but there is no {name}.")
        seen.add(name)
        todo += graph.find_modules_directly_imported_by(name)
        todo.append(name.rpartition(".")[0])  # importing a module runs its package
    return frozenset(seen)


@cache
def _graph() -> grimp.ImportGraph:
    return grimp.build_graph(PACKAGE, exclude_type_checking_imports=True, cache_dir=None)


def _only_describes(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in DESCRIBE_ONLY)


def _files(modules: frozenset[str]) -> Iterator[tuple[str, Path]]:
    """Names and files of modules, and of the templates, style sheets and scripts of their names beside them."""
    found = find_spec(PACKAGE)
    assert found is not None and found.origin is not None
    package = Path(found.origin).parent
    for module in modules:
        path = package.joinpath(*module.split(".")[1:])
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        yield file.relative_to(package).as_posix(), file
        for other in file.parent.glob(f"{file.stem}.*"):
            if other.suffix in _BESIDE:
                yield other.relative_to(package).as_posix(), other


@cache
def _meaning(file: Path) -> str:
    """The text of a module without what does not run; a template or style sheet as it is."""
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".py":
        return text
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):  # also where commands keep their help texts
            node.annotation = None
    return ast.unparse(tree)  # unlike ast.dump, the same text for the same code in every Python
