"""Blocks of code in pages of the documentation."""

from __future__ import annotations

import re


def code_blocks(text: str, language: str) -> list[str]:
    """The blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
