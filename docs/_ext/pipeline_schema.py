"""The directive ``pipeline-schema``: every key of a pipeline file, from the schema that checks it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from elements import Cell, code, paragraph, section, table
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from opd.host.paths import package_path

WORDS = {"string": "text", "integer": "whole number", "number": "number", "object": "mapping"}
LIMITS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


class PipelineSchema(SphinxDirective):
    """A section for every part of a pipeline file: its keys, what they may hold, their defaults and meanings."""

    def run(self) -> list[nodes.Node]:
        """Create the sections, the file first, then its parts in the order in which they are first named."""
        path = package_path("profiling", "pipeline.schema.json")
        self.env.note_dependency(str(path))
        schema = json.loads(path.read_text(encoding="utf-8"))
        return [self.part("the file", schema), *(self.part(name, schema["$defs"][name]) for name in parts_of(schema))]

    def part(self, name: str, schema: dict[str, Any]) -> nodes.section:
        """Create the section of one part."""
        required = schema.get("required", [])
        rows = [
            (code(key), content_of(value), default_of(value, key in required), value.get("description", ""))
            for key, value in schema["properties"].items()
        ]
        columns = ("key", "content", "default", "meaning")
        return section(title_of(name), anchor_of(name), paragraph(plain(schema["description"])), table(columns, rows))


def parts_of(schema: dict[str, Any]) -> list[str]:
    """Names of the parts of a schema, in the order in which they are first named."""
    found: list[str] = []
    todo = [schema]
    while todo:
        here = todo.pop(0)
        new = [name for name in dict.fromkeys(references(here.get("properties", {}))) if name not in found]
        found += new
        todo += [schema["$defs"][name] for name in new]
    return found


def references(tree: Any) -> Iterator[str]:
    """Names of the parts that a tree of a schema refers to."""
    if isinstance(tree, dict):
        if "$ref" in tree:
            yield tree["$ref"].rpartition("/")[2]
        tree = list(tree.values())
    if isinstance(tree, list):
        for branch in tree:
            yield from references(branch)


def title_of(name: str) -> str:
    """Name of a part in words, such as ``accuracy objective``."""
    words = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name.removesuffix("Section"))
    return words.strip()


def plain(text: str) -> str:
    """A description without the roles of docstrings."""
    return re.sub(r":[a-z]+:`([^`]+)`", r"\1", text)


def anchor_of(name: str) -> str:
    """Anchor of a part."""
    return f"schema-{title_of(name).replace(' ', '-')}"


def content_of(schema: dict[str, Any]) -> nodes.inline:
    """What a key may hold, with links to parts."""
    return nodes.inline("", "", *described(schema))


def described(schema: dict[str, Any]) -> list[nodes.Node]:
    """Words and links for what a key may hold."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return [nodes.reference("", title_of(name), refid=anchor_of(name))]
    if "anyOf" in schema:
        choices = [described(choice) for choice in schema["anyOf"] if choice.get("type") != "null"]
        return [node for choice in choices for node in (nodes.Text(" or "), *choice)][1:]
    if "enum" in schema:
        return [node for name in schema["enum"] for node in (nodes.Text(", "), code(name))][1:]
    if schema["type"] == "array":
        return [nodes.Text("list of: "), *described(schema["items"])]
    return [nodes.Text(f"{WORDS[schema['type']]}{limits_of(schema)}")]


def limits_of(schema: dict[str, Any]) -> str:
    """Limits of a number in words; lengths of texts go without saying."""
    return "".join(f", {words} {schema[key]:g}" for key, words in LIMITS.items() if key in schema)


def default_of(schema: dict[str, Any], required: bool) -> Cell:
    """Default of a key; empty if it may be left out and then is nothing."""
    default = schema.get("default")
    return "required" if required else "" if default is None else code(json.dumps(default))


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive."""
    app.add_directive("pipeline-schema", PipelineSchema)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
