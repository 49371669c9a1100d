"""Models that diffusers has saved, read from disk: no network access, no pickled weights, no code from the folder.

These are networks that are called directly: their pipelines take no prompts, draw their noise where nobody can hand out
a state, and have no guidance beside that for classes, which is applied here. `text_model` has those that guide by
themselves.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fewstep import files
from fewstep.checks import ConfigError, DataError, UserError
from fewstep.diffusion.condition import LABEL, Classes, Condition
from fewstep.diffusion.denoiser import Model
from fewstep.diffusion.schedule import DDPMTable, Flow, Schedule
from fewstep.interop import diffusers_roles
from fewstep.nets.folder import as_model
from fewstep.nets.roles import Role
from fewstep.rng import initial_weights

INDEX, CONFIG, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
STEM = "diffusion_pytorch_model"
WEIGHTS = f"{STEM}.safetensors"
_VARIANTS = re.compile(
    rf"{STEM}\.(?:(?P<whole>[^.]+)(?<!-of-\d{{5}})\.safetensors|safetensors\.index\.(?P<parts>[^.]+)\.json)"
)
"""The file of a variant such as fp16, or the list of its several files."""

# the folders of the network and, of latent models, of the decoder
PIPELINES: dict[str, tuple[str, str | None]] = {
    "DDPMPipeline": ("unet", None),
    "DDIMPipeline": ("unet", None),
    "LDMPipeline": ("unet", "vqvae"),
    "DiTPipeline": ("transformer", "vae"),
}
# class in config.json -> class that reads it; DiT was saved under a more general name once
NETWORKS = {
    "UNet2DModel": "UNet2DModel",
    "DiTTransformer2DModel": "DiTTransformer2DModel",
    "Transformer2DModel": "DiTTransformer2DModel",
}
DECODERS = {"VQModel": "VQModel", "AutoencoderKL": "AutoencoderKL"}
# what libraries raise on values that they did not expect
_FAILS = (
    OSError, ValueError, TypeError, RuntimeError, AttributeError, NameError, LookupError, ArithmeticError,
    AssertionError, SafetensorError,
)  # fmt: skip
PREDICTION_TYPES = {"epsilon": "eps", "v_prediction": "v", "sample": "x0", "flow_prediction": "u"}
TABLES: dict[str, Callable[[Any], DDPMTable]] = {
    "linear": lambda of: DDPMTable.linear(of.beta_start, of.beta_end, of.num_train_timesteps),
    "scaled_linear": lambda of: DDPMTable.scaled_linear(of.beta_start, of.beta_end, of.num_train_timesteps),
    "squaredcos_cap_v2": lambda of: DDPMTable.cosine(of.num_train_timesteps),
}


class Network(nn.Module):
    """A network of diffusers, called as those of this project: (x_t, timestep, condition), without learned variance."""

    def __init__(self, net: nn.Module, n_classes: int) -> None:
        super().__init__()
        self.net, self.conditions = net, Classes(n_classes) if n_classes else None

    def forward(self, x_t: Tensor, k: Tensor, condition: Condition | None = None) -> Tensor:
        """The first half of the channels where the second is a learned variance."""
        label = None if condition is None else condition.values[LABEL]
        output: Tensor = self.net(x_t, k, class_labels=label, return_dict=False)[0]
        return output[:, : x_t.shape[1]]

    def roles(self) -> dict[str, Role]:
        """The role of each layer, as far as it is known."""
        return {f"net.{name}": role for name, role in diffusers_roles.roles(self.net).items()}

    def units(self) -> tuple[str, ...]:
        """The blocks, by name."""
        return tuple(f"net.{name}" for name in diffusers_roles.units(self.net))

    def temporal(self, time: Tensor, condition: Condition | None = None) -> list[Tensor]:
        """What blocks see of the time and the class, (B, D_i) each."""
        label = None if condition is None else condition.values[LABEL]
        return diffusers_roles.temporal(self.net, time, label)


class Parts(NamedTuple):
    """Where the parts of a model lie."""

    network: Path
    decoder: Path | None
    scheduler: Path | None


def is_diffusers(path: str | Path) -> bool:
    """Whether diffusers has saved this folder."""
    folder = Path(path)
    if (folder / INDEX).exists():
        return True
    config = files.read_json(folder / CONFIG, constants=True) if (folder / CONFIG).exists() else {}
    return isinstance(config, dict) and "_class_name" in config


def load_diffusers(
    path: str | Path,
    *,
    prediction: str | None = None,
    schedule: Schedule | None = None,
    device: str | torch.device = "cpu",
) -> Model:
    """Read a pipeline of `PIPELINES`, or the folder of a UNet2DModel with a scheduler's configuration beside it.

    Args:
        path: a folder; the hub is never contacted.
        prediction: how the output is read, a key of `PREDICTIONS`; None for what the scheduler says.
        schedule: noise schedule of the training; None for what the scheduler says.
        device: of the weights.

    Returns:
        A model in evaluation mode, with `decode` where it works on latents. DiT's last label is no class.

    Raises:
        ConfigError: diffusers is missing, or the pipeline, network or scheduler is of a kind that cannot be sampled.
        DataError: a file is missing or damaged, or there are pickled weights only.
    """
    require_diffusers()
    parts = _parts(Path(path))
    if prediction is None or schedule is None:
        scheduler = _Scheduler.read(parts)
        prediction = scheduler.prediction() if prediction is None else prediction
        schedule = scheduler.schedule() if schedule is None else schedule
    net = load_part(parts.network, NETWORKS)
    shape, n_classes = _form(net.config, parts)
    model = as_model(
        Network(net, n_classes).to(device),
        schedule=schedule,
        prediction=prediction,
        shape=shape,
        name=Path(path).resolve().name,
        fingerprint=_fingerprint(parts),
    )
    if parts.decoder is None:
        return model
    return replace(model, decode=_decode(load_part(parts.decoder, DECODERS).to(device)))


def require_diffusers() -> Any:
    """The library, or ConfigError with how to get it."""
    try:
        import diffusers
    except ImportError as error:
        raise ConfigError(
            f"A model of diffusers needs diffusers ({error}); install it with pip install 'fewstep[diffusers]'."
        ) from None
    return diffusers


# Parts


def _parts(folder: Path) -> Parts:
    if not (folder / INDEX).exists():
        return _bare(folder)
    index = files.read_json(folder / INDEX, constants=True)
    kind = index.get("_class_name") if isinstance(index, dict) else None
    if not isinstance(kind, str) or kind not in PIPELINES:
        raise ConfigError(f"{folder / INDEX} must be of one of {', '.join(PIPELINES)}; got {kind!r}.")
    for name in filter(None, PIPELINES[kind]):
        said = index.get(name)
        if not isinstance(said, list) or said[:1] != ["diffusers"]:
            raise ConfigError(
                f"{folder / INDEX}: {name} must be a class of diffusers, as no code of a folder is run; got {said}."
            )
    network, decoder = PIPELINES[kind]
    return Parts(
        _part(folder, network),
        None if decoder is None else _part(folder, decoder),
        _first(folder / "scheduler" / SCHEDULER, folder / SCHEDULER),
    )


def _bare(folder: Path) -> Parts:
    if _class_name(folder) in NETWORKS and (folder.parent / INDEX).exists():
        # a network alone does not say whether a decoder belongs to it
        return _parts(folder.parent)._replace(network=folder)
    if _class_name(folder) != "UNet2DModel":
        raise ConfigError(
            f"{folder} must be a UNet2DModel, or a pipeline with {INDEX}; got a {_class_name(folder)}; "
            "name the folder of the whole pipeline."
        )
    places = (folder, folder / "scheduler", folder.parent / "scheduler", folder.parent)
    return Parts(folder, None, _first(*(place / SCHEDULER for place in places)))


def _part(folder: Path, name: str) -> Path:
    """The part's own folder; early repositories have the network at the top."""
    return folder / name if (folder / name).is_dir() else folder


def _first(*paths: Path) -> Path | None:
    return next((path for path in paths if path.exists()), None)


def _class_name(folder: Path) -> str:
    config = files.read_json(folder / CONFIG, constants=True)
    return str(config.get("_class_name") if isinstance(config, dict) else None)


# Networks


def load_part(folder: Path, classes: dict[str, str]) -> Any:
    """The frozen network of a folder whose class is among these.
    Raises: ConfigError: it is of another class. DataError: a file is missing or damaged, or the weights are pickled.
    """
    name = _class_name(folder)
    if name not in classes:
        raise ConfigError(f"{folder / CONFIG} must be of one of {', '.join(classes)}; got {name!r}.")
    variant = _weights(folder).variant
    try:
        with initial_weights(0):
            net, found = getattr(require_diffusers(), classes[name]).from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                variant=variant,
                low_cpu_mem_usage=False,
                torch_dtype=torch.float32,
                output_loading_info=True,
            )
    except _FAILS as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{folder} must be a complete {name}, but reading it fails ({reason:.200}); copy or save it again."
        ) from error
    missing, unknown = found["missing_keys"], found["unexpected_keys"]
    if missing or unknown:
        raise DataError(
            f"{folder} must hold the tensors of its {CONFIG}, but {len(missing)} are missing and {len(unknown)} "
            f"unknown (first: {[*missing, *unknown][0]}); copy or save it again."
        )
    return net.eval().requires_grad_(False)


class _Weights(NamedTuple):
    """The safetensors files of a part, one or many, and the variant that they are of, None for the usual one."""

    files: list[Path]
    variant: str | None


def _weights(folder: Path) -> _Weights:
    """The usual weights, or those of the only variant that there is."""
    names = _names(folder)
    variants = {match["whole"] or match["parts"] for match in map(_VARIANTS.fullmatch, names) if match}
    there = {variant: _of_variant(folder, variant) for variant in (None, *sorted(variants))}
    found = [_Weights(paths, variant) for variant, paths in there.items() if paths]
    if found and (found[0].variant is None or len(found) == 1):
        return found[0]
    if found:
        raise DataError(
            f"{folder} must hold {WEIGHTS} or one variant of it, but holds {', '.join(sorted(variants))}; copy the "
            f"folder, and keep one of them there, with {CONFIG}."
        )
    others = [name for name in names if name.endswith((".bin", ".safetensors", ".pt", ".ckpt"))]
    raise DataError(
        f"{folder} must hold {WEIGHTS}, as pickled weights are never opened; got {', '.join(others) or 'no weights'}; "
        "save it again with save_pretrained(..., safe_serialization=True)."
    )


def _of_variant(folder: Path, variant: str | None) -> list[Path]:
    infix = "" if variant is None else f".{variant}"
    if (whole := folder / f"{STEM}{infix}.safetensors").exists():
        return [whole]
    listed = (folder / f"{WEIGHTS}.index{infix}.json").exists()
    return sorted(folder.glob(f"{STEM}{infix}-*-of-*.safetensors")) if listed else []


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _fingerprint(parts: Parts) -> str:
    """Sha256 of the weights file, or of the hashes of several."""
    return fingerprint_of(*(part for part in (parts.network, parts.decoder) if part is not None))


def fingerprint_of(*parts: Path) -> str:
    """Sha256 of the only weights file of these folders, or of the hashes of several."""
    hashes = [files.sha256_file(path) for part in parts for path in _weights(part).files]
    return hashes[0] if len(hashes) == 1 else files.sha256_text(files.canonical_json(hashes))


def _form(config: Any, parts: Parts) -> tuple[tuple[int, int, int], int]:
    """The shape of x_t, and the number of classes."""
    place, size = parts.network / CONFIG, config.sample_size
    if size is None:
        raise ConfigError(f"{place}: sample_size must be the side of an image, got null; write it there.")
    n_out = config.in_channels if config.out_channels is None else config.out_channels
    if n_out not in (config.in_channels, 2 * config.in_channels):
        raise ConfigError(
            f"{place}: out_channels must be in_channels, or twice that with a learned variance; "
            f"got {config.in_channels} in and {n_out} out."
        )
    sides = [size, size] if isinstance(size, int) else size
    if not (
        isinstance(sides, list | tuple)
        and len(sides) == 2
        and all(isinstance(n, int) and n > 0 for n in sides)
    ):
        raise ConfigError(f"{place}: sample_size must be one side of an image, or two; got {size!r:.60}.")
    height, width = sides
    n_classes = config.get("num_embeds_ada_norm") or 0
    if not n_classes:
        _check_unet(config, place)
    return (config.in_channels, height, width), n_classes


def _check_unet(config: Any, place: Path) -> None:
    if config.time_embedding_type != "positional":
        raise ConfigError(
            f"{place}: time_embedding_type must be positional, which takes times between the rows; "
            f"got {config.time_embedding_type!r}."
        )
    if config.class_embed_type is not None or config.num_class_embeds is not None:
        raise ConfigError(
            f"{place}: a UNet2DModel must have no class embedding, as it names no label for no class; "
            f"got {config.num_class_embeds or config.class_embed_type!r}."
        )


def _decode(decoder: Any) -> Callable[[Tensor], Tensor]:
    config = decoder.config
    shift, scale = config.get("shift_factor") or 0.0, config.get("scaling_factor")
    if not all(isinstance(value, int | float) for value in (shift, scale)) or not scale:
        raise ConfigError(
            f"The decoder's scaling_factor and shift_factor must be numbers, the first not 0; got {scale!r:.60} and "
            f"{shift!r:.60}."
        )

    def decode(latent: Tensor) -> Tensor:
        image: Tensor = decoder.decode(latent / scale + shift, return_dict=False)[0]
        return image

    return decode


# Schedulers


_OTHER_SCHEDULER = (
    "put the configuration of the scheduler that it was trained with there, such as a DDPMScheduler's"
)


class _Scheduler(NamedTuple):
    """A scheduler as diffusers reads it, None where there is none; what to call it, and what to do about it."""

    value: Any
    said: str
    remedy: str

    @classmethod
    def read(cls, parts: Parts) -> "_Scheduler":
        if parts.scheduler is None:
            return cls(
                None,
                f"{parts.network} has no {SCHEDULER} beside it",
                f"name the folder of the whole pipeline, with {INDEX}, or copy the pipeline's scheduler/{SCHEDULER} to "
                f"{parts.network.parent / 'scheduler'}",
            )
        config = files.read_json(parts.scheduler, constants=True)
        name = str(config.get("_class_name")) if isinstance(config, dict) else "no object"
        diffusers = require_diffusers()
        kind: Any = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
        known = isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)
        if not known:
            said = f"{parts.scheduler} is of {name}, which is no scheduler of diffusers"
            return cls(None, said, _OTHER_SCHEDULER)
        try:
            return cls(kind.from_config(config), f"{parts.scheduler} is of {name}", _OTHER_SCHEDULER)
        except _FAILS as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"{parts.scheduler} must be a configuration that {name} accepts, but: {reason:.200}"
            ) from None

    @property
    def is_flow(self) -> bool:
        flow = type(self.value).__name__ == "FlowMatchEulerDiscreteScheduler"
        return flow or bool(self.value.config.get("use_flow_sigmas"))

    def prediction(self) -> str:
        said = self.said
        if self.value is not None:
            default = "flow_prediction" if self.is_flow else None
            kind = self.value.config.get("prediction_type", default)
            if isinstance(kind, str) and kind in PREDICTION_TYPES:
                return PREDICTION_TYPES[kind]
            said += f" with prediction_type {kind!r}"
        raise ConfigError(
            f"The prediction of a model must be one of {', '.join(PREDICTION_TYPES)}, but {said}; {self.remedy}; in "
            "Python, pass prediction to load_diffusers."
        )

    def schedule(self) -> Schedule:
        if self.value is not None:
            config = self.value.config
            if self.is_flow:
                if config.num_train_timesteps == 1000 and not config.get("invert_sigmas"):
                    return Flow()
            elif hasattr(self.value, "alphas_cumprod") and config.get("timestep_type") != "continuous":
                try:
                    return self._table()
                except UserError:
                    raise
                except _FAILS as error:
                    raise ConfigError(
                        f"{self.said}, of which no table can be made ({error!s:.100})."
                    ) from None
        raise ConfigError(
            "The noise schedule of a model must be a DDPM table or a flow of 1000 timesteps, "
            f"but {self.said}; {self.remedy}; in Python, pass schedule to load_diffusers."
        )

    def _table(self) -> DDPMTable:
        config = self.value.config
        zero_snr = bool(config.get("rescale_betas_zero_snr"))
        if config.get("trained_betas") is None and not zero_snr and config.beta_schedule in TABLES:
            return TABLES[config.beta_schedule](config)
        rows = self.value.alphas_cumprod.double()
        # with a terminal SNR of zero the last row has no signal, hence no log-SNR
        return DDPMTable(rows[:-1] if zero_snr else rows)
