"""What a process of ours sets before torch is loaded: importing the package itself sets nothing."""

import ctypes
import os
import sys


def set_up() -> None:
    """Keep freed memory, and let threads that wait sleep; for the first line of a program, before torch is imported.

    What the environment says already stays as it is.
    """
    # Read by OpenMP when torch is loaded. By default its threads wait for each other spinning, which on a machine that
    # is shared keeps the very thread from running that is waited for: small networks become twenty times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Let the C library of Linux hand freed tensors of up to 1 GiB out again.

    By default each tensor of more than 128 KiB to 32 MiB is mapped, cleared page by page and given back: with small
    networks of 32 x 32 on a CPU about an eighth of the time of sampling and training. Whoever sets the allocator
    decides.
    """
    already = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"} & os.environ.keys()
    if sys.platform != "linux" or already:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        mallopt(trim_threshold, 1 << 30)
        mallopt(mmap_threshold, 1 << 30)
