"""The base of every config section: frozen, validated when built, unknown keys refused.

Knows how YAML and `--set a.b=c` become a nested dictionary. Knows no section: each stands next to what it
configures, and `jobs.config.Config` composes them.
"""

import difflib
from collections.abc import Sequence
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator


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


def read_settings(text: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Parse a YAML mapping and lay `path.to.key=value` overrides over it.

    Raises:
        ValueError: the text is no YAML mapping, or an override has no `=`.
    """
    try:
        settings = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"the config is not valid YAML: {error}") from None
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
        target[leaf] = yaml.safe_load(value)
    return settings


def one_line(error: ValidationError) -> str:
    """A pydantic error as one line: `section.key: what is wrong; ...`."""
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc']) or 'config'}: {problem['msg'].removeprefix('Value error, ')}"
        for problem in error.errors()
    )
