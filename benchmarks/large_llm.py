"""What an LLM of another size costs on the same prompts: random weights cost what trained ones do."""

from typing import Any

import torch

from allmrec.data.cases import Cases
from allmrec.model import ALLMRec
from benchmarks.clock import now
from benchmarks.decoding_methods import FREE, GENERATE, TRIE, Ways
from benchmarks.report import Benchmark


def as_large_as(
    benchmark: Benchmark, name: str, llm: Any, model: ALLMRec, cases: Cases, seed: int, trials: int
) -> float:
    """Ranks and generates with another LLM, texts as long as the targets' titles.

    Args:
        name: of the LLM's shape, for the labels.

    Returns:
        the share of the device's own matmul rate that trie ranking's matrix products reach (MFU).
    """
    lengths = model.titles.lengths[cases.candidates_BC[:, 0]]
    ways = Ways(model, seed, llm, longest=round(float(lengths.mean())) + 1)
    weights = sum(module.weight.numel() for module in llm.base_model.modules() if isinstance(module, torch.nn.Linear))
    embedding = llm.get_input_embeddings().weight
    ceiling = matmul_rate(embedding.device, embedding.dtype)
    shares = []
    for trial in range(-1, trials):  # the first is a warm-up
        for way in (TRIE, FREE, GENERATE):
            started = now()
            chosen = ways.by_name[way](cases)
            seconds = now() - started
            # A multiplication and an addition a weight and token; attention and the few logits are not counted.
            share = 2 * weights * chosen.tokens / seconds / ceiling
            numbers = {"users/s": len(cases) / seconds, "tokens/s": chosen.tokens / seconds, "MFU %": 100 * share}
            if trial >= 0:
                benchmark.measured({"way": f"{way}, {name}", "trial": trial}, numbers)
                shares += [share] if way == TRIE else []
    return max(shares)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations a second of one large product, the best of ten."""
    size = 8192 if device.type == "cuda" else 512
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        started = now()
        left @ right
        best = min(best, now() - started)
    return 2 * size**3 / best


def opt_67b() -> Any:
    """OPT-6.7B's shape with random weights, in bfloat16 on the GPU."""
    from transformers import OPTConfig, OPTForCausalLM

    shape = OPTConfig(
        hidden_size=4096, word_embed_proj_dim=4096, ffn_dim=16384, num_hidden_layers=32, num_attention_heads=32
    )
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            return OPTForCausalLM(shape).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(torch.float32)
