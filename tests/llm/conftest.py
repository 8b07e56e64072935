"""A tiny random OPT and a byte-level BPE tokenizer, in the shapes of the real ones."""

import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

CORPUS = [
    "Moonfall Chronicles: Deluxe Edition",
    "Moonfall Chronicles II",
    "The Last Garden",
    "This user has bought in the past. Recommend a item for this user to buy next from the following set",
]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="</s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def llm(tokenizer: PreTrainedTokenizerFast) -> OPTForCausalLM:
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        init_std=0.2,  # decided logits, so that errors show
    )
    return OPTForCausalLM(config).eval().requires_grad_(False)


def titles_array(titles: list[str]) -> pa.Array:
    """As in a `Catalogue`: entry 0 is padding."""
    return pa.array(["", *titles])
