"""The stand-ins that come with the package: small, loadable by name, and what their model cards say."""

from functools import partial
from pathlib import Path

import pytest
import torch

import allmrec
from allmrec.core.pretrained import model_folder, model_identity
from allmrec.demo.llm import Standin, examine
from allmrec.llm.loading import LLMConfig, load_llm, load_tokenizer
from allmrec.text.encoder import TextConfig, load_encoder
from jobs.demo import standin_shipped

SHIPPED = Path(allmrec.__file__).parent / "demo" / "standins"
LLM, ENCODER = LLMConfig(name="standins/llm", dtype="float32"), TextConfig(model="standins/encoder")


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_they_are_small() -> None:
    assert size(SHIPPED / "llm") < 25e6 and size(SHIPPED / "encoder") < 10e6
    assert sum(weight.numel() for weight in load_llm(LLM).parameters()) < 12e6


@pytest.fixture(scope="module")
def before_another_shop() -> Standin:
    return standin_shipped.held_out(load_llm(LLM), load_tokenizer(LLM))


@pytest.mark.parametrize("alike", [0, 10])
def test_the_llm_reads_its_slots_behind_another_shops_titles(before_another_shop: Standin, alike: int) -> None:
    """A reader of nothing is some 0.85 above the bound, and finds the best candidate in 5 % of the prompts."""
    found = examine(before_another_shop, seed=7, prompts=128, num_candidates=20, alike=alike)
    assert 0 < found["cross_entropy"] - found["bound"] < (0.25 if alike else 0.15)
    assert found["agreement"] > (0.6 if alike else 0.78)


def test_the_command_of_the_card_builds_what_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standin_shipped, "EXAMINED", {})  # has a test of its own
    monkeypatch.setattr("allmrec.demo.llm.examine", partial(examine, prompts=8))
    standin_shipped.ship(tmp_path, seed=0)
    assert (tmp_path / "llm/tokenizer.json").read_bytes() == (SHIPPED / "llm/tokenizer.json").read_bytes()
    again, shipped = (
        load_llm(LLM.model_copy(update={"name": str(folder)})).state_dict()
        for folder in (tmp_path / "llm", SHIPPED / "llm")
    )
    assert all(torch.allclose(again[name], shipped[name], atol=2e-3, rtol=2e-3) for name in shipped)
    for model in ("llm", "encoder"):
        assert (tmp_path / model / "README.md").read_text().startswith("---\nlicense: apache-2.0")


def test_the_encoder_knows_which_words_keep_company_and_can_be_trained() -> None:
    encoder = load_encoder(ENCODER)
    texts = ["Title: Dragon Crown", "Title: Wizard Prophecy", "Title: Sheriff Saloon"]
    fantasy, also, western = encoder.encode([f"{text}, Description: " for text in texts])
    assert fantasy @ also > fantasy @ western + 0.2
    encoder(encoder.preprocess(texts))["sentence_embedding"].sum().backward()
    (weights,) = encoder.parameters()
    assert weights.grad.abs().sum() > 0


def test_a_folder_of_that_name_here_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = model_identity("standins/llm")
    assert model_folder("standins/llm", None, "llm.name") == SHIPPED / "llm"
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "standins" / "llm"
    mine.mkdir(parents=True)
    (mine / "model.safetensors").write_bytes(b"mine")
    assert model_folder("standins/llm", None, "llm.name") == Path("standins/llm")
    assert model_identity("standins/llm") != shipped
