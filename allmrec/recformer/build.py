"""RECFORMER before training: the network, the catalogue's sentences, and the tokenizer that makes them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from allmrec.recformer.config import ENCODER, RecformerConfig
from allmrec.recformer.encoder import fresh_encoder, load_encoder, max_tokens
from allmrec.recformer.network import Recformer
from allmrec.recformer.sentences import Sentences, attributes, item_words, spaced
from allmrec.recformer.tokenizer import learn_tokenizer, read_tokenizer


def build_recformer(config: RecformerConfig, items: pa.Table, seed: int) -> tuple[Recformer, Sentences, Any]:
    """With the encoder that the config names, or a fresh one whose vocabulary is learned from the items.

    Args:
        items: of the `items` schema, ordered by item_index.

    Raises:
        ValueError: as `load_encoder` and `read_tokenizer`.
    """
    if config.encoder is None:
        tokenizer, front = learn_tokenizer(_texts(items))
        encoder = fresh_encoder(config, tokenizer.get_vocab_size(), seed)
    else:
        encoder, folder = load_encoder(config)
        known = encoder.get_input_embeddings().num_embeddings
        tokenizer, front = read_tokenizer(f"{ENCODER} {config.encoder!r}", folder, known)
    words_ML = item_words(items, tokenizer, config.max_attribute_tokens)
    words_NL = np.pad(words_ML, ((1, 0), (0, 0)))  # padding has no words
    sentences = Sentences(words_NL, front, config.max_items, max_tokens(config, encoder))
    return Recformer(encoder, config.max_items, seed), sentences, tokenizer


def _texts(items: pa.Table) -> Iterator[str]:
    """What the items' sentences are made of, as `item_words` tokenises it."""
    for key, values in attributes(items):
        yield f" {key}"
        yield from (text.as_py() for text in spaced(values))
