"""Write docs/config.md from the config's models: every key with its type, default and the sentence that its class has.

    python docs/make_config.py

The sentences are the comments beside the fields, so the page cannot say anything else than the code.
"""

import ast
import inspect
import json
import tokenize
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from jobs.config import Config

PAGE = Path(__file__).parent / "config.md"
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥", "max_length": "length ≤"}
_HEAD = """# Config

One YAML file per deployment; `--set section.key=value` overrides a key for one run. Unknown keys are refused. The resolved
config is stored in every artifact. This page is generated from the code (`python docs/make_config.py`).
"""


def render() -> str:
    """The page."""
    lines = [_HEAD]
    for name, section in sections(Config):
        lines += [f"## {name}" if name else "## Top level", ""]
        if (text := inspect.cleandoc(section.__doc__ or "")) and section is not Config:
            lines += [text.replace("\n", " "), ""]
        lines += ["| key | type | default | |", "|---|---|---|---|"]
        lines += [row(section, key, field) for key, field in section.model_fields.items()]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def sections(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """The model and the sections below it, each class once, in the order of the file."""
    seen: set[type[BaseModel]] = set()

    def walk(model: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
        if model in seen:
            return
        seen.add(model)
        yield path, model
        for key, field in model.model_fields.items():
            for inner in _models(field.annotation):
                yield from walk(inner, f"{path}.{key}".lstrip("."))

    return walk(model, path)


def row(section: type[BaseModel], key: str, field: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(rule, bound):g}"
        for rule in field.metadata
        for bound, sign in _BOUNDS.items()
        if getattr(rule, bound, None) is not None
    ]
    kind = ", ".join([annotation(section, key), *bounds])
    cells = (f"`{key}`", kind, default(field), comments(section).get(key, ""))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def annotation(section: type[BaseModel], key: str) -> str:
    """The field's type as YAML's readers know it."""
    models = list(_models(section.model_fields[key].annotation))
    if models:
        return f"section ({models[0].__name__})"
    text = next(ast.unparse(node.annotation) for node in _fields(section) if _name(node) == key)
    choices = get_args(section.model_fields[key].annotation)
    if choices and all(isinstance(choice, str) for choice in choices):
        return " \\| ".join(choices).replace("\\|", "|")
    return text.replace("None", "null").replace("Literal", "one of ")


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see below"
    text = json.dumps(value, default=str, ensure_ascii=False)
    return f"`{text}`"


def comments(section: type[BaseModel]) -> dict[str, str]:
    """What the source says of each field: the comment lines above it and the comment behind it."""
    found: dict[str, str] = {}
    for base in reversed(section.__mro__):
        if not (issubclass(base, BaseModel) and base.__module__.split(".")[0] in {"allmrec", "jobs"}):
            continue
        lines = _source(base).splitlines()
        said = _comments_by_line(base)
        for node in _fields(base, inherited=False):
            above, line = [], node.lineno - 1
            while line >= 1 and lines[line - 1].strip().startswith("#"):
                above.insert(0, said[line])
                line -= 1
            behind = [said[number] for number in range(node.lineno, node.end_lineno + 1) if number in said]
            found[_name(node)] = " ".join([*above, *behind])
    return found


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _source(section: type[BaseModel]) -> str:
    return inspect.cleandoc("\n" + inspect.getsource(section))


def _fields(section: type[BaseModel], inherited: bool = True) -> list[Any]:
    bases = [base for base in section.__mro__ if issubclass(base, BaseModel) and base is not BaseModel]
    nodes = []
    for base in bases if inherited else [section]:
        body = ast.parse(_source(base)).body[0].body  # type: ignore[attr-defined]
        nodes += [node for node in body if isinstance(node, ast.AnnAssign)]
    return nodes


def _name(node: Any) -> str:
    return node.target.id


def _comments_by_line(section: type[BaseModel]) -> dict[int, str]:
    tokens = tokenize.generate_tokens(StringIO(_source(section)).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


if __name__ == "__main__":
    PAGE.write_text(render())
