"""Read YAML and JSON files written by people: safely, and with errors that say what to correct and where.

A document is plain data of a limited size: no tags, no aliases, no key twice, nothing that grows while it is parsed.
:func:`read_as` and :func:`as_model` check the data against a pydantic model (:class:`DocumentModel`) and report all
problems at once.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Self, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError

from opd.host.errors import problem_list

MAX_BYTES = 64 * 1024
MAX_DEPTH = 20

MAX_SHOWN = 80
"""Characters of a wrong key or value that an error quotes."""

Model = TypeVar("Model", bound=BaseModel)

Location = Sequence[int | str]
"""A place in a document: keys and, for lists, positions from 0."""


class DocumentError(ValueError):
    """A document is malformed, too large or too deep, or does not match the model it is read as."""


class DocumentModel(BaseModel):
    """Base of the models of documents: immutable, without unknown keys or type conversions; numbers are finite.

    The docstring of an attribute tells people what belongs there when it is missing or wrong. Declare sequences as
    ``list``: that is what YAML gives, and types are not converted.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def conflicts(cls, content: Mapping[Any, Any]) -> Iterator[tuple[Location, str]]:
        """Find problems that concern several keys of a mapping, whose values may still be of any type.

        They are reported together with those of the single fields, so models override this instead of validating
        themselves once their fields are valid.

        Yields:
            Place below the mapping, and what is wrong there.
        """
        yield from ()

    @model_validator(mode="wrap")
    @classmethod
    def _report_together(cls, content: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        found = cls.conflicts(content) if isinstance(content, Mapping) else ()
        conflicts = [_error("value_error", place, reason, content) for place, reason in found]
        if not conflicts:
            return handler(content)
        try:
            handler(content)
            others = []
        except ValidationError as error:
            others = [
                _error(each["type"], each["loc"], each["msg"], each["input"], each.get("ctx"))
                for each in error.errors(include_url=False)
            ]
        raise ValidationError.from_exception_data(cls.__name__, [*others, *conflicts])


def _error(
    kind: Any, place: Location, reason: str, value: Any, context: dict[str, Any] | None = None
) -> InitErrorDetails:
    return InitErrorDetails(type=PydanticCustomError(kind, reason, context), loc=tuple(place), input=value)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------- plain data


def read_document(path: Path) -> Any:
    """Read the content of a YAML file, None if it is empty.

    Raises:
        FileNotFoundError: if there is no such file.
        DocumentError: if it is not one plain document within :data:`MAX_BYTES` and :data:`MAX_DEPTH`.
    """
    return parse_document(_read(path), str(path))


def parse_document(content: bytes, source: str) -> Any:
    """Parse a YAML document, None if it is empty.

    Args:
        content: UTF-8.
        source: name of the document in error messages.

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


def read_json(path: Path, remedy: str = "correct it") -> Any:
    """Read the content of a JSON file.

    Args:
        path: the file, in UTF-8.
        remedy: what to do about a file that is not JSON.

    Raises:
        FileNotFoundError: if there is no such file.
        DocumentError: if it is not JSON, or nested too deep.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{path} is not JSON: {error}; {remedy}") from error


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


class _Loader(yaml.SafeLoader):
    """Refuse a repeated key; other loaders silently take its last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, count in counts.items():
            if count > 1:
                raise DocumentError(f"line {_line(node)}: key {key!r} appears twice")
        return super().construct_mapping(node, deep)


def _check_events(text: str) -> None:
    """Refuse everything beyond plain data before any of it is built."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line, tag = f"line {_line(event)}", getattr(event, "tag", None)
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


def _line(part: Any) -> int:
    return part.start_mark.line + 1


# -------------------------------------------------------------------------------------------- data of a model


def read_as(
    model: type[Model],
    path: Path,
    defaults: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Model:
    """Read a YAML file as an instance of a pydantic model.

    Args:
        model: the model.
        path: the file.
        defaults: values by key that the file may replace; with them the file may be empty.
        overrides: values by key that take precedence over those of the file.

    Raises:
        FileNotFoundError: if there is no such file.
        DocumentError: if it is not one plain document within the limits, or does not match the model; it lists all
            problems, each with its place, line, value and remedy.
    """
    document = _read(path)
    content = parse_document(document, str(path))
    if content is None and defaults is not None:
        content = {}
    if isinstance(content, Mapping):
        content = {**(defaults or {}), **content, **(overrides or {})}
    root = cache(lambda: yaml.compose(document.decode(), Loader=yaml.SafeLoader))  # needed by errors only
    return as_model(model, content, str(path), lambda location: _line_of(root(), location))


def as_model(model: type[Model], content: Any, source: str, line_of: Callable[[Location], int] | None = None) -> Model:
    """Check plain data against a pydantic model, and return the instance it describes.

    Args:
        model: the model.
        content: the data, as :func:`parse_document` returns them.
        source: name of the document in error messages.
        line_of: finds the line of a place in the document; without it errors have no lines.

    Raises:
        DocumentError: if the data do not match; it lists all problems, each with its place, value and remedy.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise DocumentError(describe_problems(error, source, model, line_of)) from error


def describe_problems(
    error: ValidationError, source: str, model: Any = None, line_of: Callable[[Location], int] | None = None
) -> str:
    """Describe a validation error for people: every problem with its place, value, limit and remedy.

    Args:
        error: raised by pydantic.
        source: name of what was validated.
        model: the validated model; with it the description names allowed keys and what belongs at a place.
        line_of: finds the line of a place; with it the description gives line numbers.
    """
    details = error.errors(include_url=False)
    if len(details) == 1:
        return f"{source}: {_describe(details[0], model, line_of)}"
    heading = f"{source} has {len(details)} problems"
    return problem_list(heading, details, lambda problem: _describe(problem, model, line_of))


def _describe(problem: Mapping[str, Any], model: Any, line_of: Callable[[Location], int] | None) -> str:
    """Describe one problem: place, line, value, and what should be there."""
    location = [part for part in problem["loc"] if part != "[key]"]
    keys, field = _declaration(model, location)
    line = f" (line {line_of(location)})" if line_of is not None else ""
    place, hint = f"{_place(location)}{line}", _hint(field)
    match problem["type"]:
        case "missing":
            return f"{place} is missing{hint}"
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"{place} is not a known key; known are {', '.join(keys) or 'none'}"
        case "too_short":
            least = problem["ctx"]["min_length"]
            return f"{place} needs at least {least} {'entry' if least == 1 else 'entries'}{hint}"
        case "value_error":  # of a validator of ours, which names the value
            reason = problem["msg"].removeprefix("Value error, ")
            return f"{place}: {reason}" if location else reason
        case kind:
            expected = _EXPECTED.get(kind) or re.sub(r"^(Input|String|Dictionary|Value) should", "must", problem["msg"])
    if kind == "model_type" and keys:
        expected += f" of {', '.join(keys)}"
    for wording, shorter in (("greater than or equal to", "at least"), ("less than or equal to", "at most")):
        expected = expected.replace(wording, shorter)
    join = ":" if kind == "string_pattern_mismatch" else ", not"
    return f"{place} {expected}{join} {_shown(problem['input'])}{hint}"


_EXPECTED = {
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "invalid_key": "must be text",
    "list_type": "must be a list",
    "mapping_type": "must be a mapping",
    "model_type": "must be a mapping",
    "string_pattern_mismatch": "is not of the right form",
    "string_type": "must be text, in quotes where YAML reads something else",
}
"""Expectations by pydantic's type of error, where its own wording is for programmers."""


def _place(location: Location) -> str:
    """Write a place as in ``tasks[0].name``."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return _shortened(text) or "the document"


def _hint(field: FieldInfo | None) -> str:
    """Format what a field declares about its values, in brackets."""
    parts = []
    if field is not None and field.description:
        parts.append(field.description.rstrip("."))
    if field is not None and field.examples:
        parts.append(f"such as {field.examples[0]}")
    return f" ({', '.join(parts)})" if parts else ""


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if value is None or isinstance(value, bool):
        return "nothing" if value is None else str(value).lower()
    return _shortened(repr(value))


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _declaration(model: Any, location: Location) -> tuple[list[str], FieldInfo | None]:
    """Look up what a model declares at a place.

    Returns:
        Keys of the mapping there (of the one around it, where the place itself is not declared), and the declared
        field, None if the place is not a field.
    """
    declared: FieldInfo | None = None
    for part in location:
        fields = _fields(model)
        if part in fields:
            declared = fields[part]
            model = _unwrapped(declared.annotation)
        elif not fields and get_args(model):  # an element of a list or a value of a mapping
            declared, model = None, _unwrapped([each for each in get_args(model) if each is not Ellipsis][-1])
        else:
            declared = None
            break
    return list(_fields(model)), declared


def _unwrapped(annotation: Any) -> Any:
    """Strip metadata and None from an annotation."""
    while get_origin(annotation) in (Annotated, Union, UnionType):
        annotation = next(each for each in get_args(annotation) if each is not NoneType)
    return annotation


def _fields(model: Any) -> Mapping[Any, FieldInfo]:
    return getattr(model, "__pydantic_fields__", {})  # of models and of dataclasses


def _line_of(root: yaml.Node | None, location: Location) -> int:
    """Find the line of a place, or of the innermost part of it that the document has."""
    if root is None:  # an empty document
        return 1
    node = root
    for part in location:
        children: Mapping[Any, yaml.Node] = {}
        if isinstance(node, yaml.MappingNode):
            children = {key.value: value for key, value in node.value}
        elif isinstance(node, yaml.SequenceNode):
            children = {str(number): value for number, value in enumerate(node.value)}
        if str(part) not in children:
            break
        node = children[str(part)]
    return _line(node)
