"""Print what to install for `make test-minimum`: the core, and what reads data sets, at the lowest versions stated."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOOLS = ("pytest", "pytest-timeout", "hypothesis", "jaxtyping", "beartype")
AS_PINNED = ("torch",)
"""Not at its lowest: older builds for the CPU are not in every index. 2.11 is what GPU machines ran it with."""


def requirements() -> list[str]:
    """Dependencies in pyproject.toml as name==lowest, and the tools as constraints.txt pins them.
    Raises: SystemExit: a dependency states no lowest version.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lowest = {}
    for requirement in project["dependencies"] + project["optional-dependencies"]["data"]:
        match = re.fullmatch(r"([a-z0-9-]+)>=([0-9.]+)", requirement)
        if match is None:
            raise SystemExit(f"A dependency must be NAME>=LOWEST, which is then tested; got {requirement!r}.")
        lowest[match[1]] = match[2]
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    core = [f"{name}=={pins[name] if name in AS_PINNED else version}" for name, version in lowest.items()]
    return core + [f"{name}=={pins[name]}" for name in TOOLS]


if __name__ == "__main__":
    print("\n".join(requirements()))
