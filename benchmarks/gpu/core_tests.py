"""Run the core's tests where a GPU is: those of devices on it, all others on the machine's Python and torch.

    PYTHONPATH=src python benchmarks/gpu/core_tests.py --seconds 170 --out $OUT

The tests are those of `make test-minimum`. Needs pytest, pytest-timeout and hypothesis; jaxtyping and beartype check
shapes where they are there. The time limit ends the run with the results so far.
"""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import common
from common import Lease

ROOT = Path(__file__).parents[2]
DEVICES = "tests/unit/test_devices.py"
SCRIPTS = "tests/contract/test_gpu_scripts.py"


def core_tests() -> list[str]:
    """Those of `make test-minimum`."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.search(r"^CORE_TESTS := \$\(addprefix tests/unit/,([^)]*)\)(.*)$", text, re.MULTILINE)
    assert found is not None
    named = [*(f"tests/unit/{name}" for name in found[1].split()), *found[2].split()]
    return [path for path in named if path not in (DEVICES, SCRIPTS)]


def main(arguments: list[str] | None = None) -> None:
    made = common.parser(__doc__)
    made.add_argument("--only", nargs="*", default=None, help="paths of tests in place of the core's")
    options = made.parse_args(arguments)
    lease = Lease.of(options, exact=True)
    paths = options.only if options.only is not None else [DEVICES, *core_tests()]
    report = lease.out / "core-tests.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "not slow",
        f"--junit-xml={report}",
        *paths,
    ]
    environment = {**os.environ, "FEWSTEP_TEST_DEVICE": lease.device}
    log = lease.out / "core-tests.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
        try:
            status = process.wait(timeout=max(1.0, lease.left - 0.03 * lease.seconds))
        except subprocess.TimeoutExpired:
            process.send_signal(2)  # pytest writes its report on an interruption
            status = process.wait(timeout=60)
    print("\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:]))
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    if report.exists():
        for suite in ET.parse(report).getroot().iter("testsuite"):
            counts = {name: counts[name] + int(suite.get(name, 0)) for name in counts}
    common.record(lease, "core-tests.json", {"paths": paths, "status": status, **counts})
    lease.say(f"{counts}, status {status}")
    if status:
        raise SystemExit(1)


if __name__ == "__main__":
    common.run(main)
