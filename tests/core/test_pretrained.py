"""Models by name: what is copied from S3, once, and what is refused."""

from pathlib import Path

import pytest
import torch

from allmrec.core import machine_cache
from allmrec.core.pretrained import model_folder, model_identity
from allmrec.core.storage import S3Config, open_storage
from allmrec.core.storage.s3 import store_environment
from allmrec.llm.loading import LLMConfig, load_llm, load_tokenizer


@pytest.mark.s3
def test_an_llm_under_an_s3_prefix_is_copied_once(
    tiny_llm, tiny_tokenizer, s3: S3Config, s3_uri, tmp_path, monkeypatch
):
    tiny_llm.save_pretrained(tmp_path / "llm")
    tiny_tokenizer.save_pretrained(tmp_path / "llm")
    storage = open_storage(f"{s3_uri}/llm", s3)
    for path in (tmp_path / "llm").iterdir():
        storage.write(path.name, path.read_bytes())
    storage.write("pytorch_model.bin", b"pickled")
    for name, value in store_environment(s3).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(machine_cache, "CACHE", tmp_path / "cache")

    config = LLMConfig(name=storage.uri)
    assert len(load_tokenizer(config)) == len(tiny_tokenizer)
    assert not list((tmp_path / "cache").rglob("*.safetensors")), "a vocabulary needs no weights"
    for name, weight in load_llm(config).state_dict().items():
        assert torch.equal(weight, tiny_llm.state_dict()[name])
    assert not list((tmp_path / "cache").rglob("*.bin"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    load_llm(config)
    assert {path: path.stat().st_mtime_ns for path in before} == before and len(before) == 1

    identity = model_identity(storage.uri)
    assert identity == model_identity(storage.uri)
    storage.write("config.json", storage.read("config.json") + b" ")
    assert model_identity(storage.uri) != identity
    with pytest.raises(ValueError, match="no object under"):
        model_identity(f"{s3_uri}/nothing")


def test_pickled_weights_are_refused(tiny_llm, tmp_path: Path):
    tiny_llm.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"llm.name .* has no weights as safetensors, and nothing pickled is read"):
        model_folder(str(tmp_path), None, "llm.name")
