"""What a dataset may be called: one rule for the command, params.yaml and `prepare`."""

NAMED = ("digits", "cifar10", "celeba", "folder")
LSUN = "lsun-"
PATTERN = rf"^(?:{'|'.join(NAMED)}|{LSUN}[A-Za-z0-9][A-Za-z0-9_.-]*)$"
"""A category is the name of a folder: letters, digits, and `_`, `.`, `-` within it, such as tv-monitor."""
SAID = f"{', '.join(NAMED[:-1])}, {LSUN}<category> or {NAMED[-1]}"
