"""Addresses of databases and servers without the passwords in them."""

import re


def without_password(text: str) -> str:
    """An address, or a text that holds some, as it may stand in files and messages."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", text)
