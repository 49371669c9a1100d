"""What tests of the commands start from."""

import pytest
from e2e.shell import made


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """A tiny study in a folder: 20 steps of training, two samplers, 60 images."""
    folder = tmp_path_factory.mktemp("study")
    made("prepare", "digits", "--out", "data", cwd=folder)
    made("train", "--data", "data", "--out", "model", "--checkpoints", "ck", "--steps", 20, "--warmup", 5,
         "--channels", 8, "--batch-size", 32, "--ema-decay", 0.5, cwd=folder)  # fmt: skip
    made("extractor", "--data", "data", "--out", "extractor", "--steps", 50, cwd=folder)
    made("stats", "data", "--extractor", "extractor", "--out", "stats.npz", cwd=folder)
    made("plans", "--model", "model", "--nfe", 4, "--presets", "ddim,unipc-2", "--grids", "uniform-t",
         "--out", "plans", cwd=folder)  # fmt: skip
    made("sample", "model", "plans", "--seeds", "0-59", "--out", "samples", cwd=folder)
    made("evaluate", "samples", "--reference", "stats.npz", "--extractor", "extractor", "--out", "eval",
         "--resamples", 20, cwd=folder)  # fmt: skip
    made(
        "report",
        "eval",
        "--samples",
        "samples",
        "--model",
        "model",
        "--run",
        "tiny",
        "--out",
        "report",
        cwd=folder,
    )
    return folder


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory):
    """Pipelines of diffusers of untrained weights: ddim in pixels, ldm on latents, dit with classes on latents."""
    from unit.interop.tiny import save

    folder = tmp_path_factory.mktemp("pipelines")
    return {kind: save(kind, folder / kind) for kind in ("ddim", "ldm", "dit")}
