"""RECFORMER before training: the network, the catalogue's sentences, and the tokenizer that makes them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa

from allmrec.recformer.config import ENCODER, RecformerConfig
from allmrec.recformer.encoder import fresh_encoder, load_encoder, max_tokens
from allmrec.recformer.network import Recformer
from allmrec.recformer.sentences import Sentences, attributes, catalogue_words, spaced
from allmrec.recformer.tokenizer import learn_tokenizer, read_tokenizer


def build_recformer(
    config: RecformerConfig, items: Callable[[], Iterable[pa.Table]], seed: int
) -> tuple[Recformer, Sentences, Any]:
    """With the encoder that the config names, or a fresh one whose vocabulary is learned from the items.

    Args:
        items: the `items` table in the order of item_index, a part at a time; asked for twice where a vocabulary is
            learned. Nothing keeps a part.

    Raises:
        ValueError: as `load_encoder` and `read_tokenizer`.
    """
    if config.encoder is None:
        tokenizer, front = learn_tokenizer(_texts(items()))
        encoder = fresh_encoder(config, tokenizer.get_vocab_size(), seed)
    else:
        encoder, folder = load_encoder(config)
        known = encoder.get_input_embeddings().num_embeddings
        tokenizer, front = read_tokenizer(f"{ENCODER} {config.encoder!r}", folder, known)
    words_NL = catalogue_words(items(), tokenizer, config.max_attribute_tokens)
    sentences = Sentences(words_NL, front, config.max_items, max_tokens(config, encoder))
    return Recformer(encoder, config.max_items, seed), sentences, tokenizer


def _texts(parts: Iterable[pa.Table]) -> Iterator[str]:
    """What the items' sentences are made of, as `item_words` tokenises it."""
    keys = set[str]()
    for part in parts:
        for key, values in attributes(part):
            if key not in keys:  # one of them, however many parts there are
                keys.add(key)
                yield f" {key}"
            yield from (text.as_py() for text in spaced(values))
