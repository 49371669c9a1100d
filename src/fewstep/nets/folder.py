"""The model folder: weights as safetensors, what they mean as JSON, where they come from as a card.

- `model.safetensors`: the weights (float32, or float16 to save space)
- `config.json`: architecture, noise schedule, prediction, shape, classes, name
- `card.json`: data, code commit, steps, images seen, metrics: for people, never read by the code
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewstep import files
from fewstep.checks import ConfigError, DataError, UserError
from fewstep.diffusion.condition import Condition, Conditions
from fewstep.diffusion.denoiser import Model
from fewstep.diffusion.prediction import PREDICTIONS
from fewstep.diffusion.schedule import Flow, Schedule, schedule_from_config
from fewstep.nets import CARD, CONFIG, WEIGHTS
from fewstep.nets.autoencoder import VAE, Autoencoder, as_autoencoder
from fewstep.nets.classifier import Classifier
from fewstep.nets.dcgan import DCGANGenerator
from fewstep.nets.generator import Generator
from fewstep.nets.patched import PatchedUNet
from fewstep.nets.resnet_gan import ResNetGenerator
from fewstep.nets.slim import check_widths, sub_networks
from fewstep.nets.transformer import Transformer
from fewstep.nets.unet import UNet
from fewstep.nets.vitgan import ViTGenerator
from fewstep.rng import initial_weights

Finish = Callable[[Path], object]
"""Writes further files into a folder that has not appeared yet."""

SCHEMA = "fewstep.model/1"
CLASSIFIER_SCHEMA = "fewstep.classifier/1"
AUTOENCODER_SCHEMA = "fewstep.autoencoder/1"

NETS: dict[str, type[nn.Module]] = {
    "unet": UNet,
    "patched-unet": PatchedUNet,
    "transformer": Transformer,
    "classifier": Classifier,
    "dcgan": DCGANGenerator,
    "resnet-gan": ResNetGenerator,
    "vitgan": ViTGenerator,
    "vae": VAE,
}


def save_model(
    folder: str | Path,
    net: nn.Module,
    *,
    schedule: Schedule,
    prediction: str,
    shape: tuple[int, ...],
    name: str,
    card: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
    widths: Sequence[float] = (1.0,),
    guidable: bool = True,
    pixel_times: bool = False,
    finish: Finish | None = None,
) -> None:
    """Write a model folder at once: it is complete or absent.

    Args:
        folder: Where; an existing model there is replaced.
        net: One of `NETS`; its weights are written as they are (pass the averaged network).
        schedule: The noise schedule that the network was trained on.
        prediction: How the output is read, one of `PREDICTIONS`.
        shape: Of one sample, `(C, H, W)`.
        name: For people and reports.
        card: Free facts about the training.
        dtype: Of the stored weights; they are read back as float32 in any case.
        widths: Shares of its channels at which the network was trained, the full one first.
        guidable: Whether the null condition was trained, which guidance needs.
        pixel_times: Whether it was trained with a time of its own for each pixel.
        finish: Writes what else belongs into the folder, before it appears.

    Raises:
        ConfigError: An unknown prediction or architecture, or a folder that holds anything else than a model.
    """
    if prediction not in PREDICTIONS:
        raise ConfigError(f"prediction must be one of {', '.join(PREDICTIONS)}; got {prediction!r}.")
    config = {
        "schema": SCHEMA,
        "architecture": architecture(net),
        "schedule": schedule.config(),
        "prediction": prediction,
        "shape": list(shape),
        "n_classes": int(getattr(net, "n_classes", 0)),
        "name": name,
    }
    if len(widths) > 1:
        config["widths"] = list(widths)
    if not guidable and getattr(net, "conditions", None) is not None:
        config["guidable"] = False
    if pixel_times:
        config["pixel_times"] = True
    write_folder(folder, net, config, card=card, dtype=dtype, finish=finish)


def save_generator(
    folder: str | Path,
    net: Generator,
    *,
    name: str,
    card: Mapping[str, Any],
    finish: Finish | None = None,
) -> None:
    """Write the model folder of a generator, which makes x0 of noise in one call; arguments as of `save_model`.

    Its schedule starts at noise of unit variance, whose first numbers are the latent vector.
    """
    save_model(
        folder, net, schedule=Flow(), prediction="x0", shape=net.shape, name=name, card=card, finish=finish
    )


def load_model(folder: str | Path, *, device: str | torch.device = "cpu") -> Model:
    """Read a model folder.

    Returns:
        A model in evaluation mode whose weights need no gradient, laid out channels-last. Its call is
        `fn(x_t, t, condition=None)` with the project's time in [0, 1]. Where the network takes maps or context tokens,
        its conditions have no rows yet: bind some.

    Raises:
        DataError: A missing, truncated or foreign file, or weights that do not fit the architecture.
    """
    folder = Path(folder)
    net, config = read_folder(folder, SCHEMA)
    missing = [key for key in ("schedule", "prediction", "shape", "n_classes", "name") if key not in config]
    if missing:
        raise DataError(f"{folder / CONFIG} lacks {', '.join(missing)}; save the model again.")
    for key, holds, what in (
        ("shape", _is_shape(config["shape"]), "a list of channels, height and width"),
        ("n_classes", isinstance(config["n_classes"], int), "a whole number"),
        ("name", isinstance(config["name"], str), "text"),
    ):
        if not holds:
            raise DataError(f"{folder / CONFIG}: {key} must be {what}; got {config[key]!r:.60}.")
    if not isinstance(config["prediction"], str) or config["prediction"] not in PREDICTIONS:
        raise DataError(
            f"{folder / CONFIG}: prediction must be one of {', '.join(PREDICTIONS)}; "
            f"got {config['prediction']!r}."
        )
    return as_model(
        net.to(device),
        schedule=_read_schedule(config["schedule"], folder / CONFIG),
        prediction=config["prediction"],
        shape=tuple(config["shape"]),
        name=config["name"],
        fingerprint=files.sha256_file(folder / WEIGHTS),
        widths=_read_widths(config.get("widths", [1.0]), net, folder / CONFIG),
        guidable=config.get("guidable", True) is not False,
        pixel_times=config.get("pixel_times", False) is True,
    )


def _read_schedule(found: Any, path: Path) -> Schedule:
    try:
        return schedule_from_config(found)
    except ConfigError as error:
        raise DataError(f"{path}: {error}") from None


def _is_name(found: Any) -> bool:
    return isinstance(found, str) and found != ""


def _is_shape(found: Any) -> bool:
    return isinstance(found, list) and len(found) == 3 and all(isinstance(n, int) and n > 0 for n in found)


def _read_widths(found: Any, net: nn.Module, path: Path) -> tuple[float, ...]:
    if found == [1.0]:
        return (1.0,)
    numbers = isinstance(found, list) and all(isinstance(width, float | int) for width in found)
    if not numbers or not isinstance(net, UNet):
        raise DataError(f"{path}: widths must be a list of numbers, of a U-Net; got {found!r:.60}.")
    try:
        return check_widths(found, net.channels)
    except ConfigError as error:
        raise DataError(f"{path}: {error}") from None


def save_classifier(
    folder: str | Path,
    net: Classifier,
    *,
    shape: tuple[int, ...],
    name: str,
    card: Mapping[str, Any],
    finish: Finish | None = None,
) -> None:
    """Write the folder of a classifier of images `(C, H, W)`; the arguments are those of `save_model`."""
    config = {
        "schema": CLASSIFIER_SCHEMA,
        "architecture": architecture(net),
        "shape": list(shape),
        "name": name,
    }
    write_folder(folder, net, config, card=card, finish=finish)


class LoadedClassifier(NamedTuple):
    """A classifier in evaluation mode, and what its folder says of it; fingerprint: sha256 of the weights."""

    net: Classifier
    shape: tuple[int, int, int]
    name: str
    fingerprint: str


def load_classifier(folder: str | Path, *, device: str | torch.device = "cpu") -> LoadedClassifier:
    """Read the folder of a classifier.

    Raises:
        DataError: A missing, truncated or foreign file, or weights that do not fit the architecture.
    """
    folder = Path(folder)
    net, config = read_folder(folder, CLASSIFIER_SCHEMA)
    if (
        not isinstance(net, Classifier)
        or not _is_shape(config.get("shape"))
        or not _is_name(config.get("name"))
    ):
        raise DataError(f"{folder / CONFIG} must describe a classifier with shape and name; train it again.")
    channels, height, width = config["shape"]
    net = net.eval().requires_grad_(False).to(device)
    return LoadedClassifier(
        net, (channels, height, width), config["name"], files.sha256_file(folder / WEIGHTS)
    )


def save_autoencoder(
    folder: str | Path,
    net: VAE,
    *,
    scale: float,
    name: str,
    card: Mapping[str, Any],
    finish: Finish | None = None,
) -> None:
    """Write the folder of an autoencoder; scale: 1 over the standard deviation of its latents."""
    config = {"schema": AUTOENCODER_SCHEMA, "architecture": architecture(net), "scale": scale, "name": name}
    write_folder(folder, net, config, card=card, finish=finish)


def load_autoencoder(folder: str | Path, *, device: str | torch.device = "cpu") -> Autoencoder:
    """Read the folder of an autoencoder.

    Raises:
        DataError: A missing, truncated or foreign file, weights that do not fit the architecture, or no scale.
    """
    folder = Path(folder)
    net, config = read_folder(folder, AUTOENCODER_SCHEMA)
    if not isinstance(net, VAE) or not _is_name(config.get("name")):
        raise DataError(f"{folder / CONFIG} must describe an autoencoder with a name; train it again.")
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return as_autoencoder(
        net.to(device),
        scale=config.get("scale"),
        name=config["name"],
        fingerprint=files.sha256_file(folder / WEIGHTS),
    )


def as_model(
    net: nn.Module,
    *,
    schedule: Schedule,
    prediction: str,
    shape: tuple[int, ...],
    name: str = "",
    fingerprint: str | None = None,
    widths: tuple[float, ...] = (1.0,),
    guidable: bool = True,
    pixel_times: bool = False,
) -> Model:
    """Wrap a network in memory as a model: evaluation mode, no gradients for its weights, channels-last.

    The network is called with x_t, `schedule.time_input(t)` and a `Condition` or None; what it takes it says by an
    attribute `conditions`, where it has one.

    With several `widths` its sub-networks are copies, so its weights must not change any more. A network that is not
    `guidable` was not trained with its null condition, so the model has none.
    """
    net = net.eval().requires_grad_(False)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def called(network: nn.Module) -> Callable[..., Tensor]:
        def fn(x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
            out: Tensor = network(x_t, schedule.time_input(t), condition)
            return out

        return fn

    conditions: Conditions | None = getattr(net, "conditions", None)
    narrow = sub_networks(net, widths) if isinstance(net, UNet) and len(widths) > 1 else None
    return Model(
        fn=called(net),
        schedule=schedule,
        prediction=prediction,
        shape=shape,
        conditions=conditions if guidable or conditions is None else conditions.without_null(),
        fingerprint=fingerprint,
        name=name,
        net=net,
        widths=widths,
        at_width=None if narrow is None else lambda width: called(narrow(width)),
        net_at_width=narrow,
        most_calls=net.most_calls if isinstance(net, Generator) else None,
        pixel_times=pixel_times,
    )


def architecture(net: nn.Module) -> dict[str, Any]:
    """The network's type and constructor values as they are written in `config.json`.

    Raises:
        ConfigError: A class that is not in `NETS`.
    """
    for name, cls in NETS.items():
        if type(net) is cls:
            return {"type": name, **net.config()}  # type: ignore[operator]
    raise ConfigError(f"a model folder holds one of {', '.join(NETS)}; got {type(net).__name__}.")


def build(
    config: Mapping[str, Any], *, seed: int = 0, check: Callable[[nn.Module], object] | None = None
) -> nn.Module:
    """The untrained network of an architecture entry, its random weights decided by `seed` alone.

    Args:
        config: Type and values.
        seed: Of the weights.
        check: Called with the network without memory for its weights, before there is any.

    Raises:
        ConfigError: An unknown type, or values that the type does not take.
    """
    values = dict(config)
    kind = values.pop("type", None)
    if not isinstance(kind, str) or kind not in NETS:
        raise ConfigError(f"architecture type must be one of {', '.join(NETS)}; got {kind!r}.")
    with initial_weights(seed):
        try:
            with torch.device("meta"):
                net = NETS[kind](**values)  # shapes alone, which may be too large for memory
            if check is not None:
                check(net)
            return NETS[kind](**values)
        except UserError:
            raise
        except (TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError, LookupError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"architecture {kind!r} does not take these values: {reason:.200}.") from error


def write_folder(
    folder: str | Path,
    net: nn.Module,
    config: Mapping[str, Any],
    *,
    card: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
    finish: Finish | None = None,
) -> None:
    """Write weights, `config.json`, `card.json` and what `finish` adds to a temporary folder that is then renamed."""
    weights = {key: _stored(value, dtype) for key, value in net.state_dict().items()}
    with files.atomic_dir(Path(folder)) as temporary:
        save_file(weights, temporary / WEIGHTS)
        files.write_json(temporary / CONFIG, dict(config))
        files.write_json(temporary / CARD, dict(card))
        if finish is not None:
            finish(temporary)


def read_folder(folder: str | Path, schema: str) -> tuple[nn.Module, dict[str, Any]]:
    """The float32 network, weights filled in, and the content of `config.json`.

    Raises:
        DataError: A missing, truncated or foreign file, or weights that do not fit the architecture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"no model folder at {folder}; give a folder with {WEIGHTS} and {CONFIG}.")
    config = files.read_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("schema") != schema:
        found = config.get("schema") if isinstance(config, dict) else type(config).__name__
        raise DataError(f"{folder / CONFIG} must have schema {schema!r}; got {found!r}.")
    if not isinstance(config.get("architecture"), dict):
        raise DataError(f"{folder / CONFIG} lacks its architecture; save the model again.")
    weights = read_weights(folder / WEIGHTS)
    try:
        net = build(
            config["architecture"], check=lambda net: require_fit(net, weights, source=folder / WEIGHTS)
        )
    except ConfigError as error:
        raise DataError(f"{folder / CONFIG}: {error}") from error
    fill(net, weights, source=folder / WEIGHTS)
    return net, config


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, floating ones as float32.

    Raises:
        DataError: A file that is missing, truncated or of another format.
    """
    try:
        weights = load_file(path)
    except FileNotFoundError:
        raise DataError(
            f"no weights at {path}; the model folder is incomplete, copy or save it again."
        ) from None
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{path} is not a readable safetensors file ({error}); copy or save it again."
        ) from error
    return {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}


def fill(
    net: nn.Module, weights: Mapping[str, Tensor], *, source: Path, may_lack: tuple[str, ...] = ()
) -> None:
    """Load weights into a network, naming what does not fit.

    Args:
        net: Changed in place.
        weights: By name.
        source: What errors name.
        may_lack: Prefixes of the network's names for which there may be no weights; those stay as they are.

    Raises:
        DataError: Names or shapes that differ from the network's.
    """
    kept = require_fit(net, weights, source=source, may_lack=may_lack)
    net.load_state_dict({**kept, **weights})


def require_fit(
    net: nn.Module, weights: Mapping[str, Tensor], *, source: Path, may_lack: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Raise DataError where `fill` would; returns the network's own tensors that would stay."""
    own = net.state_dict()
    kept = {key: value for key, value in own.items() if key.startswith(may_lack) and key not in weights}
    absent, unknown = sorted(own.keys() - weights.keys() - kept.keys()), sorted(weights.keys() - own.keys())
    unlike = [key for key in own if key in weights and own[key].shape != weights[key].shape]
    if absent or unknown or unlike:
        raise DataError(
            f"{source} does not fit the architecture of its config.json: {len(absent)} tensors missing, "
            f"{len(unknown)} unknown, {len(unlike)} of another shape "
            f"(first: {(absent + unknown + unlike)[0]})."
        )
    return kept


def _stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous CPU copy in the storage dtype."""
    value = value.detach().to("cpu", memory_format=torch.contiguous_format).contiguous()
    return value.to(dtype) if value.is_floating_point() else value
