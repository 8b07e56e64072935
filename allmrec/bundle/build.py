"""Building a bundle: the trained models and today's catalogue, written, probed, and made visible by `bundle.json`.

What a bundle is made of is said in `description`, how it is loaded in `loading`, which items it has in `items`.
"""

import importlib.metadata
import json
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from pydantic import Field

from allmrec.alignment.tuned_encoder import find_tuned_encoder
from allmrec.bundle.description import DESCRIPTION, FORMAT, MODELS, check_files, read_description
from allmrec.bundle.index import LISTS, index_identity, item_lists
from allmrec.bundle.items import NEW_Q, bundle_items, embed_new_texts
from allmrec.bundle.loading import load_from, probe
from allmrec.core.artifacts import MANIFEST, Manifest, file_entry, read_file, read_manifest, shard_name, to_parquet
from allmrec.core.hashing import fingerprint
from allmrec.core.pretrained import model_identity
from allmrec.core.settings import Section
from allmrec.core.storage import Storage
from allmrec.core.tensor_files import tensor_shards, to_safetensors
from allmrec.core.version import __version__
from allmrec.core.workspace import Workspace
from allmrec.data.catalogue import item_shards
from allmrec.data.trained_items import ids_digest, read_trained_items, words_digest

# key of `baselines` → part
SYSTEMS = {
    "llm_srec": Workspace.llm_srec,
    "tallrec": Workspace.tallrec,
    "morec": Workspace.morec,
    "ctrl": Workspace.ctrl,
    "recformer": Workspace.recformer,
}
OF_LLM = (Workspace.llm_srec, Workspace.tallrec)  # those that know items by what the LLM reads
DEPENDENCIES = ("torch", "transformers", "sentence-transformers", "tokenizers", "safetensors", "ray", "deepspeed")

_File = tuple[str, bytes, dict[str, int]]  # name, content, and what the manifest says of it beside


class BundleConfig(Section):
    """What `bundle build` puts together."""

    # Items with fewer training interactions, or without an E_i, are shown to the LLM by their text embedding q_i.
    # Stage-2 trains on the same choice.
    min_interactions_for_cf: int = Field(1, ge=0)


def build_bundle(storage: Storage, config: Mapping[str, Any], index_above: int | None = None) -> str:
    """Gather the workspace's artifacts into `bundles/<version>/`; building the same again changes nothing.

    Args:
        storage: of a workspace that has the artifacts MODELS, `items` and `sequences`, and item_text_embeddings (or
            those of the fine-tuned encoder) of the items whose texts training has not seen.
        config: resolved sections; text, llm, prompt and bundle among them.
        index_above: with more items than this it has an index of them; None: never.

    Returns:
        the version.

    Raises:
        ValueError: an artifact is missing or damaged, names it; the projectors were trained on other embeddings of the
            items than `config` says; or the models do not fit together: nothing becomes visible then.
    """
    workspace = Workspace(storage)
    _check_embeddings(read_manifest(workspace.projectors), config)
    identities = {
        "llm": _identity(config["llm"]["name"], config["llm"]["revision"]),
        "text": _identity(config["text"]["model"], config["text"]["revision"]),
    }
    return _build(workspace, workspace, config, identities, index_above)


def refresh_bundle(storage: Storage, version: str, index_above: int | None = None) -> str:
    """As `build_bundle` with the models of a bundle, whatever has been trained since. Raises ValueError as that."""
    workspace, description = Workspace(storage), read_description(storage, version)
    models = Workspace(workspace.bundles.at(version))
    return _build(workspace, models, description["config"], description["models"], index_above)


def _build(
    workspace: Workspace,
    models: Workspace,
    config: Mapping[str, Any],
    identities: Mapping[str, Any],
    index_above: int | None,
) -> str:
    named = config.get("baselines") or {}
    systems = [system for key, system in SYSTEMS.items() if named.get(key) is not None]
    manifests = {model: read_manifest(models.at(model)) for model in (*MODELS, *systems)}
    made_of = {
        "llm": identities["llm"]["identity"],
        "teacher": manifests["teacher"].digest,
        "alignment": manifests["alignment"].digest,
        "bundle.min_interactions_for_cf": config["bundle"]["min_interactions_for_cf"],
    }
    _check_systems({system: manifests[system] for system in systems}, made_of)
    _check_trained_items(models, [system for system in systems if system not in OF_LLM])
    items = bundle_items(models, workspace.items)
    content = {
        "format": FORMAT,
        "config": dict(config),
        "models": dict(identities),
        "parts": {model: manifests[model].digest for model in MODELS},
        # Apart, so that no user's row depends on a system that does not rank it.
        **({"systems": {system: manifests[system].digest for system in systems}} if systems else {}),
        "items": words_digest(workspace.items),
        **index_identity(len(items), index_above),
    }
    version = fingerprint(content)[:12]
    root = workspace.bundles.at(version)
    if root.exists(DESCRIPTION):
        return version
    own = text_embeddings(workspace, models)
    texts = embed_new_texts(models, items, own, workspace.item_text_embeddings, workspace.items, systems)
    files = _write_models(models, root, manifests)
    shards = enumerate(item_shards(items))
    tables = ((shard_name(number), to_parquet(shard), {"rows": len(shard)}) for number, shard in shards)
    files |= _write_part(root, Workspace.items, tables)
    files |= _write_part(root, Workspace.new_texts, _tensor_files(NEW_Q, texts))
    description = {
        "version": version,
        **content,
        "code": __version__,
        "item_ids": ids_digest(items),
        "data": {table: read_manifest(workspace.at(table)).digest for table in (Workspace.items, Workspace.sequences)},
        "dependencies": {"python": platform.python_version(), **_versions()},
        "files": dict(sorted(files.items())),
        "stats": {model: manifest.stats for model, manifest in manifests.items()},
    }
    description = json.loads(json.dumps(description, default=str))
    check_files(root, description)
    bundle = load_from(root, description)
    probe(bundle)
    if "index" in content:
        lists = _tensor_files(LISTS, item_lists(bundle.teacher, config["seed"]))
        description["files"] |= _write_part(root, Workspace.index, lists)
    description["digest"] = fingerprint(description)
    root.create(DESCRIPTION, json.dumps(description, indent=1).encode())
    return version


def text_embeddings(workspace: Workspace, models: Workspace) -> Storage:
    """Q of the workspace's items, by the encoder that the models' Stage-1 ended with."""
    if not is_fine_tuned(models):
        return workspace.item_text_embeddings
    tuned = find_tuned_encoder(workspace, read_manifest(models.alignment))
    return workspace.at(tuned.embeddings if tuned else Workspace.fine_tuned_text_embeddings)


def is_fine_tuned(models: Workspace) -> bool:
    """Whether Stage-1 trained the text encoder."""
    return bool(read_manifest(models.alignment).config.get("alignment", {}).get("text_encoder") == "fine-tuned")


def _write_models(models: Workspace, root: Storage, manifests: Mapping[str, Manifest]) -> dict[str, dict[str, Any]]:
    """Copy the trained models with their manifests."""
    files = {}
    for model, manifest in manifests.items():
        for name in manifest.files:
            key, data = f"{model}/{name}", read_file(models.at(model), manifest, name)
            if not root.create(key, data) and root.read(key) != data:  # a build that failed has left it
                root.write(key, data)
            files[key] = file_entry(data)
        files |= _put(root, f"{model}/{MANIFEST}", models.at(model).read(MANIFEST))
    return files


def _write_part(root: Storage, kind: str, files: Iterable[_File]) -> dict[str, dict[str, Any]]:
    """An artifact of files."""
    written, entries = dict[str, dict[str, Any]](), dict[str, dict[str, Any]]()
    for name, data, more in files:
        written |= _put(root, f"{kind}/{name}", data)
        entries[name] = written[f"{kind}/{name}"] | more
    return written | _put(root, f"{kind}/{MANIFEST}", Manifest(kind, "", entries).to_json())


def _tensor_files(name: str, tensors: Mapping[str, torch.Tensor]) -> Iterator[_File]:
    return ((file, to_safetensors(shard), {}) for file, shard in tensor_shards(name, tensors))


def _put(root: Storage, key: str, data: bytes) -> dict[str, dict[str, Any]]:
    """Of two builders of one version the first one's file stays: manifests hold timings, machines round differently."""
    root.create(key, data)
    return {key: file_entry(root.read(key))}


def _check_embeddings(projectors: Manifest, config: Mapping[str, Any]) -> None:
    """Raises ValueError when F_I was trained on other inputs than a bundle of this config would give it."""
    before = {"user_input": "representation", "sharpness": 1.0}  # they became keys
    for section, key in (
        ("projection", "item_input"),
        ("projection", "user_input"),
        ("projection", "sharpness"),
        ("bundle", "min_interactions_for_cf"),
    ):
        made, wanted = projectors.config.get(section, {}).get(key, before.get(key)), config[section][key]
        if made != wanted:
            raise ValueError(
                f"the projectors were trained with {section}.{key} {made!r}, and the config says {wanted!r}; run "
                "train-projection again"
            )


def _check_systems(systems: Mapping[str, Manifest], made_of: Mapping[str, Any]) -> None:
    """Raises ValueError when a system was trained with something else than the bundle's; each says what it was."""
    for system, manifest in systems.items():
        for what, expected in made_of.items():
            if manifest.stats.get(what, expected) != expected:
                raise ValueError(
                    f"{system} was trained with another {what} than the bundle's; run train-baselines again"
                )


def _check_trained_items(models: Workspace, systems: Sequence[str]) -> None:
    """Raises ValueError when a system was trained on other items than the teacher."""
    expected = ids_digest(read_trained_items(models.teacher, ["item_id"]))
    for system in systems:
        if ids_digest(read_trained_items(models.at(system), ["item_id"])) != expected:
            raise ValueError(f"{system} was trained on other items than the teacher; run train-baselines again")


def _identity(name: str, revision: str | None) -> dict[str, str]:
    return {"name": name, "identity": model_identity(name, revision)}


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in DEPENDENCIES}
