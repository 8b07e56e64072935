"""Tiny random LLMs of many architectures, and how far P(c) is from plain forward passes with each.

    python -m tests.llm.architectures      # the table of docs/llms.md

Prompts have some 100 tokens and windows 16, so that they are exceeded as real prompts exceed 128 (gpt-oss) or 512
(Gemma 3). Weights are large enough for decided logits, or errors would not show.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from allmrec.llm.batches import SoftTokens
from allmrec.llm.prompt import PromptBuilder, PromptConfig, Titles
from allmrec.llm.ranking import Ranker
from tests.llm.tiny import brute_force, histories, make_tokenizer, titles_array

_LOUD = 4
_WINDOW = {"sliding_window": 16}
_GPT = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 512}
_LLAMA = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_HEADS = {**_LLAMA, "head_dim": 12}
_OPT = {
    "hidden_size": 48,
    "word_embed_proj_dim": 48,
    "ffn_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
_MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 12}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "shared_expert_intermediate_size": 16,
}
_STATE_SPACE = {"mamba_d_ssm": 48, "mamba_n_heads": 4, "mamba_d_head": 12, "mamba_d_state": 8}


@dataclass(frozen=True)
class Architecture:
    config: str  # its class in transformers
    settings: dict[str, Any] = field(default_factory=dict)
    supported: bool = True

    def build(self, vocabulary: int) -> Any:
        torch.manual_seed(0)
        tokens = {"vocab_size": vocabulary, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
        config = getattr(transformers, self.config)(**tokens, **self.settings)
        llm = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
        for weight in llm.parameters():
            if weight.dim() > 1:
                weight.mul_(_LOUD)
        return llm


ARCHITECTURES = {
    "OPT": Architecture("OPTConfig", _OPT),
    "OPT-350M's shape": Architecture("OPTConfig", {**_OPT, "word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    "Llama": Architecture("LlamaConfig", _LLAMA),
    "Llama, tied": Architecture("LlamaConfig", {**_LLAMA, "tie_word_embeddings": True}),
    "Llama 4, chunks": Architecture(
        "Llama4TextConfig",
        {**_HEADS, "intermediate_size_mlp": 64, "num_local_experts": 2, "attention_chunk_size": 16},
    ),
    "Mistral, windows": Architecture("MistralConfig", _LLAMA | _WINDOW),
    "Mixtral": Architecture("MixtralConfig", {**_LLAMA, "num_local_experts": 4}),
    "Qwen2": Architecture("Qwen2Config", _LLAMA),
    "Qwen2, windows in some layers": Architecture(
        "Qwen2Config", _LLAMA | _WINDOW | {"use_sliding_window": True, "max_window_layers": 1}
    ),
    "Qwen3": Architecture("Qwen3Config", _HEADS),
    "Qwen3-MoE": Architecture("Qwen3MoeConfig", _HEADS | _MIXTURE),
    "Phi": Architecture("PhiConfig", {**_LLAMA, "num_key_value_heads": 4}),
    "Phi-3, windows": Architecture("Phi3Config", _LLAMA | _WINDOW),
    "Gemma": Architecture("GemmaConfig", _HEADS),
    "Gemma 2, windows, capped logits": Architecture(
        "Gemma2Config", _HEADS | _WINDOW | {"final_logit_softcapping": 2.0}
    ),
    "Gemma 3, windows": Architecture("Gemma3TextConfig", _HEADS | _WINDOW),
    "gpt-oss, windows": Architecture(
        "GptOssConfig", _HEADS | _WINDOW | {"num_local_experts": 4, "num_experts_per_tok": 2}
    ),
    "Cohere, scaled logits": Architecture("CohereConfig", {**_LLAMA, "logit_scale": 0.0625}),
    "Cohere 2, windows, scaled logits": Architecture("Cohere2Config", _LLAMA | _WINDOW | {"logit_scale": 0.0625}),
    "Granite, scaled logits": Architecture("GraniteConfig", {**_LLAMA, "logits_scaling": 8.0}),
    "OLMo 2": Architecture("Olmo2Config", _LLAMA),
    "OLMo 3, windows": Architecture("Olmo3Config", _LLAMA | _WINDOW),
    "DeepSeek-V3": Architecture(
        "DeepseekV3Config",
        {**_LLAMA, **_LATENT, "num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}
        | {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1},
    ),
    "SmolLM3": Architecture("SmolLM3Config", _LLAMA),
    "StarCoder2, windows": Architecture("Starcoder2Config", _LLAMA | _WINDOW),
    "GPT-2": Architecture("GPT2Config", _GPT),
    "GPT-J": Architecture("GPTJConfig", {**_GPT, "rotary_dim": 4}),
    "GPT-NeoX": Architecture("GPTNeoXConfig", {n: _LLAMA[n] for n in _LLAMA if n != "num_key_value_heads"}),
    "Falcon": Architecture("FalconConfig", {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}),
    "Falcon, ALiBi": Architecture(
        "FalconConfig",
        {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True},
        supported=False,
    ),
    "BLOOM": Architecture("BloomConfig", {"hidden_size": 48, "n_layer": 2, "n_head": 4}, supported=False),
    "MPT": Architecture("MptConfig", {"d_model": 48, "n_layers": 2, "n_heads": 4}, supported=False),
    "GPT-Neo": Architecture(
        "GPTNeoConfig",
        {"hidden_size": 48, "num_layers": 2, "num_heads": 4, "window_size": 16}
        | {"attention_types": [[["global", "local"], 1]]},
        supported=False,
    ),
    "GPT": Architecture("OpenAIGPTConfig", _GPT, supported=False),
    "Mamba": Architecture("MambaConfig", {"hidden_size": 48, "num_hidden_layers": 2}, supported=False),
    "RWKV": Architecture(
        "RwkvConfig", {"hidden_size": 48, "num_hidden_layers": 2, "attention_hidden_size": 48}, supported=False
    ),
    "Qwen3-Next": Architecture(
        "Qwen3NextConfig",
        {**_HEADS, **_MIXTURE, **_LINEAR, "layer_types": ["linear_attention", "full_attention"]},
        supported=False,
    ),
    "LFM2": Architecture("Lfm2Config", {**_LLAMA, "layer_types": ["conv", "full_attention"]}, supported=False),
    "Falcon-H1": Architecture("FalconH1Config", _LLAMA | _STATE_SPACE, supported=False),
}

TITLES = ["Moon fall", "Moon Garden", "Moon Garden II", "The Last Edition", "The Last Moon", "Garden of the Moon", "x"]
HISTORIES = histories([[1, 2, 3, 4], [5, 6]])
CANDIDATES = np.array([range(1, 8), range(7, 0, -1)], dtype=np.int32)


def prompts_for(llm: Any, tokenizer: PreTrainedTokenizerFast) -> tuple[PromptBuilder, SoftTokens]:
    """What the candidates are shown by."""
    weight = llm.get_input_embeddings().weight
    titles = Titles.tokenise(titles_array(TITLES), tokenizer, 24)
    generator = torch.Generator().manual_seed(0)
    soft = [torch.randn(count, weight.shape[1], generator=generator) * weight.std() for count in (2, len(TITLES) + 1)]
    return PromptBuilder(PromptConfig(), tokenizer, titles, soft=True, max_tokens=400), SoftTokens(*soft)


def plain(llm: Any, builder: PromptBuilder, soft: SoftTokens) -> np.ndarray:
    """P of the candidates, each read alone."""
    rows = [np.array([row]) for row in range(2)]
    return np.concatenate(
        [brute_force(llm, builder, HISTORIES.take(row), CANDIDATES[row[0]], soft.of(row))[None] for row in rows]
    )


def main() -> None:
    transformers.logging.set_verbosity_error()
    tokenizer = make_tokenizer()
    print("| architecture | `model_type` | | P(c) off by at most |")
    print("|---|---|---|---|")
    for name, architecture in ARCHITECTURES.items():
        llm = architecture.build(len(tokenizer))
        builder, soft = prompts_for(llm, tokenizer)
        try:
            found = Ranker(llm, builder, 4096).log_probabilities(HISTORIES, CANDIDATES, soft)
            off = f"{np.abs(np.exp(found) - plain(llm, builder, soft)).max():.0e}"
            verdict = "supported"
        except ValueError as error:
            off, verdict = "", "refused: " + str(error).split("cannot be used: ")[1].split(", so P(c)")[0]
        print(f"| {name} | `{llm.config.model_type}` | {verdict} | {off} |")


if __name__ == "__main__":
    main()
