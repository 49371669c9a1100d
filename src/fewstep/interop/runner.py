"""Run a bundle: images from seeds with numpy and OpenVINO or ONNX Runtime alone, without PyTorch and without fewstep.

This file is copied into each bundle as run.py: `python run.py --seeds 0-63 --out images.npz`. It also serves network
calls to fewstep, which starts its own copy as a process (`--serve`), so that a crash of a runtime is only its own.
"""

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
SCHEMA = "fewstep.bundle/1"
MANIFEST, PROGRAM, TABLES = "manifest.json", "program.json", "tables.npz"
BACKENDS = {"openvino": "openvino", "onnxruntime": "onnxruntime"}
NEEDS = {
    "int8": (("avx512_vnni", "avx_vnni", "amx_int8", "asimddp"), "integer products (VNNI)"),
    "bf16": (("avx512_bf16", "amx_bf16", "bf16"), "bfloat16"),
}
"""Flags of /proc/cpuinfo of which a processor should have one, and what they are for."""


class BundleError(Exception):
    """A bundle that cannot be run: what must hold, what came, what to do."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, after the hash of every file that it names.
    Raises: BundleError: a file is missing, damaged or changed, or the folder is no bundle.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["schema"] != SCHEMA or not isinstance(manifest["files"], dict):
            raise ValueError(f"schema {manifest['schema']!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{folder} must be a bundle of {SCHEMA}, but its {MANIFEST} is not: {error}"
        ) from None
    for name, digest in manifest["files"].items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise BundleError(
                f"{folder} must hold {name}, but it is missing; copy the bundle again, or export it."
            )
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise BundleError(
                f"{path} must have the hash that {MANIFEST} names, but has another; export it again."
            )
    return dict(manifest)


def lacking(precision: str, cpuinfo: str = "/proc/cpuinfo") -> str | None:
    """What this processor lacks for a precision, in words; None where it has it, or does not say."""
    flags, what = NEEDS.get(precision, ((), ""))
    try:
        text = Path(cpuinfo).read_text(encoding="utf-8")
    except OSError:
        return None
    lines = (line for line in text.splitlines() if line.startswith(("flags", "Features")))
    found = set(next(lines, "").partition(":")[2].split())
    return None if not flags or not found or found & set(flags) else what


class Network:
    """One graph of a bundle, compiled for each batch size that it is called with."""

    def __init__(self, path: Path, backend: str, precision: str, threads: int) -> None:
        self.path, self.backend, self.precision, self.threads = path, backend, precision, threads
        self._compiled: dict[int, Callable[[dict[str, Array]], Array]] = {}

    def __call__(self, x: Array, features: Array, ranges: Array) -> Array:
        """The output for x (B, ...), with the rows of the time's features and the scales of a call."""
        if len(x) not in self._compiled:
            make = {"openvino": self._openvino, "onnxruntime": self._onnxruntime}[self.backend]
            self._compiled[len(x)] = make({"x": x, "features": features, "ranges": ranges})
        return self._compiled[len(x)]({"x": x, "features": features, "ranges": ranges})

    def _openvino(self, like: dict[str, Array]) -> Callable[[dict[str, Array]], Array]:
        openvino = _library("openvino")
        core = openvino.Core()
        model = core.read_model(self.path)
        names = [port.get_any_name() for port in model.inputs]
        model.reshape({name: list(like[name].shape) for name in names})  # static shapes are faster
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
        }
        request = core.compile_model(model, "CPU", options).create_infer_request()

        def run(given: dict[str, Array]) -> Array:
            found = request.infer({name: np.ascontiguousarray(given[name]) for name in names})
            return np.array(found[0])

        return run

    def _onnxruntime(self, like: dict[str, Array]) -> Callable[[dict[str, Array]], Array]:
        runtime = _library("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = 3
        session = runtime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        names = [port.name for port in session.get_inputs()]
        return lambda given: np.asarray(session.run(None, {name: given[name] for name in names})[0])


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        other = "openvino" if name == "onnxruntime" else "onnxruntime"
        raise BundleError(
            f"The backend {name} needs its package: pip install 'fewstep[{name}]' or pip install {name}; or use "
            f"--backend {other}."
        ) from None


class Bundle:
    """A bundle that is ready to run.

    Args: threads: of one network call. precision: bf16 or f32 of what is not integers; None: as it was exported.
    """

    def __init__(
        self, folder: Path, backend: str = "openvino", threads: int = 1, precision: str | None = None
    ) -> None:
        self.manifest = read_manifest(folder)
        self.program = json.loads((folder / PROGRAM).read_text(encoding="utf-8"))
        with np.load(folder / TABLES, allow_pickle=False) as tables:
            self.tables = {name: tables[name] for name in tables.files}
        rest = precision or self.manifest["precision"]
        self.networks = [Network(folder / name, backend, rest, threads) for name in self.manifest["networks"]]

    @property
    def warnings(self) -> list[str]:
        """What this processor lacks."""
        kinds = ["int8"] * (self.manifest["bits"] is not None) + [self.manifest["precision"]]
        return [
            f"this processor has no {what}: the bundle runs, but not faster than floats, and integer sums of "
            "processors without it may saturate; compare with a bundle in f32"
            for what in map(lacking, kinds)
            if what is not None
        ]

    def call(self, k: int, x: Array, labels: Array | None = None) -> Array:
        """The network's output at call k, for x (B, C, H, W) float32 and, where there are classes, labels (B,)."""
        graph = self.program["graphs"][k]
        features = self.tables[f"features{k}"]
        if features.ndim == 2:  # one row a class, the last for none
            labels = np.full(len(x), len(features) - 1) if labels is None else labels
            rows = features[labels]
        else:
            rows = features[None]
        ranges = self.tables[f"ranges{k}"]
        output: Array = self.networks[graph](x, np.ascontiguousarray(rows), ranges)
        return output

    def solve(self, x_T: Array, labels: Array | None = None) -> Array:
        """Run the plan from x_T, (B, C, H, W) float32, to data."""
        store: dict[tuple[str, int], Array] = {("x", 0): x_T}
        for operation in self.program["operations"]:
            if "reads" in operation:
                x = store["x", operation["node"]]
                output = np.zeros_like(x)
                if operation["call"] is not None:
                    given = x if operation["scale"] is None else x * np.float32(operation["scale"])
                    output = self._guided(operation["call"], given, labels)
                for name, node, of_x, of_output in operation["reads"]:
                    store[name, node] = np.float32(of_x) * x + np.float32(of_output) * output
            else:
                terms = operation["terms"]
                total = sum(np.float32(weight) * store[name, node] for name, node, weight in terms)
                store["x", operation["end"]] = np.asarray(total)
        result: Array = store["x", self.program["last"]]
        clip = self.program["clip"]
        return result if clip is None else np.clip(result, -clip, clip)

    def _guided(self, k: int, x: Array, labels: Array | None) -> Array:
        output, guidance = self.call(k, x, labels), self.program["guidance"]
        if guidance == 1.0:
            return output
        without = self.call(k, x, None)
        return without + np.float32(guidance) * (output - without)

    def images(self, seeds: Sequence[int], batch: int) -> Iterator[Array]:
        """Images (b, H, W, C) uint8, batch by batch; image i depends on seeds[i] alone."""
        shape, classes = self.manifest["model"]["shape"], self.manifest["model"]["classes"]
        for start in range(0, len(seeds), batch):
            part = seeds[start : start + batch]
            x_T = np.stack([normal(seed, shape) for seed in part]) * np.float32(self.program["start_std"])
            labels = np.array([seed % classes for seed in part]) if classes else None
            x0 = self.solve(x_T, labels)
            levels = np.clip(np.floor(np.float32(127.5) * x0 + np.float32(128)), 0, 255).astype(np.uint8)
            yield levels.transpose(0, 2, 3, 1)


def normal(seed: int, shape: Sequence[int]) -> Array:
    """Unit normal noise as PyTorch draws it on a CPU from a generator of this seed, to the last bits of float32.

    24 bits of a Mersenne twister a number, and the transform of Box and Muller on halves of 16.
    """
    n = math.prod(shape)
    if n < 16:
        raise BundleError(f"Noise is drawn for 16 values or more an image; got {n}.")
    twister = np.random.MT19937()
    twister._legacy_seeding(seed % 2**32)
    found = _uniform(twister, n)
    whole = n - n % 16
    found[:whole] = _box_muller(found[:whole].reshape(-1, 16)).reshape(-1)
    if n % 16:  # the last sixteen once more, of new numbers
        found[n - 16 :] = _box_muller(_uniform(twister, 16)[None])[0]
    return found.reshape(tuple(shape))


def _uniform(twister: Any, n: int) -> Array:
    raw = twister.random_raw(n)
    found: Array = ((raw & 0xFFFFFF).astype(np.float32)) * np.float32(2.0**-24)
    return found


def _box_muller(u: Array) -> Array:
    """Sixteen uniform numbers a row to as many normal ones."""
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - u[:, :8]))
    theta = np.float32(2 * math.pi) * u[:, 8:]
    return np.concatenate([radius * np.cos(theta), radius * np.sin(theta)], axis=1).astype(np.float32)


def serve(bundle: Bundle, requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer network calls until the other side ends: a line of JSON and the bytes of arrays, both ways."""
    while line := requests.readline():
        asked = json.loads(line)
        shape = tuple(asked["shape"])
        x = np.frombuffer(requests.read(4 * math.prod(shape)), np.float32).reshape(shape)
        labels = np.frombuffer(requests.read(8 * shape[0]), np.int64) if asked["labels"] else None
        output = np.ascontiguousarray(bundle.call(asked["call"], x, labels), np.float32)
        replies.write(json.dumps({"shape": output.shape}).encode() + b"\n" + output.tobytes())
        replies.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Images of a bundle of fewstep, without PyTorch.")
    here = Path(__file__).resolve().parent
    parser.add_argument("--bundle", type=Path, default=here, help="folder of the bundle (default: this one)")
    parser.add_argument("--seeds", default="0-15", help="one image a seed, FIRST-LAST")
    parser.add_argument("--out", type=Path, help="images as .npz, arr_0 uint8 (N, H, W, C)")
    parser.add_argument("--backend", choices=list(BACKENDS), default="openvino")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precision", choices=["f32", "bf16"], help="of what is not integers")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    try:
        bundle = Bundle(chosen.bundle, chosen.backend, max(1, chosen.threads), chosen.precision)
        for warning in bundle.warnings:
            print(f"run.py: {warning}", file=sys.stderr)  # noqa: T201
        if chosen.serve:
            serve(bundle, sys.stdin.buffer, sys.stdout.buffer)
            return 0
        if chosen.out is None:
            raise BundleError("--out must name a file to write.")
        first, last = (int(part) for part in chosen.seeds.split("-"))
        seeds = range(first, last + 1)
        images = np.concatenate(list(bundle.images(seeds, chosen.batch)))
        np.savez(chosen.out, arr_0=images, seeds=np.array(seeds, np.int64))
        print(f"{chosen.out}: {len(images)} images")  # noqa: T201
    except BundleError as error:
        print(f"run.py: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
