"""A step of the pipeline: what it reads, what it writes, and whether that is up to date.

Every verb is one `Step`. Its identity is the fingerprint of its algorithm version, of what the config sections that it
uses say beside their defaults, and of the digests of the artifacts that it reads; a step whose output carries that
identity is skipped. Neither a release of the package nor a new key changes an identity (docs/upgrading.md).
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from allmrec.core.artifacts import find_manifest, read_manifest
from allmrec.core.hashing import fingerprint
from allmrec.core.storage import Storage
from allmrec.core.workspace import Workspace
from jobs.config import Config
from jobs.runtime.console import Console
from jobs.runtime.preflight import DRIVER, Needs, preflight

Stats = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One verb. `run` does the work and commits the outputs; `plan` says what it would do and changes nothing."""

    verb: str
    # Of the config, or keys of them as "section.key"; a change in one of them runs the step again.
    sections: tuple[str, ...]
    inputs: tuple[str, ...]  # artifacts that it reads, by their names in `Workspace`
    outputs: tuple[str, ...]  # artifacts that it writes
    run: Callable[["Context"], Stats]
    plan: Callable[["Context"], Stats]
    algorithm: int = 1  # raised when the same inputs and config give another output, a changed default included
    config: type[Config] = Config  # with the sections that it reads
    # Artifacts that it also reads where the config asks for it.
    optional_inputs: Callable[[Config], tuple[str, ...]] = lambda config: ()
    # Identities of inputs that are no artifacts of the workspace: files of the log, model folders.
    external_inputs: Callable[["Context"], Any] = field(default=lambda context: None)
    late_inputs: tuple[str, ...] = ()  # artifacts that only `run` reads, and `plan` does without
    needs: Needs = DRIVER  # beside its inputs
    # Why there is nothing to do, of a step whose outputs are no artifacts; the run of a date is made once.
    finished: Callable[["Context"], str | None] = field(default=lambda context: None)

    def under(self, config: Config) -> "Step":
        """The step with all inputs that a config asks for."""
        return replace(self, inputs=(*self.inputs, *self.optional_inputs(config)), optional_inputs=lambda config: ())


@dataclass(frozen=True)
class Context:
    """What a running step needs: the config, the workspace, a console, and its identity."""

    config: Config
    workspace: Workspace
    console: Console
    fingerprint: str

    @property
    def storage(self) -> Storage:
        """Root of the workspace."""
        return self.workspace.storage

    def artifact(self, name: str) -> Storage:
        return self.workspace.at(name)

    def resolved(self, *sections: str) -> dict[str, Any]:
        """The named config sections as plain data, for an artifact's manifest."""
        return resolved(self.config, sections)


def load_step(name: str) -> Step:
    """The step of a verb's module, `module` or `module:NAME`, which is imported now."""
    module, _, attribute = name.partition(":")
    step: Step = getattr(importlib.import_module(module), attribute or "STEP")
    return step


def resolved(config: Config, sections: tuple[str, ...]) -> dict[str, Any]:
    """Sections as plain data; those that are null are left out, as if the key did not exist."""
    settings = config.model_dump(mode="json")
    return {name: settings[name] for name in ("seed", *sections) if settings[name] is not None}


def beside_defaults(config: Config, sections: tuple[str, ...]) -> dict[str, Any]:
    """The named config sections, or keys of them, as far as they differ from their defaults."""
    settings = config.model_dump(mode="json", exclude_defaults=True)
    found = {name: settings[name] for name in ("seed", *sections) if name in settings}
    for section, _, key in (name.partition(".") for name in sections if "." in name):
        if key in settings.get(section, {}):
            found.setdefault(section, {})[key] = settings[section][key]
    return found


def execute(step: Step, config: Config, console: Console, dry_run: bool = False, force: bool = False) -> bool:
    """Run one step, unless its outputs are up to date. Returns whether it ran."""
    step = step.under(config)
    workspace = config.workspace
    probe = Context(config, workspace, console, fingerprint="")
    missing = [name for name in step.inputs if find_manifest(workspace.at(name)) is None]
    if missing and dry_run:
        console.plan(step.verb, {"waits for": ", ".join(missing)})
        return False
    identity = fingerprint(
        {
            "algorithm": step.algorithm,
            "verb": step.verb,
            "config": beside_defaults(config, step.sections),
            "inputs": {name: read_manifest(workspace.at(name)).digest for name in step.inputs},
            "external_inputs": step.external_inputs(probe),
        }
    )
    context = Context(config, workspace, console, identity)
    found = [find_manifest(workspace.at(name)) for name in step.outputs]
    done = all(manifest is not None and manifest.fingerprint == identity for manifest in found)
    if dry_run:
        console.plan(step.verb, {"up to date": done, **step.plan(context)})
        return False
    why = step.finished(context)
    if done and step.outputs and not force:
        why = "its inputs and config have not changed"
    if why:
        console.skip(step.verb, why)
        return False
    with console.phase(step.verb) as phase, preflight(step.needs, config, console):
        phase.stats(step.run(context))
    return True
