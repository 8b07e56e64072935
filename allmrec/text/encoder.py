"""SBERT: item texts to embeddings Q_i."""

from allmrec.config import Section


class TextConfig(Section):
    model: str = "sentence-transformers/all-mpnet-base-v2"  # hub name or local folder
    revision: str | None = None
