"""Bundles: a model and a plan as files that run without PyTorch, and bundles as models of this project.

A bundle is a folder: the network at each width as an ONNX graph, the plan, compiled, tables of what depends on the
call, `manifest.json` with the hash of each file, and `run.py`. It is written after a parity gate: what the runtime
gives must be as far from floats as the simulation of its integers is.
"""

import json
import math
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from torch import Tensor

from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.condition import LABEL, Classes, Condition
from fewstep.diffusion.denoiser import Model
from fewstep.diffusion.prediction import input_scale
from fewstep.diffusion.schedule import schedule_from_config
from fewstep.files import atomic_dir, object_or_empty, sha256_file, write_json
from fewstep.interop import runner
from fewstep.interop.onnx_graph import require_onnx, write_graph
from fewstep.nets.integers import Integers
from fewstep.nets.roles import HasRoles, roles_of
from fewstep.rng import ImageNoise
from fewstep.sampling.document import save_plan
from fewstep.sampling.plan import (
    Node,
    Plan,
    load_plan,
    network_nodes,
    require_no_parallel_calls,
    widths_of,
)
from fewstep.sampling.quantised import conditioning_times
from fewstep.sampling.sample import check_fingerprint, quantised_calls, solve, start_std
from fewstep.sampling.solver import Evaluate, compile_plan

PLAN, RUN = "plan.json", "run.py"
Precision = Literal["f32", "bf16"]
Backend = Literal["openvino", "onnxruntime"]
BACKENDS: tuple[Backend, ...] = ("openvino", "onnxruntime")
GATE = (0.8, 1.25)
"""Where the error of the runtime's integers over that of simulated ones must lie: one code that is rounded otherwise
spreads through the network, so that values cannot agree, but their statistics do."""
FLOAT_GATES = {"f32": 1e-3, "bf16": 0.1}
"""Relative error that a bundle without integers may have."""
PARITY_IMAGES = 64


@dataclass(frozen=True)
class Parity:
    """What the gate saw, over all calls; root mean squares of network outputs.

    Attributes: runtime: of the runtime less floats, over floats. simulated: of simulated integers less floats, over
        floats; None without integers.
    """

    runtime: float
    simulated: float | None
    images: int

    @property
    def ratio(self) -> float | None:
        """Of the two errors."""
        return None if self.simulated is None else self.runtime / max(self.simulated, 1e-12)


def is_bundle(path: str | Path) -> bool:
    """Whether a folder is a bundle."""
    return object_or_empty(Path(path) / runner.MANIFEST).get("schema") == runner.SCHEMA


def export_bundle(
    model: Model,
    plan: Plan,
    out: Path,
    *,
    integers: Integers | None = None,
    precision: Precision = "f32",
    backend: Backend = "openvino",
    threads: int = 1,
) -> Parity:
    """Write a plan with its model as a bundle.

    Args:
        model: what the plan is for; with the integers that the plan names.
        plan: deterministic; guidance as the plan says.
        out: a new folder, or an earlier bundle, which is replaced.
        integers: of a quantised plan.
        precision: of what is not integers.
        backend: with which the gate looks at the bundle.
        threads: of its runtime.

    Raises:
        ConfigError: the model or plan is of a kind that has no bundle, a package is missing, or the gate is not passed;
            then nothing is written.
    """
    require_onnx()
    _require_exportable(model, plan)
    check_fingerprint(model, plan)
    with atomic_dir(out) as folder:
        _write(folder, model, plan, integers, precision)
        parity = _parity(folder, model, plan, backend, threads)
        _require_parity(parity, precision)
        manifest = runner.read_manifest(folder)
        write_json(folder / runner.MANIFEST, manifest | {"parity": asdict(parity), "backend": backend})
    return parity


def _require_exportable(model: Model, plan: Plan) -> None:
    if model.decode is not None or len(model.shape) != 3:
        raise ConfigError(
            f"A bundle holds models of images, (C, H, W); {model.name} makes {model.shape} or latents."
        )
    if model.conditions is not None and not isinstance(model.conditions, Classes):
        raise ConfigError(
            f"A bundle holds models without conditions or with classes; {model.name} takes others, which would "
            "have to be inputs of the graph."
        )
    if plan.stochastic or plan.nodes[0].eval == "afs_mean":
        raise ConfigError(
            f"A bundle holds plans that draw no noise and need no mean of the data; {plan.name or 'this one'} does."
        )
    require_no_parallel_calls(plan, "A bundle")
    for width in set(widths_of(plan)):
        roles_of(model.module(width), model.name)


def _write(folder: Path, model: Model, plan: Plan, integers: Integers | None, precision: Precision) -> None:
    """All files but the result of the gate."""
    widths = widths_of(plan)
    graphs = {width: f"net{i}.onnx" for i, width in enumerate(sorted(set(widths)))}
    tables: dict[str, Any] = {}
    for width, name in graphs.items():
        calls = [k for k, own in enumerate(widths) if own == width]
        _write_network(folder / name, model, plan, width, calls, integers, tables)
    np.savez(folder / runner.TABLES, **tables)
    save_plan(plan, folder / PLAN)
    order = list(graphs)
    write_json(folder / runner.PROGRAM, _program(model, plan, [order.index(width) for width in widths]))
    shutil.copyfile(str(runner.__file__), folder / RUN)
    names = [PLAN, runner.PROGRAM, runner.TABLES, *graphs.values(), RUN]
    conditions = model.conditions
    manifest = {
        "schema": runner.SCHEMA,
        "model": {
            "name": model.name,
            "fingerprint": model.fingerprint,
            "shape": list(model.shape),
            "prediction": model.prediction,
            "classes": conditions.n if isinstance(conditions, Classes) else 0,
            "widths": list(model.widths),
        },
        "plan": plan.hash,
        "bits": None if integers is None else str(integers.bits),
        "precision": precision,
        "networks": list(graphs.values()),
        "files": {name: sha256_file(folder / name) for name in names},
    }
    write_json(folder / runner.MANIFEST, manifest)


def _write_network(
    path: Path,
    model: Model,
    plan: Plan,
    width: int,
    calls: Sequence[int],
    integers: Integers | None,
    tables: dict[str, Any],
) -> None:
    """The graph of one width, and what it is given at its calls."""
    net, roles = model.module(width), roles_of(model.module(width), model.name)
    own = _of_width(integers.codes, width) if integers is not None else {}
    ranges = _of_width(integers.ranges, width) if integers is not None else {}
    parts = {k: _features(model, plan, k, integers) for k in calls}
    widths = [part.shape[-1] for part in parts[calls[0]]]
    scaled = write_graph(path, net, roles, own, ranges, shape=model.shape, widths=widths)
    for k in calls:
        tables[f"features{k}"] = torch.cat(parts[k], dim=-1).numpy()
        scales = [float(ranges[name].scale[k]) for name in scaled]
        tables[f"ranges{k}"] = np.array(scales or [1.0], np.float32)


def _of_width(of: Mapping[tuple[int, str], Any], width: int) -> dict[str, Any]:
    return {name: value for (own, name), value in of.items() if own == width}


def _features(model: Model, plan: Plan, k: int, integers: Integers | None) -> list[Tensor]:
    """What blocks see of the time at call k: (D_i,) each, or (classes + 1, D_i)."""
    from fewstep.nets.integers import network_at

    net = model.module(widths_of(plan)[k]) if integers is None else network_at(integers, model, k)
    assert isinstance(net, HasRoles)
    t = torch.tensor([conditioning_times(plan)[k]], dtype=torch.float64).to(torch.float32)
    time = model.schedule.time_input(t)
    with torch.no_grad():
        if not isinstance(model.conditions, Classes):
            return [part[0].reshape(-1) for part in net.temporal(time)]
        labels = torch.arange(model.conditions.n + 1)
        rows = net.temporal(time.expand(len(labels)), Condition({LABEL: labels}))
        return [part.reshape(len(labels), -1) for part in rows]


def _program(model: Model, plan: Plan, graphs: list[int]) -> dict[str, Any]:
    """The plan as the runner executes it."""
    compiled = compile_plan(plan, model.schedule, model.prediction)
    calls = {node: k for k, node in enumerate(network_nodes(plan))}
    operations: list[dict[str, Any]] = []
    for operation in compiled.operations:
        if isinstance(operation, Evaluate):
            scale = input_scale(
                model.prediction, model.schedule, torch.tensor(operation.t, dtype=torch.float64)
            )
            reads = [[*read.key, float(read.of_x), float(read.of_output)] for read in operation.reads]
            is_call = operation.kind == "net"
            operations.append(
                {
                    "node": operation.node,
                    "call": calls[operation.node] if is_call else None,
                    "scale": float(scale) if is_call and scale is not None else None,
                    "reads": reads,
                }
            )
        else:
            terms = [[*key, float(weight)] for key, weight in operation.terms]
            operations.append({"end": operation.end, "terms": terms})
    return {
        "graphs": graphs,
        "operations": operations,
        "last": len(plan.nodes) - 1,
        "clip": plan.clip,
        "guidance": 1.0 if plan.guidance is None else plan.guidance,
        "start_std": start_std(model, plan),
        "times": conditioning_times(plan),
    }


# The gate


def _parity(folder: Path, model: Model, plan: Plan, backend: Backend, threads: int) -> Parity:
    """Call floats, simulated integers and the runtime with what the plan's calls are given in floats."""
    process = Runtime(folder, backend=backend, threads=threads)
    simulated = quantised_calls(model, plan)
    sums = {"floats": 0.0, "runtime": 0.0, "simulated": 0.0}
    number = {plan.nodes[i].t: k for k, i in enumerate(network_nodes(plan))}

    def select(node: Node) -> Callable[..., Tensor]:
        exact, simulation = model.network(node.width), simulated and simulated(node)

        def compared(x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
            arguments = (x_t, t) if condition is None else (x_t, t, condition)
            output = exact(*arguments)
            run = process.call(number[node.t], x_t, condition)
            sums["floats"] += float(output.double().pow(2).sum())
            sums["runtime"] += float((run - output).double().pow(2).sum())
            if simulation is not None:
                sums["simulated"] += float((simulation(*arguments) - output).double().pow(2).sum())
            return output

        return compared

    seeds = range(PARITY_IMAGES)
    x_T = start_std(model, plan) * ImageNoise(seeds, model.shape)()
    try:
        solve(model, plan, x_T, condition=model.condition_of(seeds), select=select)
    finally:
        process.close()
    relative = {name: math.sqrt(value / sums["floats"]) for name, value in sums.items()}
    return Parity(relative["runtime"], relative["simulated"] if simulated else None, PARITY_IMAGES)


def _require_parity(parity: Parity, precision: Precision) -> None:
    if parity.ratio is None:
        if not parity.runtime <= FLOAT_GATES[precision]:
            raise ConfigError(
                f"The runtime's outputs must be within {FLOAT_GATES[precision]:g} of PyTorch's, but are "
                f"{parity.runtime:.2g} apart; no bundle was written. Try another --backend."
            )
        return
    low, high = GATE
    if not low <= parity.ratio <= high and not parity.runtime <= FLOAT_GATES["f32"]:
        raise ConfigError(
            f"The error of the runtime's integers must be {low:g} to {high:g} times that of simulated ones, but is "
            f"{parity.ratio:.3g} times ({parity.runtime:.2g} and {parity.simulated or 0:.2g} of the outputs); no "
            "bundle was written. Try another --backend."
        )


# As a model


class Runtime:
    """The process in which a bundle's networks run, started at the first call.

    Raises: DataError: the bundle is damaged. ConfigError: the runtime is missing or has crashed.
    """

    def __init__(self, folder: Path, *, backend: Backend = "openvino", threads: int = 1) -> None:
        self.folder, self.backend, self.threads = folder, backend, threads
        self._process: subprocess.Popen[bytes] | None = None

    def call(self, k: int, x: Tensor, condition: Condition | None) -> Tensor:
        """The output at call k, in the shape of x."""
        labels = None if condition is None else condition.values[LABEL]
        header = {"call": k, "shape": list(x.shape), "labels": labels is not None}
        sent = x.detach().to(torch.float32).contiguous().numpy().tobytes()
        if labels is not None:
            sent += labels.to(torch.int64).contiguous().numpy().tobytes()
        requests, replies = self._pipes()
        try:
            requests.write(json.dumps(header).encode() + b"\n" + sent)
            requests.flush()
            line = replies.readline()
            if not line:
                raise BrokenPipeError
        except BrokenPipeError:
            raise self._ended() from None
        shape = json.loads(line)["shape"]
        found = np.frombuffer(bytearray(replies.read(4 * math.prod(shape))), np.float32)
        return torch.from_numpy(found.reshape(shape))

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        if self._process is None:
            self._process = subprocess.Popen(
                [
                    sys.executable, str(runner.__file__), "--serve", "--bundle", str(self.folder),
                    "--backend", self.backend, "--threads", str(self.threads),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )  # fmt: skip
            weakref.finalize(self, _end, self._process)
        assert self._process.stdin is not None and self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def _ended(self) -> ConfigError:
        assert self._process is not None
        status = self._process.wait()
        self._process = None
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        return ConfigError(
            f"The process that runs {self.folder} with {self.backend} {how} (its own words are above); try another "
            "--backend, or fewstep export it again."
        )

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            _end(self._process)
            self._process = None


def _end(process: "subprocess.Popen[bytes]") -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):  # it has ended by itself, with a request on the way
                pipe.close()
    process.wait()


def load_bundle(folder: str | Path, *, backend: Backend = "openvino", threads: int | None = None) -> Model:
    """A bundle as a model, which can be called at the times of its plan alone.

    Args: threads: of the runtime; None: as many as PyTorch uses.
    Raises: DataError: it is damaged.
    """
    folder = Path(folder)
    try:
        manifest = runner.read_manifest(folder)
    except runner.BundleError as error:
        raise DataError(str(error)) from None
    plan = load_plan(folder / PLAN)
    process = Runtime(folder, backend=backend, threads=threads or torch.get_num_threads())
    times = conditioning_times(plan)
    # in float32, in which times come
    number = {float(np.float32(t)): k for k, t in enumerate(times)}

    def fn(x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        value = float(t.reshape(-1)[0])
        if value not in number:
            nearest = min(times, key=lambda known: abs(known - value))
            raise ConfigError(
                f"A bundle can be called at the times of its plan alone, and {value:.9g} is none (the nearest is "
                f"{nearest:.9g}); sample {folder / PLAN}, or export the other plan."
            )
        return process.call(number[value], x_t, condition)

    def of_call(k: int) -> Callable[..., Tensor]:
        return lambda x_t, t, condition=None: process.call(k, x_t, condition)

    about = manifest["model"]
    kind = manifest["bits"] or manifest["precision"]
    return Model(
        fn=fn,
        schedule=schedule_from_config(dict(plan.schedule)),
        prediction=about["prediction"],
        shape=tuple(about["shape"]),
        conditions=Classes(about["classes"]) if about["classes"] else None,
        fingerprint=about["fingerprint"],
        name=f"{about['name']} ({kind}, {backend})",
        widths=tuple(about["widths"]),
        at_width=lambda width: fn,
        quantised={} if plan.integers is None else {plan.integers: of_call},
        one_time=True,
    )
