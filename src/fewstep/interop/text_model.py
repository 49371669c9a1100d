"""Text-to-image pipelines that diffusers has saved, as models: prompts are their conditions, guidance stays theirs."""

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep import files
from fewstep.checks import ConfigError, DataError, UserError
from fewstep.data.prompts import ENTRIES, prompts_of
from fewstep.diffusion.condition import Condition, Stored
from fewstep.diffusion.denoiser import Model
from fewstep.interop.asking import PROBE, Asked
from fewstep.interop.diffusers_model import _FAILS, INDEX, _Scheduler, _weights, require_diffusers

LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder", "watermark")
"""Parts that are loaded without: they change finished images, or take images."""
DISTILLED = ("LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler", "SCMScheduler")
"""Schedulers of networks that jump to the data and draw noise between: no ODE, hence no plan."""
SETTINGS = ("dtype", "lora", "lora_scale")
"""Keys of a call that say how the pipeline is loaded, beside the arguments of its call."""
OURS = frozenset({
    "prompt", "prompt_2", "prompt_3", "num_inference_steps", "timesteps", "sigmas", "latents", "generator",
    "output_type", "return_dict", "num_images_per_prompt", "callback", "callback_on_step_end", "callback_steps",
    "callback_on_step_end_tensor_inputs", "eta", "denoising_end", "prompt_embeds",
})  # fmt: skip
"""Arguments that sampling itself sets."""
STEADY = frozenset({
    "guidance_scale", "true_cfg_scale", "negative_prompt", "negative_prompt_2", "negative_prompt_3", "height", "width",
    "guidance_rescale", "max_sequence_length", "clean_caption", "use_resolution_binning", "clip_skip",
    "complex_human_instruction", "original_size", "target_size", "crops_coords_top_left", "pag_scale",
})  # fmt: skip
"""Arguments that act alike at every step."""
COUNTED = 1e-3  # of the output's standard deviation: more is guidance by the number of the step
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_POINTER = b"version https://git-lfs"
_NO_WORDS = {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"}
_PLACEHOLDER = re.compile(r"<[^<>\s]+>")


@dataclass(frozen=True)
class TextFunction:
    """fn of such a model: (x_t, t, condition) -> what the pipeline hands to its scheduler."""

    asked: Asked
    time_input: Callable[[Tensor], Tensor]

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """(B, *shape), at one time for all images."""
        if t.ndim != 1:
            raise ConfigError("A text-to-image pipeline takes one time for a whole image, not one a pixel.")
        return self.asked(x_t, self.time_input(t[0]), prompts_of(condition))


def load_text_pipeline(
    path: str | Path,
    *,
    call: str | Path | Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
) -> Model:
    """Read a text-to-image pipeline; no network access, no pickled weights, no code from the folder.

    Args:
        path: the folder of the whole pipeline.
        call: arguments of the pipeline's call, such as guidance_scale, negative_prompt, height and width, and
            `SETTINGS`; or the YAML file that holds them.
        device: of the weights.

    Returns:
        A model whose condition is a prompt, `fewstep.data.prompts`; none are bound yet. Its fingerprint covers weights,
        tokenizers, dtype and call.

    Raises:
        ConfigError: a pipeline, scheduler or argument that cannot be sampled here. DataError: files that are missing,
            damaged, or pickled.
    """
    folder = Path(path)
    given = read_call(call)
    settings = {name: given.pop(name) for name in SETTINGS if name in given}
    dtype = settings.get("dtype", "float32")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype of the call must be one of {', '.join(DTYPES)}; got {dtype!r}.")
    parts = require_parts(folder)
    pipe = read_pipeline(folder, parts, DTYPES[dtype])
    lora = None if settings.get("lora") is None else _with_lora(pipe, settings)
    hashes = {p.relative_to(folder).as_posix(): files.sha256_file(p) for p in _made_of(folder, parts)}
    identity = {"files": hashes, "dtype": dtype, "call": given, "lora": lora}
    model = pipeline_model(
        pipe.to(device),
        given,
        name=folder.resolve().name,
        fingerprint=files.sha256_text(files.canonical_json(identity)),
    )
    return replace(model, call={**given, **settings, "pipeline": type(pipe).__name__})


def pipeline_model(
    pipe: Any,
    call: Mapping[str, Any] | None = None,
    *,
    name: str = "pipeline",
    fingerprint: str | None = None,
) -> Model:
    """A pipeline in memory as a model; it is as before after each use.
    Raises: ConfigError, DataError: as in `load_text_pipeline`.
    """
    scheduler = _Scheduler(pipe.scheduler, f"{name} has a {type(pipe.scheduler).__name__}", _OTHER)
    require_ode(pipe)
    require_arguments(pipe, call or {})
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    try:
        asked = Asked(pipe, call or {})
    except UserError:
        raise
    except _FAILS as error:
        reason = " ".join(str(error).split())
        said = ", ".join(f"{key}={value!r}" for key, value in (call or {}).items()) or "no arguments"
        raise ConfigError(
            f"{type(pipe).__name__} must run with {said}, but fails ({reason:.300}); change --call."
        ) from error
    schedule = scheduler.schedule()
    if (call or {}).keys() - STEADY:
        _require_steady(asked, call or {})
    return Model(
        TextFunction(asked, schedule.time_input),
        schedule=schedule,
        prediction=scheduler.prediction(),
        shape=asked.shape,
        conditions=Stored(entries=ENTRIES),
        fingerprint=fingerprint,
        name=name,
        net=asked.net,
        decode=asked.decode,
        rows=asked.rows,
        call=dict(call or {}),
        one_time=True,
    )


_OTHER = "name a pipeline with the scheduler that it was trained with"


def read_call(call: str | Path | Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments of a call, from a YAML file or as they are.
    Raises: ConfigError: no file of plain values by name.
    """
    if call is None:
        return {}
    if not isinstance(call, Mapping):
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError

        try:
            call = YAML(typ="safe", pure=True).load(Path(call).read_text(encoding="utf-8"))
        except (OSError, YAMLError, ValueError) as error:
            raise ConfigError(
                f"--call must be a YAML file, but: {' '.join(str(error).split()):.200}"
            ) from None
    if not isinstance(call, Mapping) or not all(
        isinstance(key, str) and _is_plain(v) for key, v in call.items()
    ):
        raise ConfigError(
            "--call must hold arguments of the pipeline by name, numbers, texts or lists of them, such as "
            f"guidance_scale: 5.0; got {call!r:.80}."
        )
    return dict(call)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return (
        value is None
        or isinstance(value, str | bool | int)
        or (isinstance(value, float) and math.isfinite(value))
    )


# Files


def is_text_pipeline(folder: Path) -> bool:
    """Whether a folder is of a pipeline whose call takes a prompt."""
    index = files.object_or_empty(folder / INDEX)
    kind = _class_of(index)
    return kind is not None and "prompt" in inspect.signature(kind.__call__).parameters


def _class_of(index: Mapping[str, Any]) -> Any:
    name = index.get("_class_name")
    diffusers = require_diffusers()
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    return kind if isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline) else None


def require_parts(folder: Path) -> dict[str, Path]:
    """The folders of the parts that are loaded, by name.

    Raises:
        ConfigError: a part is of another library. DataError: a part is missing, pickled, cut, or a tokenizer without
            vocabulary.
    """
    index = files.read_json(folder / INDEX, constants=True)
    parts = {}
    for name, said in index.items():
        if name in LEFT_OUT or not isinstance(said, list) or said == [None, None] or name.startswith("_"):
            continue
        if len(said) != 2 or said[0] not in ("diffusers", "transformers"):
            raise ConfigError(
                f"{folder / INDEX}: {name} must be a class of diffusers or transformers, as no code of a folder is "
                f"run; got {said}."
            )
        if not (folder / name).is_dir():
            raise DataError(
                f"{folder / name} must be there, as {INDEX} says, but is not; download the whole pipeline, which may "
                "need the licence of its page."
            )
        parts[name] = folder / name
    for part in parts.values():
        _require_files(part)
    return parts


def _require_files(part: Path) -> None:
    names = {path.name for path in part.iterdir()}
    weights = sorted(part.glob("*.safetensors"))
    pickled = sorted(name for name in names if name.endswith((".bin", ".pt", ".ckpt")))
    if pickled and not weights:
        raise DataError(
            f"{part} must hold safetensors, as pickled weights are never opened; got {', '.join(pickled)}; save it "
            "again with save_pretrained(..., safe_serialization=True)."
        )
    for file in weights:
        with file.open("rb") as opened:
            if opened.read(len(_POINTER)) == _POINTER:
                raise DataError(
                    f"{file} must be weights, but is a pointer of git-lfs; fetch it with git lfs pull."
                )
    if part.name.startswith("tokenizer") and not names - _NO_WORDS:
        raise DataError(
            f"{part} must hold a vocabulary, as all prompts mean the same without; got {', '.join(sorted(names))}; "
            "copy its files again."
        )


def read_pipeline(folder: Path, parts: Mapping[str, Path], dtype: torch.dtype) -> Any:
    """The pipeline on the CPU, without safety checker and watermark.
    Raises: DataError: reading it fails.
    """
    kind = _class_of(files.read_json(folder / INDEX, constants=True))
    taken = inspect.signature(kind.__init__).parameters
    without: dict[str, Any] = {name: None for name in LEFT_OUT if name in taken}
    without |= {name: False for name in ("requires_safety_checker", "add_watermarker") if name in taken}
    net = next(part for name, part in parts.items() if name in ("transformer", "unet", "prior"))
    try:
        pipe = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            torch_dtype=dtype,
            variant=_weights(net).variant,
            **without,
        )
    except _FAILS as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{folder} must be a complete {kind.__name__}, but reading it fails ({reason:.300}); copy it again."
        ) from error
    return pipe


def _made_of(folder: Path, parts: Mapping[str, Path]) -> list[Path]:
    """The files that decide what a pipeline makes: weights, and all of tokenizers."""
    return [
        file
        for name, part in sorted(parts.items())
        for file in sorted(part.rglob("*"))
        if file.is_file() and (file.suffix == ".safetensors" or name.startswith("tokenizer"))
    ]


def _with_lora(pipe: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Load and fuse a LoRA; its hash and scale."""
    path, scale = Path(str(settings["lora"])), settings.get("lora_scale", 1.0)
    found = sorted(path.glob("*.safetensors")) if path.is_dir() else [path] if path.is_file() else []
    if len(found) != 1 or found[0].suffix != ".safetensors":
        raise DataError(f"lora of the call must be one safetensors file, or a folder with one; got {path}.")
    if not hasattr(pipe, "load_lora_weights"):
        raise ConfigError(f"{type(pipe).__name__} takes no LoRA; leave lora out of the call.")
    try:
        pipe.load_lora_weights(found[0].parent, weight_name=found[0].name, local_files_only=True)
        pipe.fuse_lora(lora_scale=scale)
    except _FAILS as error:
        raise ConfigError(
            f"The LoRA {found[0]} must fit the pipeline, but: {' '.join(str(error).split()):.200}"
        ) from error
    return {"sha256": files.sha256_file(found[0]), "scale": scale}


# What is refused


def require_ode(pipe: Any) -> None:
    """Raise ConfigError where the network was distilled to jumps, which no solver of an ODE continues."""
    name = type(pipe.scheduler).__name__
    net = next((pipe.components.get(part) for part in ("unet", "transformer")), None)
    distilled = getattr(getattr(net, "config", None), "time_cond_proj_dim", None) is not None
    if name in DISTILLED or type(pipe).__name__.startswith("LatentConsistency") or distilled:
        raise ConfigError(
            f"A plan solves the ODE of a diffusion model, but the network of this pipeline ({name}) was distilled to "
            "jumps to the data (LCM, TCD, SCM); take the model that it was distilled from."
        )


def require_arguments(pipe: Any, call: Mapping[str, Any]) -> None:
    """Raise ConfigError where a call names what the pipeline does not take, or what sampling sets."""
    taken = set(inspect.signature(type(pipe).__call__).parameters) - {"self"}
    for name in call:
        if name in OURS or name.endswith(("_embeds", "_embeds_2", "_attention_mask")):
            raise ConfigError(f"--call must not set {name}, which sampling sets; take it out.")
        if name not in taken:
            allowed = ", ".join(sorted(taken - OURS))
            raise ConfigError(
                f"--call must hold arguments of {type(pipe).__name__} ({allowed}) or {', '.join(SETTINGS)}; "
                f"got {name!r}."
            )


def _require_steady(asked: Asked, call: Mapping[str, Any]) -> None:
    from fewstep.rng import ImageNoise

    x = ImageNoise([0], asked.shape)().to(next(asked.net.parameters()))
    if asked.counts_steps(x, [PROBE]) > COUNTED:
        raise ConfigError(
            "Guidance must be the same at every step, as plans of few calls number their steps otherwise, but one of "
            f"{', '.join(sorted(call.keys() - STEADY))} switches it by the number of the step; take it out of --call."
        )


def require_whole(asked: Asked, prompts: Sequence[str]) -> None:
    """Raise DataError where a prompt is cut off by every tokenizer, or holds a placeholder that none knows."""
    tokenizers = tokenizers_of(asked.pipe, asked.call)
    for row, prompt in enumerate(prompts, 1):
        for token in _PLACEHOLDER.findall(prompt):
            if tokenizers and not any(token in t.get_vocab() for t, _ in tokenizers.values()):
                raise DataError(
                    f"Prompt {row} has {token}, which no tokenizer of the pipeline knows, so it would be split into "
                    "letters; load the textual inversion into the pipeline and save it, or take it out."
                )
        counts = {name: (len(t(prompt).input_ids), limit) for name, (t, limit) in tokenizers.items()}
        if counts and all(count > limit for count, limit in counts.values()):
            count, limit = max(counts.values(), key=lambda pair: pair[1])
            raise DataError(
                f"Prompt {row} must be at most {limit} tokens, or its end is cut off; {prompt[:50]!r}... has {count}; "
                "shorten it, or raise max_sequence_length in --call."
            )


def tokenizers_of(pipe: Any, call: Mapping[str, Any]) -> dict[str, tuple[Any, int]]:
    """The tokenizers by name, each with the most tokens that the pipeline reads of a prompt."""
    default = inspect.signature(type(pipe).__call__).parameters.get("max_sequence_length")
    longest = call.get("max_sequence_length", None if default is None else default.default)
    found = {}
    for name, part in pipe.components.items():
        if name.startswith("tokenizer") and part is not None and callable(part):
            own = int(min(part.model_max_length, 1_000_000))
            clip = "CLIP" in type(part).__name__
            found[name] = (part, own if clip or not isinstance(longest, int) else longest)
    return found


def with_prompts(model: Model, prompts: Condition) -> Model:
    """The model with prompts bound; text encoders run once for each, and leave the memory of an accelerator.
    Raises: DataError: a prompt is cut off, or holds an unknown placeholder.
    """
    fn, stored = model.fn, model.conditions
    assert isinstance(fn, TextFunction) and isinstance(stored, Stored)
    texts = prompts_of(prompts)
    require_whole(fn.asked, texts)
    if model.device.type != "cpu":
        fn.asked.remember(texts)
        fn.asked.drop_encoders()
    return replace(model, conditions=stored.bind(prompts))
