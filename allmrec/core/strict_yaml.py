"""YAML without its guesses: values come out as the text of the file, and what a reader would miss is refused.

YAML 1.1 takes `010` for 8, `12:30` for 750, `no` for false and 2024-01-01 for a date, and lets the second of two equal
keys win. Here only null is read (`null`, `~` or nothing; in a list it is a word), and the config's sections, which know
what type a key has, parse the rest. Anchors, aliases and merges (`<<`) are read; tags (`!!binary`) are not.
"""

import codecs
import re
from typing import Any

import yaml

_TEXT, _NULL, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("str", "null", "merge"))
_OTHERS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


class _Loader(yaml.SafeLoader):
    """Knows text, null, lists and mappings."""

    yaml_implicit_resolvers = {}  # noqa: RUF012
    yaml_constructors = {  # noqa: RUF012
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag in (_TEXT, _NULL, "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map", None)
    }


_Loader.add_implicit_resolver(_NULL, re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(_MERGE, re.compile(r"<<\Z"), ["<"])


def load(text: str | bytes) -> Any:
    """A document as dictionaries, lists, texts and None.

    Raises:
        ValueError: it is no YAML, not UTF-8, or one of the above; one line that begins with the line's number.
    """
    if isinstance(text, bytes):
        text = _decoded(text)
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check(node, set())
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark, reason = error.problem_mark or error.context_mark, error.problem or error.context or "it cannot be read"
        raise ValueError(f"line {mark.line + 1 if mark else 1}: not valid YAML: {_hint(reason)}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(f"line {line}: not valid YAML: the character #x{error.character:04x} is not allowed") from None
    except RecursionError:
        raise ValueError("line 1: nested too deeply") from None


def _decoded(text: bytes) -> str:
    for mark, name in _OTHERS.items():
        if text.startswith(mark):
            raise ValueError(f"line 1: the file is {name}; save it as UTF-8")
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line}: byte 0x{text[error.start]:02x} is not UTF-8; save the file as UTF-8") from None


def _check(node: yaml.Node, seen: set[int]) -> None:
    """Raise ValueError for a key that is none or occurs twice; make what looks like null in a list text."""
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            if entry.tag == _NULL and entry.value:
                entry.tag = _TEXT
            _check(entry, seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag not in (_TEXT, _MERGE):
                raise ValueError(f"line {line}: a key must be text; put {_shown(key)} in quotes")
            if key.value in lines:
                raise ValueError(
                    f"line {line}: the key {key.value!r} already exists, in line {lines[key.value]}; "
                    "keep one of the two"
                )
            lines[key.value] = line
            _check(value, seen)


def _shown(key: yaml.Node) -> str:
    return repr(key.value) if isinstance(key, yaml.ScalarNode) else "what is none"


def _hint(reason: str) -> str:
    if "\\t" in reason:
        return f"{reason}; indent with spaces, not tabs"
    if "could not determine a constructor for the tag" in reason:
        return f"{reason.split()[-1]} is a tag, and tags are not read"
    return reason
