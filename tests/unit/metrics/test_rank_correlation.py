import runpy
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.checks import ConfigError
from fewstep.data.prepare import prepare
from fewstep.metrics import weights
from fewstep.pipeline.samples import FACTS, Samples, write_samples

spearmanr = pytest.importorskip("scipy.stats", reason="needs scipy").spearmanr
SCRIPT = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "rank_correlation.py"))


def test_correlation_is_scipys_with_ties_and_its_interval_holds_it():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 6, 12).astype(float)
    y = x + rng.normal(size=12)
    rho, low, high = SCRIPT["spearman"](x, y)
    assert rho == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    assert -1 <= low < rho < high <= 1
    perfect = SCRIPT["spearman"](np.arange(8.0), np.arange(8.0) ** 3)
    assert perfect[0] == pytest.approx(1) and 0.5 < perfect[1] < 1


@pytest.fixture
def arguments(tmp_path, smooth_images, inception_weights, monkeypatch):
    """Six sets of sixteen images, each with more noise than the one before, and twenty-four clean ones."""
    monkeypatch.setattr(weights, "INCEPTION_2015", weights.INCEPTION_2015._replace(sha256=""))
    (tmp_path / "blobs").mkdir()
    for i, image in enumerate(smooth_images(1, 1, 24)):
        Image.fromarray(image.movedim(0, -1).numpy()).save(tmp_path / "blobs" / f"{i:02}.png")
    prepare("folder", tmp_path / "data", source=tmp_path / "blobs", test_fraction=0.25)
    clean = smooth_images(2, 1, 16).float()
    noise = 64 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    files = []
    for level in range(6):
        images = (clean + level * noise).clamp(0, 255).byte().movedim(1, -1).numpy()
        files.append(tmp_path / f"noise{level}.npz")
        write_samples(
            files[-1], Samples(images, np.arange(16), {"seeds": "0-15", **dict.fromkeys(FACTS, "")})
        )
    return Namespace(
        samples=files,
        data=tmp_path / "data",
        offline="effnet-lite0-p320",
        weights=inception_weights,
        backend="torch",
        keep=tmp_path / "keep",
    )


@pytest.mark.slow
def test_both_extractors_rank_noise_alike(arguments):
    text = SCRIPT["report"](arguments)
    names = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| noise")]
    assert names == [f"noise{level}" for level in range(6)], "sorted by the distance of the Inception"
    assert "over 6 sets of samples: 1.000" in text
    assert SCRIPT["report"](arguments) == text, "with the kept statistics"


def test_too_few_sets_are_refused():
    with pytest.raises(ConfigError, match="at least 5 files of samples, got 4"):
        SCRIPT["report"](Namespace(samples=[Path("a.npz")] * 4))
