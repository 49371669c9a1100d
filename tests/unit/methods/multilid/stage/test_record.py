import pandas as pd

from fewstep.methods.multilid.stage.record import Detection, agreement, sentences


def test_a_rank_correlation_needs_five_generators():
    auroc, fd = [0.6, 0.7, 0.8, 0.9, 0.95], [1.0, 2.0, 4.0, 3.0, 5.0]
    assert agreement(auroc[:4], fd[:4]) == []
    # one swap of neighbours among five: 1 - 6 * 2 / (5 * 24) = 0.9
    assert agreement(auroc, fd) == ["Over 5 plans the rank correlation of AUROC and FD is 0.90."]


def test_what_is_hardest_to_tell_is_said_beside_what_may_be_as_hard():
    head = {"classifier": "logistic"}
    gains = {"ddim": 0.2, "heun": 0.1, "unipc": 0.11}
    record = {
        "protocol": {"headline": head, "images": 50},
        "data": {"n_bank": 20},
        "identification": {"classes": [*gains, "real"], "accuracy": {"value": 0.5}, "chance": 0.25},
        "extremes": {
            "easiest": {"name": "ddim", "not_distinguishable_from": []},
            "hardest": {"name": "heun", "not_distinguishable_from": ["unipc"]},
        },
    }
    rows = [
        {**head, "generator": name, "protocol": "fair", "accuracy_minus_null": gain,
         "accuracy_minus_null_low": gain - 0.05, "accuracy_minus_null_high": gain + 0.05}
        for name, gain in gains.items()
    ]  # fmt: skip
    said = sentences(Detection(record, pd.DataFrame(rows)))[0]
    assert "is ddim, 20.0 points [15.0, 25.0]; hardest" in said
    assert "heun, 10.0 points [5.0, 15.0], not distinguishable from unipc;" in said
