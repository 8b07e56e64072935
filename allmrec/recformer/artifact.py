"""RECFORMER's files: weights, items, the encoder's config and its tokenizer.

users.safetensors       the network with the best validation
items.safetensors       the network that computed the items' vectors; it also reads new items
catalogue.safetensors   the items' vectors and sentences
encoder.json            the encoder's transformers config, and the first token of texts
tokenizer.json          of `tokenizers`
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from allmrec.core.artifacts import file_entry, read_file, read_manifest
from allmrec.core.rows import Rows, Table, shared
from allmrec.core.storage import Storage
from allmrec.core.tensor_files import read_tables, read_tensors, write_tensors
from allmrec.recformer.config import RecformerConfig
from allmrec.recformer.encoder import build_encoder
from allmrec.recformer.network import Recformer, read_items
from allmrec.recformer.sentences import Sentences, item_words
from allmrec.recformer.teacher import RecformerTeacher
from allmrec.recformer.tokenizer import to_tokenizer

USERS, ITEMS, CATALOGUE = "users.safetensors", "items.safetensors", "catalogue.safetensors"
ENCODER, TOKENIZER = "encoder.json", "tokenizer.json"

Weights = dict[str, torch.Tensor]


def save_recformer(
    storage: Storage,
    users: Weights,
    items: Weights,
    vectors_ND: torch.Tensor,
    sentences: Sentences,
    encoder: Any,
    tokenizer: Any,
) -> dict[str, dict[str, Any]]:
    """Write it; returns the files' entries for the manifest, whose config must hold `baselines`."""
    settings = {"encoder": encoder.config.to_dict(), "cls": sentences.cls, "max_tokens": sentences.max_tokens}
    catalogue = {"vectors": vectors_ND, "words": shared(sentences.words_NL)}
    files = dict[str, dict[str, Any]]()
    for name, tensors in ((USERS, users), (ITEMS, items), (CATALOGUE, catalogue)):
        files |= write_tensors(storage, name, tensors)
    for name, text in ((ENCODER, json.dumps(settings)), (TOKENIZER, tokenizer.to_str())):
        storage.write(name, text.encode())
        files[name] = file_entry(text.encode())
    return files


def load_recformer(storage: Storage, new_NL: Table | None = None) -> RecformerTeacher:
    """The stored system, frozen, in eval mode.

    Args:
        new_NL: sentences of new items, see `RecformerTeacher`.

    Raises:
        ValueError: it is missing or damaged.
    """
    stored = _Stored.open(storage)
    catalogue = read_tables(storage, CATALOGUE)
    network, sentences = stored.network(storage, USERS), stored.sentences(catalogue["words"])
    return RecformerTeacher(network, sentences, shared(catalogue["vectors"]), stored.config.tokens_per_pass, new_NL)


def read_new_items(storage: Storage, items: pa.Table) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors (M, D) and sentences (M, L) of items that the stored system has not seen, from rows of `items`."""
    stored = _Stored.open(storage)
    tokenizer = to_tokenizer(read_file(storage, read_manifest(storage), TOKENIZER).decode())
    words_ML = torch.from_numpy(item_words(items, tokenizer, stored.config.max_attribute_tokens))
    network, numbers = stored.network(storage, ITEMS), np.arange(len(items))
    vectors_MD = read_items(network, stored.sentences(words_ML), numbers, stored.config.tokens_per_pass)
    return vectors_MD, words_ML


@dataclass(frozen=True)
class _Stored:
    config: RecformerConfig
    settings: dict[str, Any]  # what ENCODER holds

    @classmethod
    def open(cls, storage: Storage) -> "_Stored":
        manifest = read_manifest(storage)
        config = RecformerConfig(**manifest.config["baselines"]["recformer"])
        return cls(config, json.loads(read_file(storage, manifest, ENCODER)))

    def network(self, storage: Storage, name: str) -> Recformer:
        from transformers import AutoConfig

        encoder = build_encoder(AutoConfig.for_model(**self.settings["encoder"]))
        network = Recformer(encoder, self.config.max_items)
        network.load_state_dict(read_tensors(storage, name))
        return network.requires_grad_(False)

    def sentences(self, words_NL: Table) -> Sentences:
        return Sentences(Rows.of(words_NL), self.settings["cls"], self.config.max_items, self.settings["max_tokens"])
