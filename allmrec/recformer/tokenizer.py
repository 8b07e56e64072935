"""Tokenizers of the library `tokenizers`: an encoder's own, or one learned from texts. Only their JSON is stored."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

_VOCABULARY = 8192  # tokens of one that is learned, at most


def to_tokenizer(text: str) -> Any:
    """From its JSON; texts are neither cut nor padded, and special tokens in them are plain text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def read_tokenizer(name: str, folder: Path, num_embeddings: int) -> tuple[Any, int]:
    """The tokenizer of an encoder's folder, and the token with which it starts a text.

    Args:
        name: of the encoder, for messages.

    Raises:
        ValueError: it is missing, or does not match the encoder.
    """
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(folder)
        tokenizer, front = to_tokenizer(found.backend_tokenizer.to_str()), found.cls_token_id
    except (AttributeError, OSError, ValueError) as error:
        raise _unreadable(name, str(error).splitlines()[0]) from None
    vocabulary = tokenizer.get_vocab()
    if vocabulary.keys() <= {*found.all_special_tokens}:  # the default that transformers assumes without a file
        raise _unreadable(name, "it has no words")
    if front is None or max(vocabulary.values()) >= num_embeddings:
        raise ValueError(
            f"the tokenizer of {name} has no cls_token, or tokens beyond the {num_embeddings} embeddings; take the one "
            "that the encoder was trained with"
        )
    return tokenizer, front


def _unreadable(name: str, why: str) -> ValueError:
    return ValueError(f"{name} has no tokenizer that can be read ({why}); put its tokenizer.json beside the weights")


def learn_tokenizer(texts: Iterable[str]) -> tuple[Any, int]:
    """A lower-case byte-level BPE, and its first token; the same texts give the same tokenizer."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=["[CLS]"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    front = tokenizer.token_to_id("[CLS]")
    assert front is not None, "a special token is always there"
    return to_tokenizer(tokenizer.to_str()), front
