"""What the site is made of beside the pages of this folder: pages and tables that follow from code.

Generated: the papers' status, commands, departures and claims; all settings, stages and commands; the API; measured
tables; the models of the zoo. Links to files of the repository lead to their page, where they have one.
"""

import ast
import html
import inspect
import json
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import latex2mathml.converter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from ruamel.yaml import YAML

import fewstep
from fewstep.app.cli import commands
from fewstep.app.params import params_schema
from fewstep.app.stages import STAGES
from fewstep.pipeline import claims

ROOT = Path(__file__).parents[1]
METHODS = ROOT / "src/fewstep/methods"

PAGES = {
    "CONTRIBUTING.md": "extend.md",
    "CHANGELOG.md": "changelog.md",
    "zoo/README.md": "zoo/index.md",
    "benchmarks/gpu/README.md": "gpu.md",
}
"""Files of the repository that are pages of the site."""

NO_CLUSTER = """# Clusters and the cloud

`snakemake --profile profiles/slurm` submits the jobs of the workflow to SLURM; what a site must set stands in
[that profile](../profiles/slurm/profile.yaml).
"""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The papers' pages in the order of their table, and the measured tables once they are written."""
    for entry in config.nav or ():
        if isinstance(entry, dict) and "Papers" in entry:
            entry["Papers"] = ["papers.md", *(f"papers/{row.folder}.md" for row in rows() if row.folder)]
        if isinstance(entry, dict) and "Measured" in entry and (ROOT / "docs/measured.md").exists():
            entry["Measured"].insert(0, "measured.md")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    repository = {
        **{ROOT / source: page for source, page in PAGES.items()},
        **{path: f"results/{path.name}" for path in sorted((ROOT / "benchmarks/results").glob("*.md"))},
        **{path: f"zoo/{path.parent.name}.md" for path in sorted((ROOT / "zoo").glob("*/README.md"))},
    }
    pages = {page: moved(path.read_text(encoding="utf-8"), path, page) for path, page in repository.items()}
    pages |= {
        "reference/params.md": params_page(),
        "reference/stages.md": stages_page(),
        "reference/commands.md": commands_page(),
        "reference/api.md": api_page(),
        "results/benchmarks.md": results_page(),
    }
    if files.get_file_from_path("cluster.md") is None:
        pages["cluster.md"] = NO_CLUSTER
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    for image in sorted((ROOT / "zoo").glob("*/*.png")):
        place = f"zoo/{image.parent.name}/{image.name}"
        files.append(File.generated(config, place, abs_src_path=str(image)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what a paper's page takes from code, and lead links to files of the repository to their pages."""
    if page.file.src_uri == "papers.md":
        markdown = papers_table(markdown)
    if page.file.src_uri.startswith("papers/"):
        markdown = filled(markdown, Path(page.file.src_uri).stem)
    return linked(markdown, page.file.src_uri, files)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Equations as MathML, which browsers draw without a script."""
    return re.sub(
        r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>',
        lambda found: equation(html.unescape(found[2]), block=found[1] == "div"),
        content,
        flags=re.DOTALL,
    )


def equation(tex: str, *, block: bool) -> str:
    """MathML of an equation; a class lets long ones scroll."""
    made = latex2mathml.converter.convert(tex.strip(), display="block" if block else "inline")
    return f'<div class="equation">{made}</div>' if block else made


# --- links ---

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def moved(text: str, path: Path, page: str) -> str:
    """The text of a file of the repository, its relative links as from a page of the site."""

    def there(found: re.Match[str]) -> str:
        target, anchor = _split(found[3])
        if not target or _is_address(target):
            return found[0]
        from_root = posixpath.normpath(posixpath.join(path.parent.relative_to(ROOT).as_posix(), target))
        place = posixpath.relpath(f"../{from_root}", posixpath.dirname(page) or ".")
        return f"{found[1]}[{found[2]}]({place}{anchor})"

    return _outside_of_code(text, lambda part: _LINK.sub(there, part))


def linked(text: str, page: str, files: Files) -> str:
    """Links that leave docs/, to the page of that file; to its name where it has none."""

    def there(found: re.Match[str]) -> str:
        target, anchor = _split(found[3])
        if not target or _is_address(target):
            return found[0]
        place = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
        path = place.removeprefix("../") if place.startswith("../") else place
        name = _page_of(path)
        if name is None or files.get_file_from_path(name) is None:
            if not (ROOT / path).exists():
                return found[0]  # mkdocs says what is missing
            return found[2] if found[2].startswith("`") else f"{found[2]} (`{path}`)"
        return f"{found[1]}[{found[2]}]({posixpath.relpath(name, posixpath.dirname(page) or '.')}{anchor})"

    return _outside_of_code(text, lambda part: _LINK.sub(there, part))


def _page_of(path: str) -> str | None:
    """The page, or the picture, that a file of the repository is."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("benchmarks/results/"):
        return f"results/{posixpath.basename(path)}"
    if path.startswith("zoo/"):
        name = path.removesuffix("/README.md")
        return f"{name}.md" if posixpath.dirname(name) == "zoo" else path
    return path.removeprefix("docs/") if path.startswith("docs/") else None


def _split(target: str) -> tuple[str, str]:
    place, mark, anchor = target.partition("#")
    return place, mark + anchor


def _is_address(target: str) -> bool:
    return "://" in target or target.startswith("mailto:")


def _outside_of_code(text: str, change: Callable[[str], str]) -> str:
    """A text with a change made to all but its blocks of code."""
    parts = re.split(r"(^```.*?^```\s*?$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else change(part) for part in parts)


# --- papers ---


def filled(text: str, folder: str) -> str:
    """A paper's page, with what code and claims say of it."""
    parts = {
        "status": status(folder),
        "differs": "\n".join(f"- {line}" for line in differs(folder)),
        "commands": paper_commands(folder),
        "claims": paper_claims(folder),
        "figures": paper_figures(folder),
        "code": paper_code(folder),
    }
    for name, made in parts.items():
        text = text.replace("{{ " + name + " }}", made)
    return text


class Row(NamedTuple):
    """A row of the table of papers, docs/papers.md."""

    number: str
    paper: str
    module: str
    command: str
    test: str
    status: str

    def is_of(self, folder: str) -> bool:
        """Whether it is that of a paper's folder."""
        named = f"methods/{folder}" in self.module + self.test
        return named or self.paper.split("(")[0].strip() == claims.read_paper(folder).title

    @property
    def folder(self) -> str | None:
        """The folder of methods/ that it is of, if that has a page."""
        pages = sorted((ROOT / "docs/papers").glob("*.md"))
        return next((page.stem for page in pages if self.is_of(page.stem)), None)

    @property
    def commands(self) -> list[str]:
        """Names of the commands, each once, without the program's."""
        group: Any = commands()
        words = [text.removeprefix("fewstep ").split()[0] for text in re.findall(r"`([^`]+)`", self.command)]
        return [name for name in dict.fromkeys(words) if name in group.commands]


def rows() -> list[Row]:
    """All twelve."""
    text = (ROOT / "docs/papers.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| \d+ \|.*$", text, re.MULTILINE)
    return [Row(*(cell.strip() for cell in row.strip("|").split("|"))) for row in found]


def row_of(folder: str) -> Row:
    """That of a paper."""
    return next(row for row in rows() if row.is_of(folder))


def papers_table(text: str) -> str:
    """The page of all papers with a link to each, and without the columns that only contributors need."""
    lines = ["| # | paper | commands | what works here |", "|---|---|---|---|"]
    for row in rows():
        paper = f"[{row.paper}](papers/{row.folder}.md)" if row.folder else row.paper
        names = ", ".join(f"[`{name}`](reference/commands.md#fewstep-{name})" for name in row.commands)
        lines.append(f"| {row.number} | {paper} | {names or '-'} | {row.status} |")
    return text[: text.index("| # |")] + "\n".join(lines) + "\n"


def status(folder: str) -> str:
    """Citation, and what of the paper works here, from the table of papers."""
    paper = claims.read_paper(folder)
    return f'[{paper.cite}]({paper.link})\n\n!!! info "What works here"\n    {row_of(folder).status}\n'


SHARED = {
    "ddsm": ["train/sandwich.py"],
    "patchdm": ["nets/patched.py"],
    "vitgan": ["nets/vitgan.py", "nets/lipschitz.py"],
    "ttur": ["nets/resnet_gan.py"],
}
"""What papers added to rooms that others share."""


def differs(folder: str) -> Iterator[str]:
    """What the docstrings of a paper's modules say after "Differs", each with its module."""
    source = ROOT / "src/fewstep"
    for path in (
        *sorted((METHODS / folder).rglob("*.py")),
        *(source / name for name in SHARED.get(folder, ())),
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                for found in re.findall(r"Differs\b:?\s*(.*?)(?:\n\s*\n|\Z)", text, re.DOTALL):
                    sentence = " ".join(found.split())
                    yield f"{sentence[:1].upper()}{sentence[1:]} (`{path.relative_to(source)}`)"


def paper_commands(folder: str) -> str:
    """The commands of a paper, what they do, and their settings."""
    names = row_of(folder).commands
    known = {stage.name: stage for stage in STAGES}
    lines = ["| command | does | settings |", "|---|---|---|"]
    for name in names:
        does, settings = _first_line(name), "-"
        if name in known and known[name].settings is not None:
            settings = f"[`{name}`](../reference/params.md#{name})"
        lines.append(f"| [`fewstep {name}`](../reference/commands.md#fewstep-{name}) | {does} | {settings} |")
    return "\n".join(lines) + "\n"


def _first_line(command: str) -> str:
    """What a command says of itself."""
    group: Any = commands()
    text = inspect.cleandoc(group.commands[command].help or "")
    return _escaped(" ".join(text.split("\n\n")[0].split()))


MOST_FIGURES = 3
"""Of one stage in one run."""


def paper_figures(folder: str) -> str:
    """Those that `make gallery` has taken from the reports of runs, of the paper's stages."""
    prefix = f"fewstep.methods.{folder}."
    stages = [stage.name for stage in STAGES if stage.command.__module__.startswith(prefix)]
    lines = []
    for run in sorted((ROOT / "docs/gallery").glob("*")):
        for stage in stages:
            for figure in sorted((run / stage).glob("*.png"))[:MOST_FIGURES]:
                what = f"{stage}, {figure.stem.replace('_', ' ')}"
                lines += [
                    f"![{what}](../{figure.relative_to(ROOT / 'docs')})",
                    "",
                    f"*{what}: run `{run.name}`*",
                    "",
                ]
    return "\n".join(lines)


def paper_claims(folder: str) -> str:
    """Its claims: what it says, its number, and what is measured here."""
    lines = ["| it says | its number | here | |", "|---|---|---|---|"]
    runs: dict[str, None] = {}
    for claim in claims.read_paper(folder).claims:
        if claim.criterion is None:
            how = f"out of scale: {claim.out_of_scale}"
            command = f"`{claim.command}`"
        else:
            side = "below" if claim.criterion.below is not None else "above"
            setting = ", ".join(f"{name} {_plain(value)}" for name, value in claim.setting.items())
            setting = f" ({setting})" if setting else ""
            how = f"`{claim.metric}` of `{claim.stage}`{setting} {side} {claim.criterion.bound:g}"
            how += f". {claim.note}" if claim.note else ""
            command = f"`make run RUN={claim.run}`"
            runs[str(claim.run)] = None
        lines.append(f"| {claim.says} | {claim.number} ({claim.where}) | {how} | {command} |")
    said = ", ".join(f"`{run}`" for run in runs)
    end = f"\nJudged by `make run RUN=papers`, from the results of {said}.\n" if runs else ""
    return "\n".join(lines) + "\n" + end


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name} {_plain(one)}" for name, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def paper_code(folder: str) -> str:
    """The documentation of its mathematics."""
    found = METHODS / folder
    if not found.is_dir():
        return ""
    modules = sorted(path.stem for path in found.glob("*.py") if path.stem != "__init__")
    return "\n\n".join(f"::: fewstep.methods.{folder}.{name}" for name in modules)


# --- reference ---


def params_page() -> str:
    """All settings: defaults, what is allowed, and what they mean."""
    schema = params_schema()["$defs"]
    raw = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    lines = [
        "# Settings",
        "",
        "`params.yaml` holds `defaults`, and under `runs` what each run changes. A section is called as the",
        "[stage](stages.md) that it is for. Editors check the file by `workflow/schemas/params.schema.json`.",
        "",
    ]
    for section, reference in schema["Settings"]["properties"].items():
        described = _resolved(reference, schema)
        lines += [f"## {section}", "", _escaped(described.get("description", "")), ""]
        lines += ["| setting | default | allowed | meaning |", "|---|---|---|---|"]
        for name, field in described["properties"].items():
            default = raw["defaults"].get(section, {}).get(name, field.get("default"))
            meaning = _escaped(_cell(field.get("description", "")))
            lines.append(f"| `{name}` | `{_literal(default)}` | {_allowed(field, schema)} | {meaning} |")
        lines.append("")
    lines += ["## Runs", "", "| run | command | what it changes |", "|---|---|---|"]
    for run, overlay in raw["runs"].items():
        lines.append(
            f"| `{run}` | `make run RUN={run}` | {', '.join(f'`{key}`' for key in overlay or {}) or '-'} |"
        )
    return "\n".join(lines) + "\n"


def _resolved(field: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    reference = field.get("$ref") or next(
        (one["$ref"] for one in field.get("allOf", ()) if "$ref" in one), None
    )
    return schema[reference.rsplit("/", 1)[1]] if reference else field


def _allowed(field: dict[str, Any], schema: dict[str, Any]) -> str:
    """Type and bounds in words."""
    if "anyOf" in field:
        return " or ".join(_allowed(one, schema) for one in field["anyOf"])
    field = _resolved(field, schema)
    if "enum" in field:
        return ", ".join(f"`{_literal(value)}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("type") == "array":
        return f"list of {_allowed(field.get('items', {}), schema)}" if "items" in field else "list"
    if field.get("type") == "object":
        inner = ", ".join(
            f"`{name}`: {_allowed(one, schema)}" for name, one in field.get("properties", {}).items()
        )
        return f"mapping of {inner}" if inner else "mapping"
    words = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "true or false",
        "null": "null",
    }
    text = words.get(str(field.get("type")), "any")
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {field[name]:g}" for name, sign in signs.items() if name in field]
    return f"{text} {', '.join(bounds)}".strip()


def _literal(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def stages_page() -> str:
    """The list of stages."""
    lines = [
        "# Stages",
        "",
        "In the order of the workflow. A stage is declared once; its command, rule, section of `params.yaml`, result",
        "folder, panel of the report and MLflow run follow ([how to add one](../extend.md)).",
        "",
        "| stage | does | makes | one result for each | code |",
        "|---|---|---|---|---|",
    ]
    for stage in STAGES:
        each = f"set of {stage.over}" if stage.over else "number of calls" if stage.nfe else "run"
        module = stage.command.__module__
        paper = module.split(".")[2] if module.startswith("fewstep.methods.") else None
        name = f"[`{stage.name}`](commands.md#fewstep-{stage.name})"
        code = f"[{paper}](../papers/{paper}.md)" if paper else f"`{module}`"
        lines.append(f"| {name} | {stage.does.replace('{nfe}', 'N')} | {stage.makes} | {each} | {code} |")
    lines += ["", "## What a stage is", "", "::: fewstep.pipeline.stage.Stage", ""]
    return "\n".join(lines)


def commands_page() -> str:
    """All commands and their options, as `--help` says."""
    group: Any = commands()
    lines = ["# Commands", "", "`fewstep COMMAND --help` says the same in a terminal.", ""]
    for name, command in group.commands.items():
        lines += [f"## fewstep {name}", "", *_paragraphs(inspect.cleandoc(command.help or "")), ""]
        lines += ["| option | meaning | default |", "|---|---|---|"]
        for parameter in command.params:
            if parameter.hidden:
                continue
            label = parameter.metavar or parameter.name.upper()
            if parameter.opts[0].startswith("-"):
                label = "/".join([*parameter.opts, *parameter.secondary_opts])
            text, _, stated = _cell(parameter.help or "").partition(" (default: ")
            default = f"`{stated[:-1]}`" if stated else _default(parameter.default)
            default = "required" if parameter.required else default
            lines.append(f"| `{_cell(label)}` | {_escaped(text)} | {_cell(default)} |")
        lines.append("")
    return "\n".join(lines)


def _default(value: Any) -> str:
    return "" if value is None or value == () or callable(value) else f"`{value}`"


def _paragraphs(text: str) -> Iterator[str]:
    for line in text.replace("\f", "").splitlines():
        mark, _, example = line.strip().partition("Example: ")
        yield f"```text\n{example}\n```" if example and not mark else _escaped(line)


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", "\\*")


def api_page() -> str:
    """The public names, and the rooms behind them."""
    public: Iterable[str] = sorted({f"fewstep.{module}.{name}" for name, module in fewstep._PUBLIC.items()})
    lines = ["# Python", "", "`import fewstep as fs` has these names; all need the core alone.", ""]
    lines += [f"::: {path}\n    options:\n      heading_level: 2\n" for path in public]
    lines += [
        "## Known samplers",
        "",
        "::: fewstep.sampling.presets",
        "    options:",
        "      heading_level: 3",
        "",
    ]
    lines += [
        "## Evaluation",
        "",
        "::: fewstep.metrics.evaluate",
        "    options:",
        "      heading_level: 3",
        "",
    ]
    return "\n".join(lines)


def results_page() -> str:
    """The tables of benchmarks/results by their titles."""
    lines = [
        "# Benchmarks",
        "",
        "Each table is written by a script in `benchmarks/`, which its docstring tells how to run.",
        "",
    ]
    for path in sorted((ROOT / "benchmarks/results").glob("*.md")):
        first = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        lines.append(f"- [{first}]({path.name})")
    return "\n".join(lines) + "\n"
