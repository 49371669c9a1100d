"""A network as an ONNX graph whose layers are integer products: from floats or integers, without the time's layers.

For a plan the features of the time are a table of as many rows as it has calls, so that the layers that make them leave
the graph; they and the scales of a call's activations are inputs. A quantised layer is

    y = a * conv(DQ(Q(x / a)), DQ(w)) + bias

with the scale a of the call, activations in uint8 with one zero point for all calls, and weights in int8 per channel.
Signed activations are no choice: OpenVINO was seen to calculate wrongly with them, without a word.
"""

import copy
import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.checks import ConfigError
from fewstep.nets.quantised import Codes, QuantisedLayer, Ranges, per_channel, with_quantised
from fewstep.nets.roles import Role

OPSET = 20  # of 21, OpenVINO was seen to be slower: its own group normalisation
INSTALL = "pip install 'fewstep[onnx]'"


class _Inputs:
    """What the graph is given beside the image, while it is traced."""

    features: Tensor
    ranges: Tensor


class _Feature(nn.Module):
    """Stands in the place of a layer of role time_proj: its part of the table's row."""

    def __init__(self, inputs: _Inputs, start: int, stop: int) -> None:
        super().__init__()
        self.inputs, self.start, self.stop = inputs, start, stop

    def forward(self, x: Tensor) -> Tensor:
        """As many axes as the layer gives."""
        row = self.inputs.features[:, self.start : self.stop]
        return row.reshape(-1, *[1] * (x.ndim - 2), self.stop - self.start)


class _IntegerLayer(nn.Module):
    """A quantised layer in operations that become those of ONNX."""

    def __init__(self, layer: QuantisedLayer, inputs: _Inputs, place: int | None) -> None:
        super().__init__()
        codes, self.conv = layer.codes, layer.conv
        assert codes is not None
        self.inputs, self.place, self.ranges = inputs, place, layer.ranges
        self.register_buffer("integers", codes.signed().to(torch.int8))
        self.register_buffer("scale", codes.scale)
        self.register_buffer("bias", layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """As the layer."""
        weight = torch.ops.fewstep.dequantised(self.integers, self.scale)
        bias = self.bias if isinstance(self.bias, Tensor) else None
        if self.place is None or self.ranges is None:
            return self._product(x, weight, bias)
        a, zero, top = self.inputs.ranges[self.place], self.ranges.zero, 2**self.ranges.bits - 1
        x = x / a
        if top < 255:  # uint8 is wider than the integers
            x = x.clamp(-zero, top - zero)
        y = self._product(torch.ops.fewstep.as_integers(x, zero), weight, None) * a
        if bias is None:
            return y
        return y + (bias if self.conv is None else bias[:, None, None])

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.conv is None:
            return F.linear(x, weight, bias)
        return F.conv2d(x, weight, bias, **self.conv)  # type: ignore[arg-type]


class _Graph(nn.Module):
    def __init__(self, net: nn.Module, inputs: _Inputs) -> None:
        super().__init__()
        self.net, self.inputs = net, inputs

    def forward(self, x: Tensor, features: Tensor, ranges: Tensor) -> Tensor:
        self.inputs.features, self.inputs.ranges = features, ranges
        out: Tensor = self.net(x, torch.ones(1), None)  # what comes of the time is not used
        return out


@torch.library.custom_op("fewstep::as_integers", mutates_args=())
def as_integers(x: Tensor, zero: int) -> Tensor:
    """What the integers of x, in units of a step, mean."""
    return torch.fake_quantize_per_tensor_affine(x, 1.0, zero, 0, 255)


@as_integers.register_fake
def _(x: Tensor, zero: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("fewstep::dequantised", mutates_args=())
def dequantised(integers: Tensor, scale: Tensor) -> Tensor:
    """Weights from integers with sign, per output channel."""
    return integers.float() * per_channel(scale, integers)


@dequantised.register_fake
def _(integers: Tensor, scale: Tensor) -> Tensor:
    return torch.empty(integers.shape, dtype=torch.float32)


def require_onnx() -> None:
    """Raise ConfigError with how to get it where a package is missing."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"Export to ONNX needs onnx and onnxscript ({error}); install them: {INSTALL}."
        ) from None


def write_graph(
    path: Path,
    net: nn.Module,
    roles: Mapping[str, Role],
    codes: Mapping[str, Codes],
    ranges: Mapping[str, Ranges],
    *,
    shape: Sequence[int],
    widths: Sequence[int],
) -> list[str]:
    """Write a network as an ONNX file with the inputs x (B, *shape), features (1 or B, D) and ranges (L,).

    Args:
        path: of the file.
        net: in floats; its class has roles.
        roles: of its layers.
        codes: of those that are integers.
        ranges: of their inputs.
        shape: of one image.
        widths: of the features of each layer of role time_proj, in the order of `temporal`.

    Returns:
        The layers whose scales are in `ranges`, in their order there.
    """
    # layers of the time leave the graph, whether they are integers or not
    here = {name: own for name, own in codes.items() if roles[name] not in ("time_mlp", "time_proj")}
    if wide := [name for name, own in here.items() if not _fits(own.signed())]:
        raise ConfigError(
            f"Integer kernels multiply weights of 8 bits with sign, into which those of {wide[0]} do not fit; quantise "
            "with --weight-scheme symmetric."
        )
    inputs = _Inputs()
    made, layers, _ = with_quantised(net, here)
    scaled = [name for name in here if name in ranges]
    for name, layer in layers.items():
        layer.codes, layer.ranges = here[name], ranges.get(name)
        place = scaled.index(name) if name in ranges else None
        made.set_submodule(name, _IntegerLayer(layer, inputs, place))
    start = 0
    projections = [name for name, role in roles.items() if role == "time_proj"]
    for name, width in zip(_as_registered(net, projections), widths, strict=True):
        made.set_submodule(name, _Feature(inputs, start, start + width))
        start += width
    made.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    # what a layer of the time, which has no more weights, is asked for
    x, features = torch.zeros(2, *shape), torch.zeros(1, start)
    _export(path, _Graph(made.eval(), inputs), (x, features, torch.ones(max(len(scaled), 1))))
    return scaled


def _fits(signed: Tensor) -> bool:
    return int(signed.min()) >= -128 and int(signed.max()) <= 127


def _as_registered(net: nn.Module, names: Sequence[str]) -> list[str]:
    """Names in the order in which the network lists its modules, as `temporal` does."""
    wanted = set(names)
    return [name for name, _ in net.named_modules() if name in wanted]


def _export(path: Path, graph: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    from onnx import TensorProto, helper
    from onnxscript import opset20

    op: Any = opset20  # whose annotations do not take the tensors of constants

    def to_integers(x: Any, zero: int) -> Any:
        point = op.Constant(value=helper.make_tensor("zero", TensorProto.UINT8, [], [zero]))
        step = op.Constant(value_float=1.0)
        return op.DequantizeLinear(op.QuantizeLinear(x, step, point), step, point)

    def to_weights(integers: Any, scale: Any) -> Any:
        return op.DequantizeLinear(integers, scale, axis=0)

    batch = torch.export.Dim("batch")
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            copy.deepcopy(graph),
            arguments,
            dynamo=True,
            opset_version=OPSET,
            input_names=["x", "features", "ranges"],
            output_names=["y"],
            dynamic_shapes={"x": {0: batch}, "features": {0: torch.export.Dim.DYNAMIC}, "ranges": None},
            custom_translation_table={
                torch.ops.fewstep.as_integers.default: to_integers,
                torch.ops.fewstep.dequantised.default: to_weights,
            },
            verbose=False,
        )
        assert program is not None
        program.save(str(path))
    _strip(path)


def _strip(path: Path) -> None:
    """Leave out where in the source each node comes from, which is most of a small file."""
    import onnx

    model = onnx.load(path)
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.save(model, path)


@contextmanager
def _quiet() -> Any:
    """The exporter warns of optional packages and of what PyTorch is about to drop; the caller cannot help it."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
