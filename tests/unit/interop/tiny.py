"""The smallest models that diffusers can save, with random weights."""

from pathlib import Path

import diffusers
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    LDMPipeline,
    UNet2DModel,
    VQModel,
)

from fewstep.rng import generator, initial_weights

diffusers.utils.logging.disable_progress_bar()

N_CLASSES = 1000  # DiTPipeline's label for no class is written out


def unet(**changes):
    values = {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    with initial_weights(0):
        return UNet2DModel(**values | changes).eval()


def vq():
    with initial_weights(1):
        return VQModel(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            num_vq_embeddings=16,
        ).eval()


def vae(**changes):
    with initial_weights(1):
        return AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=4,
            sample_size=16,
            **changes,
        ).eval()


def dit():
    """Its second half of channels is a learned variance; its last layer is not zero, as a new one's would be."""
    with initial_weights(0):
        return DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=1,
            sample_size=8,
            num_embeds_ada_norm=N_CLASSES,
            norm_num_groups=4,
        ).eval()


def pipeline(kind):
    """A pipeline that samples without clipping; kind: ddpm, ddim, ldm or dit.

    Read as noise, what untrained networks say gives images far outside [-1, 1], where all are equal.
    """
    if kind == "ddpm":
        scheduler = DDPMScheduler(prediction_type="sample", variance_type="learned_range", clip_sample=False)
        made = DDPMPipeline(unet(out_channels=6), scheduler)
    elif kind == "ddim":
        made = DDIMPipeline(unet(), DDIMScheduler(prediction_type="v_prediction", clip_sample=False))
    elif kind == "ldm":
        latent = {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195}
        scheduler = DDIMScheduler(**latent, prediction_type="v_prediction", clip_sample=False)
        made = LDMPipeline(vq(), unet(), scheduler)
    else:
        made = DiTPipeline(dit(), vae(), DDIMScheduler(clip_sample=False))
    made.set_progress_bar_config(disable=True)
    return made


def save(kind, folder: Path) -> Path:
    pipeline(kind).save_pretrained(folder)
    return folder


def generators(n):
    """As many streams as images, those of fewstep's seeds 0, 1, ..."""
    return [generator(seed) for seed in range(n)]


def as_pipelines_give(images):
    """From [-1, 1], (B, C, H, W), to what pipelines call np: (B, H, W, C) in [0, 1]."""
    return (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
