"""LoRA by PEFT: low-rank weights added to some layers of the frozen LLM (Hu et al. 2022).

A layer W x becomes W x + alpha / rank * B A x. B starts as zeros, so the LLM's output is unchanged at first, and bit
for bit whenever the adapter is switched off. Files have PEFT's own layout, and open in `PeftModel.from_pretrained`.
PEFT is the extra `lora`, and imported only here.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from pydantic import Field
from torch import nn

from allmrec.core.artifacts import file_entry, read_file, read_manifest
from allmrec.core.settings import Section
from allmrec.core.storage import Storage
from allmrec.core.tensor_files import read_tensors, write_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # PEFT's names
_NAME = "default"  # of the adapter within PEFT's layers


class AdapterConfig(Section):
    """Shape and placement of the low-rank weights."""

    rank: int = Field(8, ge=1)  # of the product B A
    alpha: int = Field(16, ge=1)  # over rank: the factor of that product
    # Names of the layers that get one, wherever they are in the LLM.
    target_modules: tuple[str, ...] = Field(("q_proj", "v_proj"), min_length=1)


class Adapter(nn.Module):
    """The low-rank weights of an LLM, float32, which the LLM's layers share. Names are PEFT's, with / for the dots."""

    def __init__(self, llm: nn.Module):
        super().__init__()
        self.layers = _layers(llm)
        for path, layer in self.layers.items():
            for matrix in ("lora_A", "lora_B"):
                weight = getattr(layer, matrix)[_NAME].weight
                weight.data = weight.data.float()
                name = f"base_model.model.{path}.{matrix}.weight"
                self.register_parameter(name.replace(".", "/"), weight)

    def soft(self) -> None:
        """Prompts have no slots."""

    def switch(self, on: bool) -> None:
        """Whether the LLM's layers add their products. Takes the weights' gradients off, or on."""
        for layer in self.layers.values():
            layer.enable_adapters(on)

    @contextmanager
    def switched_on(self) -> Iterator[None]:
        self.switch(True)
        try:
            yield
        finally:
            self.switch(False)

    def merge(self, llm: nn.Module) -> None:
        """Add the products to the LLM's weights permanently: its layers are then ordinary ones."""
        for path, layer in self.layers.items():
            layer.merge()
            llm.set_submodule(path, layer.get_base_layer())


def inject(llm: nn.Module, config: AdapterConfig, seed: int = 0) -> Adapter:
    """Give a frozen LLM low-rank weights that train, drawn from `seed` alone and switched on.

    Raises:
        ValueError: PEFT is not installed, or the LLM has no layer of one of the names.
    """
    check_peft()
    from peft import inject_adapter_in_model

    refuse_unknown_modules(llm, config)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about deprecated names, and about settings that PEFT corrects itself
        torch.manual_seed(seed)
        inject_adapter_in_model(_peft_config(config), llm, _NAME)
    llm.eval()  # which the new layers are not
    return Adapter(llm)


def refuse_unknown_modules(llm: nn.Module, config: AdapterConfig) -> None:
    """Raises ValueError if the LLM has no layer of one of the names; lists those that it has."""
    from transformers.pytorch_utils import Conv1D

    paths = [name for name, module in llm.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    known = {path.rpartition(".")[2] for path in paths if "." in path}
    if unknown := sorted(set(config.target_modules) - known):
        raise ValueError(
            f"target_modules: the LLM, a {type(llm).__name__}, has no layers named {', '.join(unknown)}; set "
            f"baselines.tallrec.target_modules to some of {', '.join(sorted(known))}"
        )


def save_adapter(
    storage: Storage, weights: dict[str, torch.Tensor], config: AdapterConfig, llm_name: str
) -> dict[str, dict[str, Any]]:
    """Write the weights of an `Adapter` as PEFT does; returns the files' entries for the manifest."""
    tensors = {name.replace("/", "."): weight for name, weight in weights.items()}
    files = write_tensors(storage, WEIGHTS, tensors)
    stored = _peft_config(config, llm_name).to_dict()
    data = json.dumps(stored, indent=2, sort_keys=True, default=sorted).encode()  # sets are sorted
    storage.write(CONFIG, data)
    return files | {CONFIG: file_entry(data)}


def load_adapter(storage: Storage, llm: nn.Module) -> Adapter:
    """Add the stored low-rank weights to an LLM, frozen and switched off.

    Raises:
        ValueError: they are missing or damaged, or of another LLM; or PEFT is not installed.
    """
    stored = json.loads(read_file(storage, read_manifest(storage), CONFIG))
    weights = read_tensors(storage, WEIGHTS)
    config = AdapterConfig(rank=stored["r"], alpha=stored["lora_alpha"], target_modules=stored["target_modules"])
    check_peft()
    try:
        adapter = inject(llm, config)
        adapter.load_state_dict({name.replace(".", "/"): weight for name, weight in weights.items()})
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{storage.uri} was made for another LLM than this {type(llm).__name__} (it says "
            f"{stored['base_model_name_or_path']!r}); point llm.name at that one, or run train-baselines again"
        ) from error
    adapter.switch(False)
    return adapter


def check_peft() -> None:
    """Raises ValueError if PEFT is not installed."""
    if find_spec("peft") is None:
        raise ValueError("TALLRec needs PEFT: pip install 'allmrec[lora]', or leave baselines.tallrec out")


def _peft_config(config: AdapterConfig, llm_name: str | None = None) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        base_model_name_or_path=llm_name,
        task_type="CAUSAL_LM",
        inference_mode=llm_name is not None,
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=list(config.target_modules),
    )


def _layers(llm: nn.Module) -> dict[str, Any]:
    """The layers with low-rank weights, by their paths."""
    from peft.tuners.lora import LoraLayer

    return {path: module for path, module in llm.named_modules() if isinstance(module, LoraLayer)}
