"""A small catalogue, encoders of several architectures with random weights, and RECFORMER over them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from allmrec.recformer.build import build_recformer
from allmrec.recformer.config import RecformerConfig
from allmrec.recformer.network import Recformer, read_items
from allmrec.recformer.sentences import Sentences
from allmrec.recformer.teacher import RecformerTeacher
from allmrec.recformer.tokenizer import learn_tokenizer
from schemas import items as items_schema

NUM_ITEMS = 12
WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "haven", "inlet", "jetty", "knoll", "lagoon"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def items_table(num_items: int = NUM_ITEMS, **columns: Any) -> pa.Table:
    """Of the `items` schema: a word of its own in every title; categories and descriptions of some."""
    titles = [f"{WORDS[n % len(WORDS)]} tale" for n in range(num_items)]
    values = {
        "item_id": [f"item-{n:02d}" for n in range(num_items)],
        "title": titles,
        "description": [f"about the {title}" if n % 2 else None for n, title in enumerate(titles)],
        "categories": [["Films", "Drama"] if n % 3 else None for n in range(num_items)],
        "item_index": np.arange(1, num_items + 1),
        "popularity": np.arange(num_items),
        "interactions": np.arange(num_items) + 1,
        "text_hash": titles,
    } | columns
    arrays = [pa.array(values.get(field.name, [None] * num_items), field.type) for field in items_schema.SCHEMA]
    return pa.table(arrays, schema=items_schema.SCHEMA)


def catalogue(items_per_part: int = NUM_ITEMS) -> list[pa.Table]:
    """`items_table()` in parts, as its files have it."""
    items = items_table()
    return [items.slice(first, items_per_part) for first in range(0, len(items), items_per_part)]


def save_encoder(folder: Path, kind: str, **settings: Any) -> str:
    """A model of transformers with random weights and a tokenizer of the catalogue's words; returns its folder."""
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

    learned, _ = learn_tokenizer(items_table().column("title").to_pylist())
    learned.encode_special_tokens = False
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=learned, cls_token="[CLS]", pad_token="[CLS]")
    special = {"pad_token_id": 1, "bos_token_id": None, "eos_token_id": None}
    config = AutoConfig.for_model(kind, **SIZES | special | {"vocab_size": len(tokenizer)} | settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = AutoModel.from_config(config)
        for weight in model.parameters():  # large, so that whatever leaks is seen
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def teacher_of(network: Recformer, sentences: Sentences, budget: int = 400) -> RecformerTeacher:
    """With the items' vectors by the network itself."""
    items = np.arange(1, len(sentences.words_NL))
    vectors_ND = torch.zeros(len(sentences.words_NL), network.dim)
    vectors_ND[1:] = read_items(network, sentences, items, budget)
    return RecformerTeacher(network, sentences, vectors_ND, budget)


def drawn(network: Recformer) -> Recformer:
    """With large embeddings of kinds and recency."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        for table in (network.kinds, network.recency):
            torch.nn.init.normal_(table.weight, std=0.5)
    return network


ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {"max_position_embeddings": 40},
    "longformer": {"max_position_embeddings": 42, "attention_window": [8, 8]},
    "roberta": {"max_position_embeddings": 42},
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("encoders")
    return {kind: save_encoder(root / kind, kind, **settings) for kind, settings in ENCODERS.items()}


@pytest.fixture(scope="session", params=[*ENCODERS, "fresh"])
def system(request: pytest.FixtureRequest, folders: dict[str, str]) -> RecformerTeacher:
    config = RecformerConfig(encoder=folders.get(request.param), max_items=4, max_tokens=40, max_attribute_tokens=4)
    network, sentences, _ = build_recformer(config, catalogue, seed=0)
    return teacher_of(drawn(network).requires_grad_(False), sentences)
