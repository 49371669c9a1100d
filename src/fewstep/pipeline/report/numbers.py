"""Numbers as a reader wants them."""

import math


def number(value: float) -> str:
    """Three significant digits, no powers of ten: 0.0312, 3.12, 31.2, 312, 3124; a dash for no value."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 6)}f}"


def count(value: float) -> str:
    """Whole numbers with a narrow space between thousands; a dash for no value."""
    if math.isnan(value):
        return "–"
    return f"{int(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def ratio(value: float) -> str:
    """`0.45×`; a dash for no value."""
    return "–" if math.isnan(value) else f"{value:.2f}×"


def percent(share: float) -> str:
    """Percent with one digit; a dash for no value."""
    return "–" if math.isnan(share) else f"{100 * share:.1f}"
