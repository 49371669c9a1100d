"""One command in several processes of this machine, which torchrun's launcher connects and watches."""

import logging
import os
import sys
import tempfile
from pathlib import Path
from uuid import uuid4

from fewstep.checks import ConfigError
from fewstep.pipeline import devices

SAID = "FEWSTEP_SAID"
"""Names the folder in which each process leaves what is wrong, so that it is said once."""


def is_one_of_several() -> bool:
    """Whether this process was started by torchrun."""
    return "WORLD_SIZE" in os.environ


def leave(sentence: str) -> bool:
    """Leave what is wrong to the process that started this one of several; False: there is none, so say it here."""
    folder = os.environ.get(SAID)
    if folder is not None:
        Path(folder, f"said-{os.environ['RANK']}").write_text(sentence, encoding="utf-8")
    return folder is not None


def run_in(count: int) -> int:
    """Run the command line of this process in `count` processes, each with a GPU of its own where there are GPUs.

    The first one reports; of another one a traceback is shown, where that has failed.

    Returns:
        Their exit status: 0, or that of the first one that failed.

    Raises:
        ConfigError: fewer GPUs than processes.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    gpus = devices.take_slots(count)
    if gpus and len(gpus) < count:
        raise ConfigError(
            f"--processes must be at most {len(gpus)}, the GPUs of this machine that may be used; got {count}."
        )
    # each has a level of its own; what matters is said below
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun says so, too, but at length
    with tempfile.TemporaryDirectory(prefix="fewstep-processes-") as folder:
        os.environ[SAID] = folder
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder, redirects=dict.fromkeys(range(1, count), Std.ALL)),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "fewstep", *sys.argv[1:])
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if sentences := sorted(Path(folder).glob("said-*")):
                sys.stderr.write(sentences[0].read_text(encoding="utf-8"))
            elif rank:
                for file in sorted(Path(folder).rglob(f"{rank}/stderr.log")):
                    sys.stderr.write(file.read_text(errors="replace"))
            return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        except SignalException as ended:
            return 128 + ended.sigval
        finally:
            del os.environ[SAID]
    return 0
