"""What the package does to the process: nothing when it is imported; what a program needs when one starts."""

import os
import subprocess
import sys

import pytest

# Pages that the system provided for ten buffers of 4096 pages, one after another.
COUNT = """
import resource

def use():
    bytearray(16 << 20)  # written, and freed at once

def faults():
    use()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        use()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
"""
SET_UP = "from fewstep import process\nprocess.set_up()\nprint(faults())"
# The command line itself replaced by a look at the process that it would run in.
STARTED = """
import os, sys, types

def look():
    print(faults(), os.environ["OMP_WAIT_POLICY"], "torch" in sys.modules)

sys.modules["fewstep.app.cli"] = types.SimpleNamespace(main=look)
from fewstep.__main__ import main
main()
"""

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="mallopt is of the C library of Linux")


def said(code: str, **environment: str) -> str:
    """What a new process prints whose environment sets neither allocator nor OpenMP, but as given."""
    plain = {
        key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_", "OMP_"))
    }
    run = [sys.executable, "-c", COUNT + code]
    return subprocess.run(run, env=plain | environment, capture_output=True, text=True, check=True).stdout


@on_linux
def test_importing_the_package_changes_no_allocator() -> None:
    # the C library maps each buffer anew: 4096 pages each, or 8 where the kernel provides huge ones
    # (then some hundreds of faults would do; seen here: 40,000)
    assert int(said("import fewstep\nfrom fewstep.sampling import presets\nprint(faults())")) > 1000


def test_importing_the_package_changes_no_environment() -> None:
    code = "import os\nbefore = dict(os.environ)\nimport fewstep\nprint(dict(os.environ) == before)"
    assert said(code) == "True\n"


@on_linux
def test_a_command_uses_freed_memory_again_and_is_set_up_before_torch() -> None:
    faults, waiting, torch_is_loaded = said(STARTED).split()
    assert int(faults) < 500
    assert (waiting, torch_is_loaded) == ("passive", "False")


@on_linux
def test_what_is_set_stays_as_it_is() -> None:
    assert int(said(SET_UP)) < 500
    assert int(said(SET_UP, MALLOC_MMAP_THRESHOLD_="131072")) > 1000
    assert said(STARTED, OMP_WAIT_POLICY="active").split()[1] == "active"
