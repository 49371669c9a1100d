"""CLIP score from a local folder of transformers: how near an image and its prompt are in CLIP's space."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep import files
from fewstep.checks import ConfigError, DataError
from fewstep.interop.diffusers_model import _FAILS

BATCH = 32


class ClipScore:
    """100 max(cos, 0) of the embeddings of image and text [hessel2021clipscore].

    Attributes: identity: hash of the weights, as results name them.
    """

    def __init__(self, folder: str | Path, *, device: str | torch.device = "cpu") -> None:
        """Read a CLIPModel, its tokenizer and its image processor.
        Raises: ConfigError: transformers is missing. DataError: no such model there.
        """
        try:
            import transformers
        except ImportError as error:
            raise ConfigError(
                f"CLIP needs transformers ({error}); install it with pip install 'fewstep[diffusers]'."
            ) from None
        folder = Path(folder)
        weights = sorted(folder.glob("*.safetensors"))
        if not weights:
            raise DataError(f"{folder} must be a folder of a CLIPModel with safetensors weights; got none.")
        try:
            model: Any = transformers.CLIPModel.from_pretrained(folder, local_files_only=True)
            self._model = model.to(device).eval()
            self._tokenizer: Any = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except _FAILS as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{folder} must be a complete CLIPModel, but: {reason:.200}") from error
        hashes = [files.sha256_file(path) for path in weights]
        self.identity = hashes[0] if len(hashes) == 1 else files.sha256_text(files.canonical_json(hashes))
        self._device = device

    def __call__(self, images: NDArray[np.uint8], prompts: Sequence[str]) -> NDArray[np.float64]:
        """Scores (N,) of images (N, H, W, C) and the prompt of each."""
        parts = [
            self._scores(images[i : i + BATCH], list(prompts[i : i + BATCH]))
            for i in range(0, len(images), BATCH)
        ]
        return np.concatenate(parts)

    @torch.inference_mode()
    def _scores(self, images: NDArray[np.uint8], prompts: list[str]) -> NDArray[np.float64]:
        side = self._model.config.vision_config.image_size
        pixels = (
            torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().to(self._device) / 255
        )
        pixels = torch.nn.functional.interpolate(
            pixels.expand(-1, 3, -1, -1), (side, side), mode="bicubic", antialias=True
        ).clamp(0, 1)
        mean, std = (torch.tensor(v, device=self._device).reshape(3, 1, 1) for v in (_MEAN, _STD))
        tokens = self._tokenizer(prompts, padding=True, truncation=True, return_tensors="pt").to(self._device)
        found = self._model(pixel_values=(pixels - mean) / std, **tokens)
        cosine = torch.nn.functional.cosine_similarity(found.image_embeds, found.text_embeds)
        scores: NDArray[np.float64] = (100 * cosine.clamp(min=0)).double().cpu().numpy()
        return scores


# of the images that CLIP was trained on, in [0, 1] [radford2021clip]
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
