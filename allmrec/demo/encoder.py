"""A small SentenceTransformer of our own, for machines without a real one.

Latent semantic analysis (Deerwester et al. 1990): words that keep the same company in the catalogue's texts get
near vectors, and a text is the mean of its words'. It reads texts and never interactions. Saved in the layout of
sentence-transformers, so that the code that loads it cannot tell it from SBERT; its parameters can be fine-tuned.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

# D texts, V words, K dimensions

MAX_WORDS = 30_000
ROUNDS = 6  # of subspace iteration
PIECES = "abcdefghijklmnopqrstuvwxyz0123456789"


def build_encoder(texts: pa.Array, folder: str | Path, seed: int = 0, dim: int = 64) -> None:
    """Learn an encoder from texts and save it in `folder`. The same texts and seed give the same files.

    Args:
        texts: string (D,).
        dim: of the embeddings, which have unit length.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

    tokenizer = _tokenizer(texts)
    weights_VK = _word_vectors(tokenizer, texts, dim, seed)
    encoder = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights_VK), Normalize()])
    encoder.save_pretrained(str(folder), create_model_card=False, safe_serialization=True)


def _tokenizer(texts: pa.Array) -> Any:
    """Whole words of the texts, and characters for words that are not among them."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(r"\w+"), "removed", invert=True)
    counts: Counter[str] = Counter()
    for text in texts.to_pylist():
        counts.update(word for word, _ in words.pre_tokenize_str(normalizer.normalize_str(text)))
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[:MAX_WORDS]
    pieces = ["[UNK]", *PIECES, *(f"##{piece}" for piece in PIECES)]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([*pieces, *frequent]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=40))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, words
    return tokenizer


def _word_vectors(tokenizer: Any, texts: pa.Array, dim: int, seed: int) -> torch.Tensor:
    """float32 (V, dim): right singular vectors of the tf-idf matrix, with the idf folded in and centred."""
    encodings = tokenizer.encode_batch_fast(texts.to_pylist(), add_special_tokens=False)
    words = np.concatenate([encoding.ids for encoding in encodings]).astype(np.int64)
    rows = np.repeat(np.arange(len(encodings)), [len(encoding) for encoding in encodings])
    num_texts, num_words = len(encodings), tokenizer.get_vocab_size()
    found = np.bincount(np.unique(rows * num_words + words) % num_words, minlength=num_words)
    idf_V = torch.from_numpy(np.log((1 + num_texts) / (0.5 + found)))

    share = torch.from_numpy(1 / np.bincount(rows, minlength=num_texts)[rows])  # a text is the mean of its words
    where = torch.from_numpy(np.stack([rows, words]))
    texts_DV = torch.sparse_coo_tensor(
        where, idf_V[words] * share, (num_texts, num_words), check_invariants=False
    ).coalesce()
    random = torch.Generator().manual_seed(seed)
    basis_VK = torch.randn(num_words, dim, generator=random, dtype=torch.float64)
    for _ in range(ROUNDS):
        basis_VK = torch.linalg.qr(texts_DV.T @ (texts_DV @ basis_VK)).Q
    projected_DK = texts_DV @ basis_VK
    # Rotated to the singular directions, each scaled by its root: rare themes count, frequent ones do not drown them.
    variance_K, rotation_KK = torch.linalg.eigh(projected_DK.T @ projected_DK)
    scale_K = variance_K.clamp(min=variance_K.max() * 1e-9) ** -0.25
    vectors_VK = idf_V[:, None] * (basis_VK @ rotation_KK) * scale_K
    centre_K = (projected_DK @ rotation_KK * scale_K).mean(dim=0)
    # Characters that spell no known word mean nothing, yet two unknown words should differ.
    unknown = torch.from_numpy(found == 0)
    spread = vectors_VK[~unknown].norm(dim=1).mean() / dim**0.5
    vectors_VK[unknown] = 0.3 * spread * torch.randn(int(unknown.sum()), dim, generator=random, dtype=torch.float64)
    return (vectors_VK - centre_K).float().contiguous()
