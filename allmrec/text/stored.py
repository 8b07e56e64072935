"""A fine-tuned text encoder among a run's artifacts: SentenceTransformers' own layout, its weights as safetensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from allmrec.artifacts import describe, read_file, read_manifest
from allmrec.storage import Storage
from allmrec.text.encoder import TextConfig

FOLDER = "encoder"  # in the artifact


def save_encoder(storage: Storage, encoder: Any) -> dict[str, dict[str, Any]]:
    """Write a SentenceTransformer below `encoder/`; returns the files' entries for `seal`."""
    files = {}
    with TemporaryDirectory() as folder:
        encoder.save_pretrained(folder, create_model_card=False, safe_serialization=True)
        for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            name, data = f"{FOLDER}/{path.relative_to(folder).as_posix()}", path.read_bytes()
            storage.write(name, data)
            files[name] = describe(data)
    return files


@contextmanager
def at_hand(config: TextConfig, stored: Storage | None) -> Iterator[TextConfig]:
    """`config` itself, or of the encoder in the artifact `stored`, of which a copy lies here while the context lasts.

    Raises:
        ValueError: the artifact is missing or damaged.
    """
    if stored is None:
        yield config
        return
    manifest = read_manifest(stored)
    with TemporaryDirectory() as parent:
        folder = Path(parent, "fine-tuned")
        for name in manifest.files:
            if name.startswith(f"{FOLDER}/"):
                path = folder / name.removeprefix(f"{FOLDER}/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(read_file(stored, manifest, name))
        yield config.model_copy(update={"model": str(folder), "revision": None})
