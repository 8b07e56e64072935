"""Training state comes back from safetensors and JSON as it went."""

import pytest
import torch

from allmrec.core import training_state
from allmrec.core.training_state import load_state, save_state


def test_a_model_and_its_optimiser_go_on_as_if_nothing_had_happened(tmp_path):
    torch.manual_seed(0)
    model, data = torch.nn.Linear(3, 2), torch.randn(8, 3)
    optimiser = torch.optim.Adam(model.parameters(), betas=(0.8, 0.9))

    def step(model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> None:
        optimiser.zero_grad()
        model(data).square().sum().backward()
        optimiser.step()

    step(model, optimiser)
    save_state(tmp_path, {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "epoch": 1})
    other = torch.nn.Linear(3, 2)
    other_optimiser = torch.optim.Adam(other.parameters())
    state = load_state(tmp_path)
    other.load_state_dict(state["model"])
    other_optimiser.load_state_dict(state["optimiser"])
    for _ in range(3):
        step(model, optimiser)
        step(other, other_optimiser)
    assert state["epoch"] == 1 and torch.equal(model.weight, other.weight)


def test_keys_that_are_no_strings_and_shared_tensors_survive(tmp_path):
    weight = torch.arange(6, dtype=torch.float16)
    state = {"a": {0: weight, 1: weight[2:]}, "b": [None, True, 1.5, "x", {"c": torch.zeros((), dtype=torch.int64)}]}
    save_state(tmp_path, state)
    loaded = load_state(tmp_path)
    assert loaded["a"].keys() == {0, 1} and loaded["b"][:4] == [None, True, 1.5, "x"]
    assert torch.equal(loaded["a"][1], weight[2:]) and loaded["a"][0].dtype == torch.float16
    assert loaded["b"][4]["c"].shape == ()


def test_what_json_does_not_know_is_refused(tmp_path):
    with pytest.raises(TypeError):
        save_state(tmp_path, {"function": print})


def test_a_large_state_is_in_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(training_state, "_FILE_BYTES", 100)
    state = {"weights": [torch.full((size,), float(size)) for size in (10, 10, 20, 100, 3)]}
    save_state(tmp_path, state)
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    assert all(map(torch.equal, load_state(tmp_path)["weights"], state["weights"]))
