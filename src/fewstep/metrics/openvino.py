"""Forward passes by OpenVINO, which on some processors is faster than PyTorch; an optional package."""

import ctypes
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.checks import ConfigError

INSTALL = "pip install 'fewstep[openvino]'"


def compile_forward(net: nn.Module, shape: tuple[int, int, int], dim: int) -> Callable[[Tensor], Tensor]:
    """Compile a network for the CPU, in float32, for as many threads as PyTorch uses.

    Every image is a request of its own on one thread, so that its features depend on nothing but the image.

    Args: net: maps (B, *shape) to (B, dim), without gradients. shape: of one input image.
    Returns: The same map; what it gives has no gradients.
    Raises: ConfigError: OpenVINO is not installed.
    """
    try:
        import openvino
    except ImportError:
        raise ConfigError(
            f"The backend openvino needs its package; install it ({INSTALL}) or use the backend torch."
        ) from None
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        # Each of the two libraries uses what PyTorch is about to drop; the caller cannot help it.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        model = openvino.convert_model(torch.export.export(net, (torch.zeros(1, *shape),)))
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": threads,
        "INFERENCE_NUM_THREADS": threads,
    }
    queue = openvino.AsyncInferQueue(openvino.Core().compile_model(model, "CPU", options), threads)

    def store(request: Any, place: tuple[np.ndarray[Any, Any], int]) -> None:
        rows, i = place
        rows[i] = request.get_output_tensor().data[0]

    queue.set_callback(store)
    _drop_signal_stack()

    def forward(x: Tensor) -> Tensor:
        rows = np.empty((len(x), dim), np.float32)
        inputs = x.numpy()
        for i in range(len(inputs)):
            queue.start_async({0: inputs[i : i + 1]}, (rows, i))
        queue.wait_all()
        return torch.from_numpy(rows)

    return forward


_DISABLED = 2  # SS_DISABLE of signal.h


class _SignalStack(ctypes.Structure):
    """stack_t of signal.h."""

    _fields_ = [("place", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


def _drop_signal_stack() -> None:
    """Have signals handled on this thread's own stack again.

    On processors with AMX OpenVINO leaves the thread that loads it a stack for signals. Trainings in such a process
    were ended by SIGTERM, whose handler was in place, without a checkpoint.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).sigaltstack(ctypes.byref(_SignalStack(None, _DISABLED, 0)), None)
