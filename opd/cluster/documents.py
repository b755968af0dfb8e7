"""YAML from people, read so that a malicious document cannot become more than plain data of its own size."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 64 * 1024
MAX_DEPTH = 20


class DocumentError(ValueError):
    """A document is malformed, too large, too deep, or uses what YAML has beyond plain data."""


def read_document(path: Path) -> Any:
    """What a YAML file holds, None if nothing.

    Raises:
        FileNotFoundError: if there is no such file.
        DocumentError: if it is not one plain document within :data:`MAX_BYTES` and :data:`MAX_DEPTH`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with path.open("rb") as file:
        return parse_document(file.read(MAX_BYTES + 1), str(path))


def parse_document(content: bytes, source: str) -> Any:
    """What a YAML document holds, None if nothing.

    Args:
        content: UTF-8.
        source: where it is from, for people.

    Raises:
        DocumentError: if it is not one plain document within :data:`MAX_BYTES` and :data:`MAX_DEPTH`.
    """
    if len(content) > MAX_BYTES:
        raise DocumentError(f"{source} is larger than {MAX_BYTES} bytes, the limit of a document")
    try:
        text = content.decode()
        _check_events(text)
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError) as error:
        raise DocumentError(f"{source}: {error}") from error


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which others silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, count in counts.items():
            if count > 1:
                raise DocumentError(f"{_line(node)}: {key!r} is there twice")
        return super().construct_mapping(node, deep)


def _check_events(text: str) -> None:
    """Refuse what could grow or do something, before anything is built of it."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line, tag = _line(event), getattr(event, "tag", None)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise DocumentError(f"{line}: anchors and aliases are not allowed; write the value out")
        if tag:
            raise DocumentError(f"{line}: tags such as {tag} are not allowed")
        documents += isinstance(event, yaml.DocumentStartEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if documents > 1:
            raise DocumentError(f"{line}: only one document is allowed in a file")
        if depth > MAX_DEPTH:
            raise DocumentError(f"{line}: nested deeper than {MAX_DEPTH} levels, the limit of a document")


def _line(part: Any) -> str:
    return f"line {part.start_mark.line + 1}"
