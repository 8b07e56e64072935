"""A tiny random OPT and a byte-level BPE tokenizer, in the shapes of the real ones; P(c) by brute force."""

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from allmrec.data.sequences import Sequences
from allmrec.llm.batches import fill_slots

CORPUS = [
    "Moonfall Chronicles: Deluxe Edition",
    "Moonfall Chronicles II",
    "The Last Garden",
    "This user has bought in the past. Recommend a item for this user to buy next from the following set",
]


def make_tokenizer() -> PreTrainedTokenizerFast:
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


def make_llm(tokenizer: PreTrainedTokenizerFast) -> OPTForCausalLM:
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


def histories(lists):
    offsets = np.cumsum([0, *map(len, lists)])
    flat = np.array([item for items in lists for item in items], dtype=np.int32)
    return Sequences(pa.array([f"user-{n}" for n in range(len(lists))]), offsets, flat)


@torch.inference_mode()
def brute_force(llm, builder, history, candidates, soft):
    """P of one user's candidates: each title read alone behind the prompt, in a forward pass of its own."""
    prompts = builder.build(history, candidates[None, :])
    tokens = torch.from_numpy(prompts.tokens.astype(np.int64))[None]
    embeds = llm.get_input_embeddings()(tokens)
    if soft is not None:
        embeds = fill_slots(embeds, prompts, soft)
    titles = builder.titles
    paths = [
        (*titles.tokens[titles.offsets[item] : titles.offsets[item + 1]].tolist(), builder.end) for item in candidates
    ]
    probabilities = []
    for path in paths:
        read = llm.get_input_embeddings()(torch.tensor([path[:-1]], dtype=torch.int64))
        logits = llm(inputs_embeds=torch.cat([embeds, read], dim=1)).logits[0, -len(path) :].double()
        p = 1.0
        for depth, token in enumerate(path):
            choices = sorted({other[depth] for other in paths if other[:depth] == path[:depth]})
            p *= float(logits[depth, choices].softmax(0)[choices.index(token)])
        probabilities.append(p / paths.count(path))
    return np.array(probabilities)
