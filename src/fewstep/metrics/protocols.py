"""What the numbers of well-known papers mean, as data: to be comparable, a number must have been made alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from fewstep.checks import ConfigError
from fewstep.metrics.certificate import QUANTISATION, UNKNOWN

TRUNCATED = "floor(127.5x+127.5)"


@dataclass(frozen=True)
class Protocol:
    """How a paper's number is made.

    Attributes: n: generated images. extractors: whose numbers the paper reports. metrics: of `evaluate_samples`.
        dataset, split, n_reference: of the reference images; a pattern for the dataset's name, whose "*" is any,
        and None where the number of images follows from the dataset. quantisation: of x in [-1, 1] to bytes, clamped.
        runs: independent sets of samples. reported: which of the runs' numbers is the paper's.
    """

    name: str
    n: int
    extractors: tuple[str, ...]
    metrics: tuple[str, ...]
    dataset: str
    split: str
    n_reference: int | None
    quantisation: str
    runs: int
    reported: str
    note: str


_PROTOCOLS = (
    Protocol(
        name="ddim-cifar10-50k",
        n=50_000,
        extractors=("inception2015",),
        metrics=("fd",),
        dataset="cifar10",
        split="train",
        n_reference=50_000,
        quantisation=QUANTISATION,
        runs=1,
        reported="the one run",
        note="FID of 50,000 samples to all 50,000 training images, as DDPM and its successors report it "
        "[ho2020ddpm, song2021ddim, lu2022dpmsolver]; exponential moving average of the weights.",
    ),
    Protocol(
        name="edm-50k",
        n=50_000,
        extractors=("inception2015",),
        metrics=("fd",),
        dataset="*",
        split="train",
        n_reference=None,
        quantisation=QUANTISATION,
        runs=3,
        reported="minimum",
        note="FID of 50,000 samples to the training images, the minimum of the seeds 0-49999, 50000-99999 and "
        "100000-149999 [karras2022edm]; of CIFAR-10, FFHQ, AFHQv2 or ImageNet in EDM's preparation, lossless.",
    ),
    Protocol(
        name="adm-lsun-50k",
        n=50_000,
        extractors=("inception2015", "inception2015-spatial"),
        metrics=("fd", "pr"),
        dataset="lsun-*",
        split="train",
        n_reference=None,
        quantisation=TRUNCATED,
        runs=1,
        reported="the one run",
        note="FID and sFID of 50,000 samples of 256 x 256 pixels to statistics of the whole LSUN category, "
        "precision and recall (k = 3) to 10,000 reference images [dhariwal2021adm]. Precision and recall here "
        "take 10,000 images on both sides, there 10,000 and 50,000. Bytes are truncated, not rounded.",
    ),
    Protocol(
        name="clean-fid",
        n=50_000,
        extractors=("inception2015-clean",),
        metrics=("fd", "kid"),
        dataset="*",
        split="train",
        n_reference=None,
        quantisation=QUANTISATION,
        runs=1,
        reported="the one run",
        note="Resize by Pillow's bicubic kernel in float, without rounding to bytes [parmar2022cleanfid]; for "
        "CIFAR-10 the package's tables compare with train and with test, this is train.",
    ),
)
PROTOCOLS = {protocol.name: protocol for protocol in _PROTOCOLS}


def find_protocol(name: str) -> Protocol:
    """The protocol of that name.
    Raises: ConfigError: there is none.
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"The protocol must be one of {', '.join(PROTOCOLS)}; got {name}.")
    return PROTOCOLS[name]


def check(
    protocol: Protocol | str,
    *,
    n: int,
    extractor: Mapping[str, str],
    reference: Mapping[str, Any],
    quantisation: str,
    codec: str = "lossless",
    metrics: Sequence[str] | None = None,
    ema: bool = True,
    runs: int = 1,
) -> Protocol:
    """Require that a number was made as a protocol says. The fields are those of a certificate.

    Args: protocol: or its name. extractor: `Extractor.protocol`. reference: `Reference.protocol`. codec:
        of the images. metrics: that are measured, or None where only the images are asked about. runs:
        independent sets of samples that the number is drawn from.
    Returns: The protocol.
    Raises: ConfigError: no such protocol, or the first field that does not fit: what must hold, what came.
    """
    if isinstance(protocol, str):
        protocol = find_protocol(protocol)
    allowed_extractors = " or ".join(protocol.extractors)
    facts = (
        ("n", n == protocol.n, protocol.n, n),
        ("extractor", extractor["id"] in protocol.extractors, allowed_extractors, extractor["id"]),
        ("dtype", extractor["dtype"].partition("/")[0] == "float32", "float32", extractor["dtype"]),
        ("dataset", fnmatchcase(reference["name"], protocol.dataset), protocol.dataset, reference["name"]),
        ("split", reference["split"] == protocol.split, protocol.split, reference["split"]),
        (
            "number of reference images",
            protocol.n_reference in (None, reference["n"]),
            protocol.n_reference,
            reference["n"],
        ),
        (
            "quantisation",
            quantisation in (protocol.quantisation, UNKNOWN["quantisation"]),
            protocol.quantisation,
            quantisation,
        ),
        ("codec", codec in ("lossless", UNKNOWN["codec"]), "lossless", codec),
        (
            "metrics",
            metrics is None or set(protocol.metrics) <= set(metrics),
            ",".join(protocol.metrics),
            ",".join(metrics or ()),
        ),
        ("ema", ema, True, ema),
        ("runs", runs == protocol.runs, protocol.runs, runs),
    )
    for field, fits, wanted, found in facts:
        if not fits:
            raise ConfigError(
                f"The protocol {protocol.name} needs the {field} {wanted}, got {found}; "
                "make the number that way, or report it under its own name."
            )
    return protocol
