"""A SentenceTransformer as most are: a BERT (here a tiny, random one), mean pooling and a dense layer."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file

from allmrec.text.standin import build_encoder

DIM = 16


def build_tiny_sbert(
    texts: Sequence[str],
    folder: Path,
    max_tokens: int | None = None,
    include_prompt: bool = True,
    normalized: bool = False,
    **settings: Any,
) -> None:
    """Its vocabulary is that of the texts.

    Args:
        max_tokens: longer texts are cut.
        include_prompt: whether a prompt's tokens are pooled, too.
        normalized: to unit length.
        settings: of the SentenceTransformer: prompts, default_prompt_name, truncate_dim.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    with TemporaryDirectory() as drafts:
        build_encoder(pa.array(texts), f"{drafts}/standin")
        vocabulary = f"{drafts}/standin/tokenizer.json"
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=vocabulary, unk_token="[UNK]", pad_token="[UNK]")
        torch.manual_seed(0)
        sizes = {"hidden_size": DIM, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(f"{drafts}/bert")
        tokenizer.save_pretrained(f"{drafts}/bert")
        transformer = Transformer(f"{drafts}/bert")
        transformer.max_seq_length = max_tokens or transformer.max_seq_length
        modules = [
            transformer,
            Pooling(DIM, include_prompt=include_prompt),
            Dense(DIM, DIM),
            *[Normalize()] * normalized,
        ]
        SentenceTransformer(modules=modules, **settings).save_pretrained(str(folder), create_model_card=False)


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Put tensors into the checkpoint, or take them out."""
    held = load_file(folder / "model.safetensors") | tensors
    kept = {name: tensor for name, tensor in held.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
