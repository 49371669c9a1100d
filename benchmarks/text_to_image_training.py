"""Train a small text-to-image pipeline of diffusers on a dataset with classes: captions that name the class.

    python benchmarks/text_to_image_training.py --data state/cifar10-jpeg --out cifar10-text [--vae-steps N] [--steps N]

An autoencoder first, then a text encoder and a U-Net on its latents, all on the loop of this project, each with
checkpoints in OUT.work, from which an interrupted run resumes. OUT is a StableDiffusionPipeline in float16, and
OUT.captions are two lists, of which one is for searches and one for reports.
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fewstep.data.packed import load_dataset
from fewstep.diffusion.schedule import DDPMTable
from fewstep.progress import track
from fewstep.rng import generator, initial_weights
from fewstep.train.batches import Batch, image_batches, indices
from fewstep.train.descent import descend
from fewstep.train.ema import Ema
from fewstep.train.loop import LRSchedule, State, fit
from fewstep.train.losses import denoising_loss, draw_times, noised
from fewstep.train.world import World

LONGEST = 20  # tokens of a caption, both ends included
DROPPED = 0.1  # share of captions that are hidden, for guidance
CHANNELS, SIDE = 8, 8  # of the latents
FORMS = ("{}", "one {}", "a photo of the {}", "a picture of the {}", "an image of the {}")
WORDS = ("", "small", "blurry", "good", "bright", "dark", "big", "plain")
SCHEDULE = DDPMTable.scaled_linear()


def captions(classes):
    """All captions of each class, (number of captions, number of classes)."""
    return [
        [" ".join(form.format(f"{word} {name}").split()) for name in classes]
        for form in FORMS
        for word in WORDS
    ]


def tokenizer_of(texts):
    """A CLIP tokenizer whose vocabulary is that of the texts, and single bytes."""
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    learnt = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learnt.pre_tokenizer = pre_tokenizers.Whitespace()
    learnt.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=1000, end_of_word_suffix="</w>", show_progress=False)
    )
    model = json.loads(learnt.to_str())["model"]
    names = [*bytes_, *(f"{b}</w>" for b in bytes_), *("".join(pair) for pair in model["merges"])]
    names = [*dict.fromkeys(names), "<|startoftext|>", "<|endoftext|>"]
    merges = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(
        vocab={name: k for k, name in enumerate(names)}, merges=merges, model_max_length=LONGEST
    )


def autoencoder():
    with initial_weights(0):
        return AutoencoderKL(
            block_out_channels=(16, 32, 64),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=CHANNELS,
            norm_num_groups=8,
            sample_size=32,
        )


class TextToNoise(nn.Module):
    """Text encoder and U-Net as one network, whose condition is the tokens of a caption."""

    def __init__(self, tokens):
        super().__init__()
        with initial_weights(1):
            self.text = CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=tokens["vocabulary"],
                    bos_token_id=tokens["vocabulary"] - 2,
                    eos_token_id=tokens["vocabulary"] - 1,
                    pad_token_id=tokens["vocabulary"] - 1,
                    hidden_size=64,
                    intermediate_size=128,
                    num_attention_heads=2,
                    num_hidden_layers=2,
                    max_position_embeddings=LONGEST,
                    projection_dim=64,
                )
            )
            self.unet = UNet2DConditionModel(
                sample_size=SIDE,
                in_channels=CHANNELS,
                out_channels=CHANNELS,
                layers_per_block=1,
                block_out_channels=(64, 128),
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                cross_attention_dim=64,
                norm_num_groups=16,
                attention_head_dim=32,
            )

    def forward(self, x_t, k, tokens):
        return self.unet(x_t, k, self.text(tokens).last_hidden_state).sample


def train_autoencoder(dataset, work, steps):
    net = autoencoder()

    def step(state, batch, *, rng):
        def loss(rows):
            x = batch.x0[rows]
            latent = net.encode(x).latent_dist
            noise = torch.randn(latent.mean.shape, generator=rng)
            made = net.decode(latent.mean + latent.std * noise).sample
            return (made - x).abs().flatten(1).mean(1) + 1e-5 * latent.kl()

        return descend(loss, net, state.optimisers["net"], size=batch.size, world=World(), clip=1.0)

    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-4)
    state = fit(
        State({"net": net}, {"net": optimiser}, {"net": Ema(net, decay=0.998)}),
        step,
        image_batches(dataset, batch_size=32, seed=0, flip=True),
        lr_schedule=LRSchedule(steps, warmup=100, shape="cosine"),
        seed=0,
        settings={"net": "autoencoder"},
        checkpoints=work / "autoencoder",
        metrics=work / "autoencoder.jsonl",
        log_every=20,
        progress=track("autoencoder", unit="step"),
    )
    return state.ema["net"].net


@torch.no_grad()
def encoded(net, dataset, file):
    """Means of the latents of all images, and of their mirror images, (2, N, C, S, S), of unit variance."""
    if not file.exists():
        parts = []
        for rows in torch.arange(len(dataset)).split(250):
            x = dataset.batch(rows.numpy()) / 127.5 - 1
            parts.append(
                torch.stack([net.encode(x).latent_dist.mean, net.encode(x.flip(-1)).latent_dist.mean])
            )
        torch.save(torch.cat(parts, 1), file)
    latents = torch.load(file, weights_only=True)
    net.register_to_config(scaling_factor=float(1 / latents.std()))
    return latents / latents.std()


def train_network(dataset, latents, tokens, work, steps, batch_size=32, until=None):
    net = TextToNoise(tokens)
    labels = torch.from_numpy(dataset.labels[:])

    def batch_of(i):
        rows = indices(i, n=len(labels), batch_size=batch_size, seed=1)
        mirrored = (torch.rand(batch_size, generator=generator(1, "flip", i)) < 0.5).long()
        return Batch(latents[mirrored, rows], labels[rows], batch_size, slice(0, batch_size))

    def step(state, batch, *, rng):
        t = draw_times(SCHEDULE, batch.size, rng=rng)
        eps = torch.randn(batch.x0.shape, generator=rng)
        form = torch.randint(len(tokens["captions"]), (batch.size,), generator=rng)
        told = tokens["captions"][form, batch.labels]
        hidden = torch.rand(batch.size, generator=rng) < DROPPED
        told = torch.where(hidden[:, None], tokens["empty"], told)

        def loss(rows):
            inputs = noised(batch.x0[rows], eps[rows], t[rows], schedule=SCHEDULE, prediction="eps")
            return denoising_loss(net, inputs, told[rows])

        return descend(loss, net, state.optimisers["net"], size=batch.size, world=World(), clip=1.0)

    optimiser = torch.optim.AdamW(net.parameters(), lr=8e-4, weight_decay=1e-3)
    state = fit(
        State({"net": net}, {"net": optimiser}, {"net": Ema(net, decay=0.998)}),
        step,
        batch_of,
        lr_schedule=LRSchedule(steps, warmup=200, shape="cosine"),
        seed=1,
        settings={"net": "text to noise", "batch_size": batch_size},
        checkpoints=work / "network",
        until=until,
        metrics=work / "network.jsonl",
        log_every=20,
        progress=track("network", unit="step"),
    )
    return state.ema["net"].net


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vae-steps", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--until", type=int, help="stop at this step, with what there is")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dataset = load_dataset(options.data, "train")
    work = options.out.with_name(f"{options.out.name}.work")
    work.mkdir(parents=True, exist_ok=True)
    rows = captions(dataset.classes)
    tokenizer = tokenizer_of([text for row in rows for text in row])

    def tokens_of(texts):
        return tokenizer(
            texts, padding="max_length", max_length=LONGEST, truncation=True, return_tensors="pt"
        ).input_ids

    tokens = {
        "vocabulary": len(tokenizer),
        "captions": torch.stack([tokens_of(row) for row in rows]),
        "empty": tokens_of([""])[0],
    }
    longest = max(len(tokenizer(text).input_ids) for row in rows for text in row)
    assert longest <= LONGEST, longest
    vae = train_autoencoder(dataset, work, options.vae_steps)
    latents = encoded(vae, dataset, work / "latents.pt")
    net = train_network(dataset, latents, tokens, work, options.steps, until=options.until)
    pipe = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=net.text.half(),
        tokenizer=tokenizer,
        unet=net.unet.half(),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(options.out)
    for name, chosen in (("search", rows[0::2]), ("report", rows[1::2])):
        text = "\n".join(caption for row in chosen for caption in row) + "\n"
        options.out.with_name(f"{options.out.name}.{name}.txt").write_text(text)


if __name__ == "__main__":
    main()
