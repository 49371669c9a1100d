import re
from pathlib import Path

import pytest

from fewstep.checks import ConfigError
from fewstep.metrics.certificate import QUANTISATION, UNKNOWN_BYTES
from fewstep.metrics.evaluate import METRICS, OFFICIAL
from fewstep.metrics.extractor import EXTRACTORS
from fewstep.metrics.protocols import PROTOCOLS, TRUNCATED, check

DDIM = {
    "n": 50_000,
    "extractor": {"id": "inception2015", "dtype": "float32"},
    "reference": {"name": "cifar10", "split": "train", "n": 50_000},
    "quantisation": QUANTISATION,
}


def test_every_protocol_names_what_exists():
    references = (Path(__file__).parents[3] / "docs" / "references.bib").read_text()
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name
        assert set(protocol.extractors) <= EXTRACTORS.keys() & OFFICIAL.keys()
        assert set(protocol.metrics) <= set(METRICS)
        (keys,) = re.findall(r"\[([^]]+)\]", protocol.note)
        assert all(f"{{{key}," in references for key in keys.split(", "))


def test_a_number_made_alike_fits():
    assert check("ddim-cifar10-50k", **DDIM) is PROTOCOLS["ddim-cifar10-50k"]
    openvino = {**DDIM, "extractor": {"id": "inception2015", "dtype": "float32/openvino"}}
    check("ddim-cifar10-50k", **openvino)
    check("ddim-cifar10-50k", **{**DDIM, "quantisation": UNKNOWN_BYTES})
    church = {"name": "lsun-church_outdoor", "split": "train", "n": 126_227}
    check("adm-lsun-50k", **{**DDIM, "reference": church, "quantisation": TRUNCATED})
    check("edm-50k", **{**DDIM, "reference": {"name": "ffhq", "split": "train", "n": 70_000}}, runs=3)


@pytest.mark.parametrize(
    "protocol, change, message",
    [
        ("ddim-cifar10-50k", {"n": 10_000}, "n 50000, got 10000"),
        ("ddim-cifar10-50k", {"extractor": {"id": "inception2015-clean", "dtype": "float32"}},
         "extractor inception2015, got inception2015-clean"),
        ("ddim-cifar10-50k", {"extractor": {"id": "inception2015", "dtype": "bfloat16"}}, "dtype float32"),
        ("ddim-cifar10-50k", {"reference": {"name": "cifar10-jpeg", "split": "train", "n": 50_000}},
         "dataset cifar10, got cifar10-jpeg"),
        ("ddim-cifar10-50k", {"reference": {"name": "cifar10", "split": "test", "n": 10_000}}, "split train"),
        ("ddim-cifar10-50k", {"reference": {"name": "cifar10", "split": "train", "n": 5000}},
         "number of reference images 50000, got 5000"),
        ("ddim-cifar10-50k", {"quantisation": TRUNCATED}, "quantisation"),
        ("ddim-cifar10-50k", {"ema": False}, "ema True"),
        ("ddim-cifar10-50k", {"codec": "jpeg"}, "codec lossless, got jpeg"),
        ("ddim-cifar10-50k", {"metrics": ["kid"]}, "metrics fd, got kid"),
        ("edm-50k", {}, "runs 3, got 1"),
        ("clean-fid", {}, "extractor inception2015-clean"),
        ("adm-lsun-50k", {}, r"dataset lsun-\*"),
    ],
)  # fmt: skip
def test_the_first_field_that_does_not_fit_is_named(protocol, change, message):
    with pytest.raises(ConfigError, match=message):
        check(protocol, **{**DDIM, **change})


def test_an_unknown_protocol_lists_the_known_ones():
    with pytest.raises(ConfigError, match=", ".join(PROTOCOLS)):
        check("fid", **DDIM)
