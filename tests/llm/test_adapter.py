"""An adapter's weights: drawn by the seed, refused where they do not fit, one line where PEFT is missing."""

import sys

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from allmrec.core.artifacts import commit, find_manifest
from allmrec.core.storage import LocalStorage, open_storage
from allmrec.llm.adapter import AdapterConfig, check_peft, inject, load_adapter, save_adapter
from tests.llm.tiny import make_llm

CONFIG = AdapterConfig(rank=2, alpha=6)


def weights(adapter) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in adapter.named_parameters()}


def test_weights_are_drawn_by_the_seed_alone_and_nothing_else_trains(tiny_tokenizer):
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(drawn))
        before, llm = torch.get_rng_state(), make_llm(tiny_tokenizer)
        torch.set_rng_state(before)
        drawn.append(weights(inject(llm, CONFIG, seed)))
        assert torch.equal(torch.get_rng_state(), before)
        assert not any(module.training for module in llm.modules())
        names = {name for name, weight in llm.named_parameters() if weight.requires_grad}
        assert len(names) == len(drawn[-1]) == 8 and all("lora" in name for name in names)
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    assert any(not torch.equal(drawn[0][name], drawn[2][name]) for name in drawn[0])


def test_weights_are_float32_in_a_bfloat16_llm(tiny_tokenizer):
    llm = make_llm(tiny_tokenizer).bfloat16()
    adapter = inject(llm, CONFIG)
    assert {weight.dtype for weight in adapter.parameters()} == {torch.float32}
    assert llm(input_ids=torch.arange(9)[None]).logits.dtype == torch.bfloat16


def test_layers_are_named_as_the_llm_names_them(tiny_tokenizer):
    llm = make_llm(tiny_tokenizer)
    with pytest.raises(ValueError, match=r"no layers named c_attn; .*target_modules to some of fc1"):
        inject(llm, AdapterConfig(target_modules=("q_proj", "c_attn")))
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)).eval().requires_grad_(False)
    assert len(list(inject(gpt2, AdapterConfig(target_modules=("c_attn",))).parameters())) == 2


def test_no_manifest_describes_files_that_are_replaced(tiny_tokenizer, tmp_path, monkeypatch):
    storage, write = open_storage(str(tmp_path)), LocalStorage.write
    adapter = weights(inject(make_llm(tiny_tokenizer), CONFIG))
    commit(storage, "tallrec", "test", save_adapter(storage, adapter, CONFIG, "the/llm"))

    def observed(self: LocalStorage, key: str, data: bytes) -> None:
        assert find_manifest(storage) is None, f"{key} is replaced"
        write(self, key, data)

    monkeypatch.setattr(LocalStorage, "write", observed)
    save_adapter(storage, adapter, CONFIG, "another/llm")


def test_another_llm_is_refused(tiny_tokenizer, tmp_path):
    storage = open_storage(str(tmp_path))
    files = save_adapter(storage, weights(inject(make_llm(tiny_tokenizer), CONFIG)), CONFIG, "the/llm")
    commit(storage, "tallrec", "test", files)
    narrower = OPTConfig(
        vocab_size=50, hidden_size=16, word_embed_proj_dim=16, ffn_dim=8, num_hidden_layers=2, num_attention_heads=2
    )
    gpt2 = GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)
    for other in (OPTForCausalLM(narrower), GPT2LMHeadModel(gpt2)):
        with pytest.raises(ValueError, match=r"another LLM than this .*'the/llm'.*llm\.name"):
            load_adapter(storage, other.requires_grad_(False))


def test_without_peft_one_line_says_what_to_install(monkeypatch, tiny_tokenizer):
    check_peft()
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"pip install 'allmrec\[lora\]'"):
        inject(make_llm(tiny_tokenizer), CONFIG)
