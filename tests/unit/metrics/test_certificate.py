import copy

import numpy as np
import pytest

from fewstep.checks import ConfigError, DataError
from fewstep.metrics.certificate import (
    build_certificate,
    certificate_problem,
    compare,
    not_known,
    protocol_difference,
    read_certificate,
    write_certificate,
)
from fewstep.metrics.evaluate import evaluate_samples
from fewstep.metrics.extractor import Extractor
from fewstep.metrics.reference import from_features

EXTRACTOR = Extractor("toy-net", 4, "none", "a" * 64, lambda x: x.float().flatten(1)[:, :4])


def draw(n, seed, gain=1.0):
    return gain * np.random.default_rng(seed).standard_normal((n, 4))


REFERENCE = from_features(
    draw(300, 0).astype(np.float32),
    EXTRACTOR.protocol,
    dataset={"name": "toy", "fingerprint": "f" * 64, "split": "train", "heldout_split": None},
)


def certificate(gain=1.2, *, results=None, **protocol):
    """A certificate of toy images; keywords change its protocol."""
    return build_certificate(
        subject={
            "model": {"fingerprint": "b" * 64, "name": "toy-model"},
            "plan": {
                "hash": "c" * 64, "name": "ddim-10", "sampler": "ddim", "grid": "uniform-t", "nfe": 10, "steps": {},
            },
            "draw": {"guidance": 1.0, "batch_size": 50},
            "data": {"name": "toy", "fingerprint": "f" * 64},
            "images_sha256": "d" * 64,
        },
        protocol={
            "preset": None,
            "n": 100,
            "seeds": "0-99",
            "reference": REFERENCE.protocol,
            "extractor": EXTRACTOR.protocol,
            "codec": "lossless",
            "quantisation": "floor(127.5x+128)",
            "ema": True,
            "dtype": "float32",
            "evaluation": {"metrics": ["fd", "kid", "pr"], "level": 0.95, "resamples": 100, "seed": 0},
            **protocol,
        },
        results=results or evaluate_samples(draw(100, 1, gain), REFERENCE, EXTRACTOR),
        costs={
            "nfe": 10, "network_calls": 10, "network_ms_per_image": 1.5, "wall_seconds": 2.0, "device": "cpu",
        },
        environment={
            "fewstep": "0.1.0", "git_commit": None, "python": "3.11", "torch": "2", "numpy": "2",
            "platform": "x",
        },
        files={"model": {"path": "../model", "sha256": {"model.safetensors": "b" * 64}}},
    )  # fmt: skip


def test_round_trip(tmp_path):
    made = certificate()
    write_certificate(tmp_path / "c.json", made)
    assert read_certificate(tmp_path / "c.json") == made
    assert made["schema"] == "fewstep.certificate/2"


def test_missing_truncated_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "c.json"
    with pytest.raises(DataError, match="no such file"):
        read_certificate(path)
    write_certificate(path, certificate())
    path.write_text(path.read_text()[:300])
    with pytest.raises(DataError, match="damaged"):
        read_certificate(path)
    for foreign in ("[]", "{}", '{"schema": "fewstep.plan/1"}', "3"):
        path.write_text(foreign)
        with pytest.raises(DataError, match="schema"):
            read_certificate(path)


@pytest.mark.parametrize(
    "place, value",
    [
        (("protocol", "n"), 200),
        (("subject", "plan", "name"), "ddim-11"),
        (("files", "model", "path"), "../models"),
        (("costs", "network_ms_per_image"), 0.5),
    ],
)
def test_a_changed_field_breaks_the_signature(tmp_path, place, value):
    write_certificate(tmp_path / "c.json", changed_at(certificate(), place, value))
    with pytest.raises(DataError, match="sha256 that it states"):
        read_certificate(tmp_path / "c.json")


def changed_at(content, place, value):
    changed = copy.deepcopy(content)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return changed


FD = "FD-toy-net#100"


@pytest.mark.parametrize(
    "place, value, message",
    [
        (("colour",), "red", "unknown colour"),
        (("protocol", "colour"), "red", r"unknown protocol\.colour"),
        (("subject", "plan", "hash"), None, r"subject\.plan\.hash"),
        (("protocol", "n"), True, r"protocol\.n"),
        (("protocol", "n"), "1000", r"protocol\.n"),
        (("protocol", "reference"), [], r"protocol\.reference"),
        (("protocol", "extractor", "weights_sha256"), "A" * 64, "weights_sha256"),
        (("costs", "wall_seconds"), float("nan"), "wall_seconds"),
        (("protocol", "evaluation", "level"), 1.0, r"protocol\.evaluation\.level"),
        (("subject", "images_sha256"), "abc", r"subject\.images_sha256"),
        (("subject", "draw"), [], r"subject\.draw"),
        (("files", "plan"), {"path": "p.json", "sha256": "d" * 64}, "files"),
        (("files", "plan"), {"path": "p.json", "sha256": {"": "D" * 64}}, "files"),
        (("results",), {}, "no results"),
        (("results", FD, "value"), None, "value"),
        (("results", FD, "interval"), [2, 1], "interval"),
        (("results", FD, "luck"), 1, "luck"),
        (("results", FD), 1.5, FD),
    ],
)
def test_wrong_fields_are_named(place, value, message):
    changed = changed_at(certificate(), place, value)
    problem = certificate_problem(changed)
    assert problem is not None
    with pytest.raises(DataError, match=message):
        write_certificate("never-written.json", changed)


@pytest.mark.parametrize(
    "section", ["subject", "protocol", "results", "costs", "environment", "files", "sha256"]
)
def test_missing_sections_are_named(section):
    changed = certificate()
    del changed[section]
    assert section in certificate_problem(changed)


def test_images_of_another_program_have_no_model_plan_and_costs():
    content = certificate()
    content["subject"] |= {"model": None, "plan": None, "draw": None}
    content["costs"] = None
    assert certificate_problem(content) is None


def test_one_protocol_has_no_difference():
    assert protocol_difference(certificate(1.2), certificate(1.4)) is None


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"n": 200}, "protocol.n is 100 and 200"),
        ({"seeds": "100-199"}, "protocol.seeds"),
        ({"ema": False}, "protocol.ema is True and False"),
        ({"dtype": "bfloat16"}, "protocol.dtype"),
        (
            {"extractor": {**EXTRACTOR.protocol, "resize": "299/bilinear-tf1"}},
            "protocol.extractor.resize",
        ),
        ({"reference": {**REFERENCE.protocol, "split": "test"}}, "protocol.reference.split"),
    ],
)
def test_protocols_that_differ_say_where_and_are_not_compared(changes, message):
    one, other = certificate(), certificate(**changes)
    assert message in protocol_difference(one, other)
    with pytest.raises(ConfigError, match=message):
        compare(one, other)


def test_compare_is_paired():
    worse, better = certificate(1.5), certificate(1.45)
    found = compare(worse, better)
    assert [name.split("-")[0] for name in found] == ["FD", "KID"]
    difference = found[FD]
    a, b = worse["results"][FD], better["results"][FD]
    assert difference.value == a["value"] - b["value"] > 0
    assert difference.interval.low > 0, "the same noise: certain, though the intervals of both overlap"
    assert a["interval"][0] < b["interval"][1]


def test_compare_needs_distances_cut_alike():
    one = certificate()
    seeded = certificate(
        results=evaluate_samples(draw(100, 1), REFERENCE, EXTRACTOR, seed=1),
        evaluation={**one["protocol"]["evaluation"], "seed": 1},
    )
    with pytest.raises(ConfigError, match="protocol.evaluation.seed is 0 and 1"):
        compare(one, seeded)
    bare = certificate(results=evaluate_samples(draw(100, 1), REFERENCE, EXTRACTOR, metrics=["pr"]))
    with pytest.raises(ConfigError, match="metric fd"):
        compare(one, bare)


CONDITIONS = {"sha256": "e" * 64, "rows": 5000}


def test_certificates_of_unlike_conditions_refuse_to_be_compared():
    assert compare(certificate(conditions=CONDITIONS), certificate(1.0, conditions=dict(CONDITIONS)))
    for other in ({**CONDITIONS, "sha256": "1" * 64}, {**CONDITIONS, "rows": 4999}, None):
        with pytest.raises(ConfigError, match=r"protocol.conditions"):
            compare(certificate(conditions=CONDITIONS), certificate(1.0, conditions=other))


def test_certificates_from_before_there_were_conditions_had_none():
    assert certificate_problem(certificate()) is None
    assert protocol_difference(certificate(), certificate(conditions=None)) is None
    assert compare(certificate(), certificate(1.0, conditions=None))
    for pair in ((CONDITIONS, ...), (..., CONDITIONS)):
        made = [certificate(**({} if c is ... else {"conditions": c})) for c in pair]
        with pytest.raises(ConfigError, match=r"protocol.conditions"):
            compare(*made)


def test_nobody_knows_the_conditions_of_images_of_another_program():
    foreign = certificate(seeds="none", conditions=None)
    assert compare(certificate(conditions=CONDITIONS), foreign)
    assert not_known(certificate(conditions=CONDITIONS), foreign) == ["seeds", "conditions"]


@pytest.mark.parametrize("value", [{}, {"sha256": "x", "rows": 1}, {"sha256": "e" * 64}, [], "e" * 64])
def test_conditions_that_cannot_be_are_refused(value):
    with pytest.raises(DataError, match="protocol.conditions is"):
        certificate(conditions=value)
