"""A SentenceTransformer as most are: a BERT (here a tiny, random one) and mean pooling."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import torch

from allmrec.text.standin import build_encoder

DIM = 16


def build_tiny_sbert(texts: Sequence[str], folder: Path) -> None:
    """Its vocabulary is that of the texts."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    with TemporaryDirectory() as drafts:
        build_encoder(pa.array(texts), f"{drafts}/standin")
        vocabulary = f"{drafts}/standin/tokenizer.json"
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=vocabulary, unk_token="[UNK]", pad_token="[UNK]")
        torch.manual_seed(0)
        sizes = {"hidden_size": DIM, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(f"{drafts}/bert")
        tokenizer.save_pretrained(f"{drafts}/bert")
        modules = [Transformer(f"{drafts}/bert"), Pooling(DIM)]
        SentenceTransformer(modules=modules).save_pretrained(str(folder), create_model_card=False)
