"""What importing the package does to the process."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource
import fewstep

def use():
    bytearray(16 << 20)  # written, and freed at once

use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(**environment: str) -> int:
    """Pages that the system provided for ten buffers of 4096 pages, one after another."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    run = [sys.executable, "-c", FAULTS]
    done = subprocess.run(run, env=plain | environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is of the C library of Linux")
def test_freed_memory_is_used_again() -> None:
    assert page_faults() < 500


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is of the C library of Linux")
def test_an_allocator_that_is_set_stays_as_it_is() -> None:
    assert page_faults(MALLOC_MMAP_THRESHOLD_="131072") > 1000
