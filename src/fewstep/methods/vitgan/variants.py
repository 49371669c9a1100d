"""What ViTGAN is made of, left out or exchanged one by one [lee2022vitgan, Table 7], and losses beside its own."""

from typing import Any

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "dot products": {"attention": "dot"},
    "free norms": {"keeps_norms": False},
    "plain transformer": {"attention": "dot", "keeps_norms": False, "overlap": False},
    "no overlap": {"overlap": False},
    "no augmentation": {"augment": [], "bcr": 0.0},
    # the paper's regulariser with its weight, in the place of a gradient penalty
    "consistency": {"r1": 0.0, "bcr": 10.0},
    # pairs of real and generated images, and gradient penalties on both sides [huang2024r3gan]
    "relativistic": {"loss": "relativistic", "r1": 1.0, "r2": 1.0},
}
"""Name -> settings that differ from those of the generator of the run."""
