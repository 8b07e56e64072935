"""SBERT: item texts to embeddings Q_i (paper section 4.1.1).

Loads any SentenceTransformer from a hub name or a local folder, safetensors only, and never runs code that comes
with a model. Knows texts and vectors; which items they belong to is its callers' business.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import Field

from allmrec.core.columns import to_lists
from allmrec.core.pretrained import model_folder, model_identity, refuse_incomplete_encoder
from allmrec.core.settings import Section


class TextConfig(Section):
    """Which text encoder, and how it reads an item's text."""

    model: str = "sentence-transformers/all-mpnet-base-v2"  # hub name, local folder, or s3:// prefix
    revision: str | None = None  # of a hub name; pin it for reproducible results
    prompt: str | None = None  # before every text, e.g. "passage: "; null: the model's default, "": none
    batch_size: int = Field(64, ge=1)  # texts in one forward pass
    max_chars: int = Field(4000, ge=1)  # longer texts are cut; the model also cuts at its own number of tokens
    # Of the encoder's weights; auto: bfloat16 on GPUs, float32 on CPUs. Q_i is always float32.
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    min_workers: int | None = Field(None, ge=1)  # the pool grows from this to workers.num_workers; null: no growth

    def dtype_on(self, device: str) -> str:
        if self.dtype == "auto":
            return "bfloat16" if device == "cuda" else "float32"
        return self.dtype


def encoder_folder(config: TextConfig) -> Path:
    """Where the encoder's files are. Raises ValueError when there is no such model."""
    return model_folder(config.model, config.revision, "text.model")


def load_encoder(config: TextConfig, device: str = "cpu") -> Any:
    """The SentenceTransformer, in eval mode; its parameters can be trained. `text.prompt` is its default prompt.

    Raises:
        ValueError: no such model, or its files are not just the weights that its config describes.
    """
    from sentence_transformers import SentenceTransformer

    folder = encoder_folder(config)
    try:
        encoder = SentenceTransformer(
            str(folder),
            device=device,
            local_files_only=True,
            model_kwargs={"use_safetensors": True, "ignore_mismatched_sizes": True},  # so that they are listed
        )
    except (KeyError, RuntimeError) as error:  # of its modules that are not transformers' own
        raise ValueError(f"text.model {config.model!r} is not a complete encoder: {error}") from error
    _refuse_incomplete(config.model, encoder)
    if config.prompt is not None:
        encoder.prompts["text.prompt"], encoder.default_prompt_name = config.prompt, "text.prompt"
    return encoder.to(getattr(torch, config.dtype_on(device))).eval()


def default_prompt(encoder: Any) -> str | None:
    """What the SentenceTransformer puts before every text."""
    return encoder.prompts.get(encoder.default_prompt_name)


def _refuse_incomplete(name: str, encoder: Any) -> None:
    """Raises ValueError naming weights that a checkpoint of transformers lacks or has besides, or that do not fit."""
    from sentence_transformers.sentence_transformer.modules import Transformer

    for module in encoder.modules():
        if not isinstance(module, Transformer):
            continue
        model = module.auto_model
        # Read again, for a SentenceTransformer does not say what it found.
        _, found = type(model).from_pretrained(
            model.name_or_path,
            config=model.config,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        refuse_incomplete_encoder(f"text.model {name!r}", model, found)


def encoder_files(encoder: Any) -> dict[str, bytes]:
    """A SentenceTransformer in its own layout: its files by their names."""
    with TemporaryDirectory() as draft:
        encoder.save_pretrained(draft, create_model_card=False, safe_serialization=True)
        paths = sorted(path for path in Path(draft).rglob("*") if path.is_file())
        return {path.relative_to(draft).as_posix(): path.read_bytes() for path in paths}


class TextEncoder:
    """Adds to a table with a `text` column its `embedding`, fixed_size_list<float32>[dim]; for `map_batches`.

    Built once in each actor. Texts are sorted by length within a batch, so hand it several times `batch_size` rows.
    """

    def __init__(self, config: TextConfig, device: str = "cpu"):
        self.config = config
        self.encoder = load_encoder(config, device)

    def __call__(self, batch: pa.Table) -> pa.Table:
        texts = pc.utf8_slice_codeunits(batch.column("text"), 0, self.config.max_chars).to_pylist()
        embeddings = self.encoder.encode(
            texts, batch_size=self.config.batch_size, convert_to_tensor=True, show_progress_bar=False
        )
        return batch.append_column("embedding", to_lists(embeddings.float().cpu().numpy()))


def refuse_not_finite(item_ids: pa.ChunkedArray, embeddings: np.ndarray, encoder: str) -> None:
    """Raises ValueError naming the first item whose embedding (a row of (N, dim)) holds NaN or infinity."""
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        raise ValueError(
            f"the text encoder {encoder} gave NaN or infinity for item {item_ids[int(bad[0])].as_py()!r} "
            f"and {len(bad) - 1} more; check the model's weights, or set text.dtype to float32"
        )


def encoder_identity(config: TextConfig, device: str = "cpu") -> str:
    """What decides an embedding beside the text: the model (a folder by its content) and how texts are read."""
    identity = model_identity(config.model, config.revision)
    if "@" not in identity:
        identity = f"{Path(config.model).name}@{identity[:16]}"
    prompt = "" if config.prompt is None else f", behind {config.prompt!r}"
    return f"{identity} {config.dtype_on(device)}, {config.max_chars} characters{prompt}"
