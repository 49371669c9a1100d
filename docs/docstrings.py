"""Docstrings whose sections begin on their own line (`Raises: DataError: ...`), which the site sets as paragraphs."""

import re
from typing import Any

import griffe

_INLINE = re.compile(r"^(Args|Attributes|Returns|Raises|Differs): (?=\S)", re.MULTILINE)


class InlineSections(griffe.Extension):
    """Puts a paragraph before each such section; others stay as they are."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of an object, if it has one."""
        if obj.docstring is not None:
            obj.docstring.value = _INLINE.sub(r"\n**\1:** ", obj.docstring.value)
