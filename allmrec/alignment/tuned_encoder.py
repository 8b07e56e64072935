"""The text encoders that Stage-1 fine-tuned, each stored once, under the digest of its files.

    encoders/<digest>/encoder/                       a SentenceTransformer
    encoders/<digest>/manifest.json                  the sha256 of its files
    encoders/<digest>/text_embeddings/               the catalogue by it, where another has been trained since

The manifest of an alignment says which one it ended with, and a bundle has a copy of that manifest: as long as a bundle
names an encoder, `allmrec.retention` keeps it, and the bundle takes new items whatever has been trained since. An
alignment that names none is of an earlier release: its encoder is in `fine_tuned` until Stage-1 is trained again.
"""

from dataclasses import dataclass
from typing import Any

from allmrec.core.artifacts import MANIFEST, Manifest, commit, file_entry, find_manifest
from allmrec.core.workspace import Workspace
from allmrec.text.encoder import encoder_files

ENCODER = "encoder"  # the folder of the SentenceTransformer
DIGEST = "encoder_digest"  # in the manifest's stats of an alignment, and of `fine_tuned`
_EMBEDDINGS = "text_embeddings"


@dataclass(frozen=True)
class TunedEncoder:
    """Where a fine-tuned encoder is."""

    model: str  # folder or s3:// prefix, as `text.model`
    embeddings: str  # the artifact of the catalogue's embeddings by it


def save_tuned_encoder(workspace: Workspace, encoder: Any) -> str:
    """Store a SentenceTransformer, unless it is there; returns its digest."""
    files = {f"{ENCODER}/{name}": data for name, data in encoder_files(encoder).items()}
    entries = {name: file_entry(data) for name, data in files.items()}
    digest = encoder_digest(Manifest(Workspace.encoders, "", entries))
    target = workspace.encoders.at(digest)
    for name, data in files.items():
        if not target.create(name, data) and target.read(name) != data:  # damaged since
            target.write(name, data)
    commit(target, Workspace.encoders, digest, entries)
    return digest


def find_tuned_encoder(workspace: Workspace, trained: Manifest) -> TunedEncoder | None:
    """The encoder that a training ended with, or None where it is gone.

    Args:
        trained: manifest of an alignment, in a workspace or a bundle, or of `fine_tuned`.
    """
    last, digest = find_manifest(workspace.fine_tuned), trained.stats.get(DIGEST)
    is_last = last is not None and (last.fingerprint, last.stats.get(DIGEST)) == (trained.fingerprint, digest)
    if digest is None:
        model = workspace.fine_tuned.name(ENCODER)
        return TunedEncoder(model, Workspace.fine_tuned_text_embeddings) if is_last else None
    if not workspace.encoders.exists(f"{digest}/{MANIFEST}"):
        return None
    # The last one's are kept apart: a training may be about to read them.
    embeddings = Workspace.fine_tuned_text_embeddings if is_last else former_embeddings(digest)
    return TunedEncoder(workspace.encoders.name(f"{digest}/{ENCODER}"), embeddings)


def former_embeddings(digest: str) -> str:
    """The artifact of the catalogue's embeddings by an encoder that is not the last one."""
    return f"{Workspace.encoders}/{digest}/{_EMBEDDINGS}"


def encoder_digest(manifest: Manifest) -> str:
    """What the folder of these files is named."""
    return manifest.digest[:16]
