"""Tiny text-to-image pipelines with random weights, of the classes and the shapes of call that real ones have."""

import functools
import warnings

import diffusers
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from fewstep.rng import generator

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()

PROMPTS = (
    "a photo of an astronaut riding a horse on mars",
    "a bowl of ramen with an egg and spring onions",
    "an empty street in paris early in the morning fog",
    "two cats sleeping on a green sofa",
)
SD_TABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SMALL = {"height": 32, "width": 32, "max_sequence_length": 64}


def seeded(make, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def stirred(make, seed, gain=1.2):
    """Weights that matter: no gate at zero, and outputs that depend on the condition."""
    net, rng = seeded(make, seed), generator(seed)
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim >= 2:
                p.copy_(torch.randn(p.shape, generator=rng) * gain / p[0].numel() ** 0.5)
            elif float(p.abs().sum()) == 0:
                p.copy_(0.12 * torch.randn(p.shape, generator=rng))
    return net


@functools.cache
def clip_vocabulary():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]


def clip_tokenizer():
    vocabulary = {name: k for k, name in enumerate(clip_vocabulary())}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def clip(seed, *, projection=False, hidden=32):
    n = len(clip_vocabulary())
    config = transformers.CLIPTextConfig(
        vocab_size=n, bos_token_id=n - 2, eos_token_id=n - 1, pad_token_id=n - 1, hidden_size=hidden,
        intermediate_size=64, num_attention_heads=4, num_hidden_layers=3, max_position_embeddings=77,
        projection_dim=32, hidden_act="gelu",
    )  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return stirred(lambda: kind(config), seed)


@functools.cache
def _words():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    letters = [" ".join(map(chr, range(97, 123)))]
    tokenizer.train_from_iterator(
        [*PROMPTS, *letters],
        trainers.UnigramTrainer(
            vocab_size=160, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer.to_str()


def t5_tokenizer():
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_words()), pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        model_max_length=64,
    )  # fmt: skip


def t5(seed, *, hidden=32, kind="T5"):
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=200, d_model=hidden, d_kv=8, d_ff=37, num_layers=2, num_heads=4, dropout_rate=0.0,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return stirred(lambda: getattr(transformers, f"{kind}EncoderModel")(config), seed)


def gemma(seed):
    config = transformers.Gemma2Config(
        vocab_size=200, hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=400, pad_token_id=0, eos_token_id=1,
        bos_token_id=2, attn_implementation="eager", query_pre_attn_scalar=16, sliding_window=16,
    )  # fmt: skip
    return stirred(lambda: transformers.Gemma2Model(config), seed)


def vae(scaling=0.18215, *, shift=None, levels=2, flow=False, **more):
    quant = {"use_quant_conv": False, "use_post_quant_conv": False} if flow else {}
    return seeded(
        lambda: diffusers.AutoencoderKL(
            latent_channels=4, block_out_channels=(8,) * levels, layers_per_block=1, norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
            sample_size=32, scaling_factor=scaling, shift_factor=shift, **quant, **more,
        ), 0,
    )  # fmt: skip


def unet(seed, *, loud=6.0, **more):
    options = {
        "sample_size": 16, "in_channels": 4, "out_channels": 4, "layers_per_block": 1,
        "block_out_channels": (16, 32), "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 32, "norm_num_groups": 4,
        "attention_head_dim": 8, **more,
    }  # fmt: skip
    net = seeded(lambda: diffusers.UNet2DConditionModel(**options), seed)
    with torch.no_grad():  # a random network hardly heeds its prompt
        for name, p in net.named_parameters():
            if p.ndim >= 2 and ("attn2" in name or "add_embedding" in name):
                p.mul_(loud if "attn2" in name else loud / 2)
    return net


BARE = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def sd15():
    scheduler = diffusers.PNDMScheduler(
        **SD_TABLE, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False
    )
    return diffusers.StableDiffusionPipeline(
        vae=vae(), text_encoder=clip(0), tokenizer=clip_tokenizer(), unet=unet(1), scheduler=scheduler, **BARE
    )


def sd21():
    scheduler = diffusers.DDIMScheduler(
        **SD_TABLE, prediction_type="v_prediction", steps_offset=1, set_alpha_to_one=False, clip_sample=False
    )
    return diffusers.StableDiffusionPipeline(
        vae=vae(), text_encoder=clip(3), tokenizer=clip_tokenizer(), unet=unet(2, use_linear_projection=True),
        scheduler=scheduler, **BARE,
    )  # fmt: skip


def sdxl(kind="StableDiffusionXLPipeline", **more):
    scheduler = diffusers.EulerDiscreteScheduler(**SD_TABLE, timestep_spacing="leading", steps_offset=1)
    net = unet(
        3, loud=2.0, cross_attention_dim=64, attention_head_dim=(2, 4), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=6 * 8 + 32,
    )  # fmt: skip
    return getattr(diffusers, kind)(
        vae=vae(0.13025, force_upcast=True), text_encoder=clip(1), text_encoder_2=clip(2, projection=True),
        tokenizer=clip_tokenizer(), tokenizer_2=clip_tokenizer(), unet=net, scheduler=scheduler,
        force_zeros_for_empty_prompt=True, add_watermarker=False, **more,
    )  # fmt: skip


def sd3():
    net = stirred(
        lambda: diffusers.SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
            num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=64, pooled_projection_dim=64,
            pos_embed_max_size=16, qk_norm="rms_norm",
        ), 4,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=net, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(1.5305, shift=0.0609, flow=True), text_encoder=clip(5, projection=True),
        text_encoder_2=clip(6, projection=True), text_encoder_3=t5(7, hidden=64), tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(), tokenizer_3=t5_tokenizer(),
    )  # fmt: skip


def dynamic(**more):
    return diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **more)


def flux():
    net = stirred(
        lambda: diffusers.FluxTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        ), 8,
    )  # fmt: skip
    return diffusers.FluxPipeline(
        scheduler=dynamic(shift=3.0), vae=vae(0.3611, shift=0.1159, flow=True), text_encoder=clip(9),
        tokenizer=clip_tokenizer(), text_encoder_2=t5(10), tokenizer_2=t5_tokenizer(), transformer=net,
    )  # fmt: skip


def pixart(kind="PixArtSigmaPipeline"):
    net = stirred(
        lambda: diffusers.PixArtTransformer2DModel(
            sample_size=16, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3,
            caption_channels=32, in_channels=4, cross_attention_dim=24, out_channels=8, attention_bias=True,
            num_embeds_ada_norm=1000, use_additional_conditions=False,
        ), 11,
    )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    return getattr(diffusers, kind)(
        tokenizer=t5_tokenizer(), text_encoder=t5(12), vae=vae(0.13025), transformer=net, scheduler=scheduler
    )


def sana(kind="SanaPipeline", **more):
    net = stirred(
        lambda: diffusers.SanaTransformer2DModel(
            patch_size=1, in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2,
            attention_head_dim=8, num_cross_attention_heads=2, cross_attention_head_dim=8,
            cross_attention_dim=16, caption_channels=32, sample_size=16,
        ), 13,
    )  # fmt: skip
    autoencoder = seeded(
        lambda: diffusers.AutoencoderDC(
            in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_out_channels=(8, 8),
            encoder_block_types=("ResBlock", "EfficientViTBlock"), decoder_block_out_channels=(8, 8),
            decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)), encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
            downsample_block_type="conv", upsample_block_type="interpolate", decoder_norm_types="rms_norm",
            decoder_act_fns="silu", scaling_factor=0.41407,
        ), 13,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return getattr(diffusers, kind)(
        tokenizer=t5_tokenizer(), text_encoder=gemma(14), vae=autoencoder, transformer=net,
        scheduler=scheduler, **more,
    )  # fmt: skip


def auraflow():
    net = stirred(
        lambda: diffusers.AuraFlowTransformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1,
            attention_head_dim=8, num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=32,
            out_channels=4, pos_embed_max_size=256,
        ), 15,
    )  # fmt: skip
    return diffusers.AuraFlowPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(16, kind="UMT5"),
        vae=vae(0.13025),
        transformer=net,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73),
    )


def lumina2():
    net = stirred(
        lambda: diffusers.Lumina2Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, hidden_size=16, num_layers=2, num_refiner_layers=1,
            num_attention_heads=2, num_kv_heads=2, multiple_of=16, axes_dim_rope=(4, 2, 2),
            axes_lens=(300, 64, 64), cap_feat_dim=32,
        ), 17,
    )  # fmt: skip
    return diffusers.Lumina2Pipeline(
        tokenizer=t5_tokenizer(), text_encoder=gemma(18), vae=vae(0.3611, shift=0.1159, flow=True, levels=4),
        transformer=net, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0),
    )  # fmt: skip


def hunyuan(kind="HunyuanDiTPipeline", **more):
    net = stirred(
        lambda: diffusers.HunyuanDiT2DModel(
            sample_size=16, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3,
            in_channels=4, cross_attention_dim=32, cross_attention_dim_t5=32, pooled_projection_dim=16,
            hidden_size=24, activation_fn="gelu-approximate", text_len=77, text_len_t5=256,
        ), 19,
    )  # fmt: skip
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({w for p in PROMPTS for w in p.split()})]
    words += [*map(chr, range(97, 123)), *(f"##{chr(k)}" for k in range(97, 123))]
    vocabulary = {word: k for k, word in enumerate(dict.fromkeys(words))}
    bert = transformers.BertModel
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=37,
    )  # fmt: skip
    scheduler = diffusers.DDPMScheduler(
        beta_start=0.00085, beta_end=0.03, beta_schedule="scaled_linear", prediction_type="v_prediction",
        steps_offset=1,
    )  # fmt: skip
    return getattr(diffusers, kind)(
        vae=vae(0.13025, levels=4), text_encoder=stirred(lambda: bert(config), 20),
        tokenizer=transformers.BertTokenizer(vocab=vocabulary), transformer=net, scheduler=scheduler,
        text_encoder_2=t5(21), tokenizer_2=t5_tokenizer(), **BARE, **more,
    )  # fmt: skip


def chroma():
    net = stirred(
        lambda: diffusers.ChromaTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=(4, 4, 8),
            approximator_hidden_dim=32, approximator_layers=1, approximator_num_channels=16,
        ), 22,
    )  # fmt: skip
    return diffusers.ChromaPipeline(
        scheduler=dynamic(), text_encoder=t5(23), tokenizer=t5_tokenizer(), transformer=net,
        vae=vae(0.3611, shift=0.1159, flow=True),
    )  # fmt: skip


def again(kind, name, **more):
    """The parts of a pipeline in another class."""
    parts = KINDS[kind]().components
    parts = {
        part: value for part, value in parts.items() if part not in ("image_encoder", "feature_extractor")
    }
    bare = BARE if "safety_checker" in parts else {}
    return getattr(diffusers, name)(**{**parts, **bare}, **more)


def cogview3():
    net = stirred(
        lambda: diffusers.CogView3PlusTransformer2DModel(
            patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4, out_channels=4,
            text_embed_dim=32, time_embed_dim=32, condition_dim=8, pos_embed_max_size=16, sample_size=16,
        ), 30,
    )  # fmt: skip
    return diffusers.CogView3PlusPipeline(
        tokenizer=t5_tokenizer(), text_encoder=t5(31), vae=vae(0.13025), transformer=net,
        scheduler=diffusers.CogVideoXDDIMScheduler(**SD_TABLE, prediction_type="v_prediction"),
    )  # fmt: skip


def lumina():
    net = stirred(
        lambda: diffusers.LuminaNextDiT2DModel(
            sample_size=16, patch_size=2, in_channels=4, hidden_size=24, num_layers=2, num_attention_heads=3,
            num_kv_heads=1, multiple_of=16, norm_eps=1e-5, learn_sigma=True, qk_norm=True, cross_attention_dim=32,
            scaling_factor=1.0,
        ), 32,
    )  # fmt: skip
    return diffusers.LuminaPipeline(
        transformer=net, vae=vae(0.13025), text_encoder=gemma(33), tokenizer=t5_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip


KINDS = {
    "sd15": sd15, "sd21": sd21, "sdxl": sdxl, "sd3": sd3, "flux": flux, "pixart-sigma": pixart, "sana": sana,
    "auraflow": auraflow, "lumina2": lumina2, "hunyuan": hunyuan, "chroma": chroma, "cogview3": cogview3,
    "pixart-alpha": lambda: pixart("PixArtAlphaPipeline"),
    "sd15-pag": lambda: again("sd15", "StableDiffusionPAGPipeline", pag_applied_layers=["up"]),
    "sd3-pag": lambda: again("sd3", "StableDiffusion3PAGPipeline", pag_applied_layers=["blocks.1"]),
    "hunyuan-pag": lambda: hunyuan("HunyuanDiTPAGPipeline", pag_applied_layers=["blocks.1"]),
    "sana-pag": lambda: sana("SanaPAGPipeline", pag_applied_layers=["blocks.1"]),
    "lumina": lumina,
}  # fmt: skip
CALLS = {
    "sd15": {"guidance_scale": 7.5},
    "sd21": {"guidance_scale": 7.5, "guidance_rescale": 0.7},
    "sdxl": {"guidance_scale": 5.0},
    "sd3": {"guidance_scale": 7.0},
    "flux": {"guidance_scale": 3.5, **SMALL},
    "pixart-sigma": {"guidance_scale": 4.5, "use_resolution_binning": False, **SMALL},
    "sana": {
        "guidance_scale": 4.5, "use_resolution_binning": False, "complex_human_instruction": None, **SMALL,
    },
    "auraflow": {"guidance_scale": 3.5, **SMALL},
    "lumina2": {"guidance_scale": 4.0, "height": 128, "width": 128, "max_sequence_length": 256},
    "hunyuan": {
        "guidance_scale": 5.0, "guidance_rescale": 0.7, "height": 128, "width": 128,
        "use_resolution_binning": False,
    },
    "chroma": {"guidance_scale": 5.0, **SMALL},
}  # fmt: skip
CALLS |= {
    "cogview3": {"guidance_scale": 5.0, **SMALL},
    "pixart-alpha": CALLS["pixart-sigma"],
    "sd15-pag": {"guidance_scale": 5.0, "pag_scale": 3.0},
    "sd3-pag": {"guidance_scale": 5.0, "pag_scale": 0.7},
    "hunyuan-pag": {**CALLS["hunyuan"], "pag_scale": 3.0},
    "sana-pag": {**CALLS["sana"], "pag_scale": 2.0},
    "lumina": {"guidance_scale": 4.0, "height": 128, "width": 128, "max_sequence_length": 64},
}
ROWS = {"flux": 1, "sd15-pag": 3, "sd3-pag": 3, "hunyuan-pag": 3, "sana-pag": 3}
"""Per image and evaluation; of the others, which guide, 2."""


@functools.cache
def pipeline(kind):
    """One for all tests, which must leave it as it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = KINDS[kind]()
    pipe.set_progress_bar_config(disable=True)
    return pipe
