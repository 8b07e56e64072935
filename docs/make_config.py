"""Write docs/config.md from the config's models: every key with its type, its default and what its comment says.

    python docs/make_config.py

The descriptions are the comments beside the fields, so the page cannot differ from the code.
"""

import ast
import inspect
import json
import tokenize
import types
from collections.abc import Iterator
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from allmrec.core.settings import Section
from jobs.config import Config

PAGE = Path(__file__).parent / "config.md"
Model = type[BaseModel]
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥", "max_length": "length ≤"}
_TYPES = {str: "text", dict: "mapping", type(None): "null"}
_HEAD = """# Config

One YAML file per deployment; `--set section.key=value` overrides a key for one run. Unknown keys are refused. The
resolved config is stored in every artifact. This page is generated from the code (`python docs/make_config.py`).
"""


def render() -> str:
    """The page."""
    lines = [_HEAD]
    for model, paths in sections().items():
        lines += ["## " + (", ".join(f"`{path}`" for path in paths) if paths[0] else "Top level"), ""]
        if paths[0]:
            lines += [inspect.cleandoc(model.__doc__ or "").replace("\n", " "), ""]
        base, keys = own_keys(model)
        if base:
            lines += [f"The keys of `{sections()[base][0]}`, and:", ""]
        lines += ["| key | type | default | |", "|---|---|---|---|"]
        lines += [row(model, key, model.model_fields[key]) for key in keys]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def sections() -> dict[Model, list[str]]:
    """The config's models, each with the paths of its sections, in the order of the file."""
    found: dict[Model, list[str]] = {}

    def walk(model: Model, path: str) -> None:
        found.setdefault(model, []).append(path)
        for key, field in model.model_fields.items():
            for inner in _models(field.annotation):
                walk(inner, f"{path}.{key}".lstrip("."))

    walk(Config, "")
    return found


def own_keys(model: Model) -> tuple[Model | None, list[str]]:
    """The section that a section extends, if there is one on the page, and the keys that it does not share with it."""
    base = next((base for base in model.__mro__[1:] if base in sections()), None)
    return base, [key for key in model.model_fields if base is None or key not in base.model_fields]


def row(model: Model, key: str, field: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(rule, bound):g}"
        for rule in field.metadata
        for bound, sign in _BOUNDS.items()
        if getattr(rule, bound, None) is not None
    ]
    kind = ", ".join([type_name(field.annotation), *bounds])
    cells = (f"`{key}`", kind, default(field), comments(model).get(key, ""))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def type_name(annotation: Any) -> str:
    """A type in the words of a person who writes YAML."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(str(choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        return " | ".join(type_name(argument) for argument in arguments)
    if origin in (list, tuple):
        return f"list of {type_name(arguments[0])}"
    kind = origin or annotation
    return "section" if issubclass(kind, BaseModel) else _TYPES.get(kind, kind.__name__)


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return ""
    return f"`{json.dumps(value, default=str, ensure_ascii=False)}`"


def comments(model: Model) -> dict[str, str]:
    """What the source says of each field: the comment lines above it and the comment after it."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not issubclass(base, Section) or base is Section:
            continue
        lines, by_line = _source(base).splitlines(), _comments_by_line(base)
        body = ast.parse(_source(base)).body[0].body  # type: ignore[attr-defined]
        for node in [node for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]:
            above, line = [], node.lineno - 1
            while line >= 1 and lines[line - 1].strip().startswith("#"):
                above.insert(0, by_line[line])
                line -= 1
            after = [by_line[number] for number in range(node.lineno, (node.end_lineno or 0) + 1) if number in by_line]
            found[node.target.id] = " ".join([*above, *after])
    return found


def _models(annotation: Any) -> Iterator[Model]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


@cache  # Python reads the whole module again for every class
def _source(model: Model) -> str:
    return inspect.cleandoc("\n" + inspect.getsource(model))


def _comments_by_line(model: Model) -> dict[int, str]:
    tokens = tokenize.generate_tokens(StringIO(_source(model)).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


if __name__ == "__main__":
    PAGE.write_text(render())
