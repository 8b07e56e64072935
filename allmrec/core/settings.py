"""The base of every config section: frozen, validated when built, unknown keys refused.

Knows how YAML and `--set a.b=c` become a nested dictionary of texts, whose types the sections parse. Knows no section:
each is next to what it configures, and `jobs.config.Config` composes them.
"""

import difflib
import json
from collections.abc import Sequence
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from allmrec.core import strict_yaml


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"no time zone {name!r}; write it as in Europe/Berlin") from None
    return name


Timezone = Annotated[str, AfterValidator(_known_zone)]  # a name of the tz database


class Section(BaseModel):
    """A frozen group of settings. Unknown keys raise and name the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for key in values:
                if key not in cls.model_fields:
                    near = difflib.get_close_matches(str(key), cls.model_fields, n=1, cutoff=0.5)
                    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(cls.model_fields)}"
                    raise ValueError(f"unknown key {key!r}; {hint}")
        return values


def read_settings(text: str | bytes, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Parse a YAML mapping and apply `path.to.key=value` overrides.

    Raises:
        ValueError: the text is no YAML mapping or is not read (see `strict_yaml`), or an override has no `=`.
    """
    settings = strict_yaml.load(text)
    settings = {} if settings is None else settings
    if not isinstance(settings, dict):
        raise ValueError("the config must be a YAML mapping of sections, e.g. `data: {...}`")
    for override in overrides:
        path, separator, value = override.partition("=")
        if not separator:
            raise ValueError(f"--set {override!r}: write it as section.key=value")
        *parents, leaf = path.strip().split(".")
        target = settings
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ValueError(f"--set {override!r}: {parent!r} is a value, not a section")
        try:
            target[leaf] = strict_yaml.load(value)
        except ValueError as error:
            raise ValueError(f"--set {override!r}: {error}") from None
    return settings


def _with_types(value: Any) -> Any:
    """Text as the number or the boolean that it is in JSON; other text as it is."""
    if isinstance(value, dict):
        return {key: _with_types(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_with_types(entry) for entry in value]
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


OtherSettings = Annotated[dict[str, Any], BeforeValidator(_with_types)]  # of another program, which knows its keys


def one_line(error: ValidationError) -> str:
    """A pydantic error as one line: `section.key: what is wrong; ...`."""
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc']) or 'config'}: {problem['msg'].removeprefix('Value error, ')}"
        for problem in error.errors()
    )
