"""A study made up of certificates and images, and what a test wants to know of the page about it."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.diffusion.schedule import VPLinear
from fewstep.files import sha256_text, write_json
from fewstep.metrics.certificate import content_sha256
from fewstep.pipeline.recorded import record
from fewstep.pipeline.samples import Samples, write_samples
from fewstep.sampling.plan import Plan
from fewstep.sampling.presets import PRESETS

METRIC = "FD-classifier#1k"
MODEL = sha256_text("model")


@cache
def _some_plan(nfe: int) -> Plan:
    return PRESETS["ddim"](VPLinear(), nfe, grid="uniform-t")


def certificate_of(plan: Plan, fd: float, **options: Any) -> dict[str, Any]:
    """The certificate of a plan."""
    made = certificate(plan.sampler, plan.provenance.get("grid", ""), plan.nfe, fd, **options)
    made["subject"]["plan"] |= {"hash": plan.hash, "name": plan.name, "steps": plan.to_json()}
    made["subject"]["images_sha256"] = sha256_text(f"images of {plan.hash}")
    return made


def certificate(
    sampler: str,
    grid: str | None,
    nfe: int,
    fd: float,
    *,
    half: float = 0.2,
    baseline: float | None = 1.0,
    kid: bool = True,
    pair: Sequence[float] | None = None,
    provenance: dict[str, Any] | None = None,
    fitted: float | None = None,
) -> dict[str, Any]:
    """A made-up certificate of a known sampler, or of a plan that came from elsewhere.

    `fitted`: its distance in features of their own that plans were fitted in.
    """
    name = f"{sampler}_{grid}_nfe{nfe:03d}"
    made_by = {"preset": sampler, "grid": grid or ""} if provenance is None else provenance
    plan = replace(_some_plan(nfe), name="plan", provenance=made_by)
    distance: dict[str, Any] = {
        "value": fd, "interval": [fd - half, fd + half], "level": 0.95, "interval_method": "half-sampling",
        "baseline": baseline, "mean_term": fd / 4, "trace_term": 3 * fd / 4,
    }  # fmt: skip
    if pair is not None:
        distance |= {"replicates": list(pair), "resample_seed": 3}
    results: dict[str, Any] = {METRIC: distance}
    if kid:
        results["KID-classifier#1k"] = {"value": fd / 1000 - 0.004, "interval": [-0.01, 0.01], "level": 0.95}
        results["precision-classifier#1k"] = {"value": 0.8125, "interval": [0.8, 0.83], "level": 0.95}
        results["recall-classifier#1k"] = {"value": 0.625, "interval": [0.6, 0.65], "level": 0.95}
    beside = {}
    if fitted is not None:
        results["FD-afit#1k"] = {"value": fitted, "interval": [fitted - half, fitted + half], "level": 0.95}
        beside["fitted"] = {
            "reference": {"name": "digits", "split": "train", "n": 1438, "sha256": sha256_text("fitted")},
            "extractor": {"id": "afit", "weights_sha256": sha256_text("f"), "resize": "none", "dtype": "float32"},
        }  # fmt: skip
    return {
        "schema": "fewstep.certificate/2",
        "subject": {
            "model": {"fingerprint": MODEL, "name": "tiny"},
            "plan": {
                "hash": sha256_text(name), "name": name, "sampler": sampler, "grid": grid, "nfe": nfe,
                "steps": plan.to_json(),
            },
            "draw": {"guidance": 1.0, "batch_size": 250},
            "data": {"name": "digits", "fingerprint": sha256_text("data")},
            "images_sha256": sha256_text(f"images of {name}"),
        },
        "protocol": {
            "preset": None,
            "n": 1000,
            "seeds": "0-999",
            "reference": {"name": "digits", "split": "train", "n": 1438, "sha256": sha256_text("reference")},
            "extractor": {
                "id": "classifier", "weights_sha256": sha256_text("w"), "resize": "none", "dtype": "float32",
            },
            "codec": "lossless",
            "quantisation": "floor(127.5x+128)",
            "ema": True,
            "dtype": "float32",
            **beside,
            "evaluation": {"metrics": ["fd", "kid", "pr"], "level": 0.95, "resamples": 100, "seed": 0},
        },
        "results": results,
        "costs": {
            "nfe": nfe, "network_calls": 4 * nfe, "network_ms_per_image": nfe / 8, "wall_seconds": nfe / 4,
            "device": "cpu",
        },
        "environment": {
            "fewstep": "0.1.0", "git_commit": None, "python": "3.11", "torch": "2.13", "numpy": "2.4",
            "platform": "Linux",
        },
        "files": {},
        "spec_key": None,
    }  # fmt: skip


STUDY = [
    certificate("ddim", "uniform-t", 5, 20.0),
    certificate("ddim", "uniform-t", 10, 9.0),
    certificate("ddim", "uniform-t", 50, 3.0),
    certificate("ddim", "karras", 10, 11.0),
    certificate("dpmpp-2m", "uniform-t", 5, 8.0),
    certificate("dpmpp-2m", "uniform-t", 10, 3.05),
    certificate("dpmpp-2m", "uniform-t", 50, 2.5),
    certificate("unipc-3", "uniform-lambda", 5, 12.0),
    certificate("unipc-3", "uniform-lambda", 10, 3.125),
]


def write_all(folder: Path, certificates: Sequence[dict[str, Any]] = STUDY) -> Path:
    for i, content in enumerate(certificates):
        write_json(folder / f"{i:02d}.json", {**content, "sha256": content_sha256(content)})
    return folder


def write_images(
    folder: Path,
    certificates: Sequence[dict[str, Any]] = STUDY,
    *,
    shape: Sequence[int] = (8, 8, 1),
    prompts: Path | None = None,
) -> Path:
    folder.mkdir()
    files = {} if prompts is None else {"conditions": record(prompts, beside=folder)}
    for i, content in enumerate(certificates):
        plan = content["subject"]["plan"]
        images = np.random.default_rng(i).integers(0, 256, (6, *shape), dtype=np.uint8)
        meta = {
            "model": content["subject"]["model"],
            "plan_hash": plan["hash"],
            "nfe": plan["nfe"],
            "files": files,
        }
        write_samples(folder / f"{plan['name']}.npz", Samples(images, np.arange(6), meta))
    return folder


class Page(HTMLParser):
    """What a test wants to know of a page: tables as lists of rows of text, addresses, ids, running text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.images = 0
        self.words = ""
        self._rows: list[list[str]] | None = None
        self._cell = self._raw = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "action")]
        self.ids += [given["id"] or ""] if "id" in given else []
        self.images += tag == "img"
        self._raw = tag in ("style", "script")
        if tag == "table":
            self._rows = self.tables.setdefault(given["class"] or "", [])
        elif tag == "tr" and self._rows is not None:
            self._rows.append([])
        elif tag in ("td", "th") and self._rows is not None:
            self._cell = True
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False
        elif tag == "table":
            self._rows = None
        self._raw = False

    def handle_data(self, data: str) -> None:
        if not self._raw:
            self.words += data.replace("\u2011", "-")
        if self._cell and self._rows is not None:
            self._rows[-1][-1] += data
