"""An LLM in each published layout becomes safetensors with the same logits, or is refused with nothing written."""

import json
import pickle
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from allmrec.core import machine_cache, weight_files
from allmrec.core.artifacts import MANIFEST, read_manifest
from allmrec.core.file_digests import file_sha256
from allmrec.core.storage import S3Config, open_storage
from allmrec.core.storage.s3 import store_environment
from allmrec.llm.importing import import_llm
from allmrec.llm.loading import LLMConfig, load_llm, load_tokenizer
from tests.llm.architectures import ARCHITECTURES

LAYOUTS = ("safetensors", "sharded safetensors", "pickled", "sharded pickled", "old pickled")


def save(llm, tokenizer, folder: Path, layout: str = "safetensors") -> Path:
    """As it would be published."""
    llm.save_pretrained(folder, max_shard_size="20KB" if "sharded" in layout else "5GB")
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text("not needed")
    if "pickled" in layout:
        for path in sorted(folder.glob("*.safetensors")):
            name = path.name.replace("model", "pytorch_model", 1).replace("safetensors", "bin")
            torch.save(load_file(path), folder / name, _use_new_zipfile_serialization=layout != "old pickled")
            path.unlink()
        for index in folder.glob("*.index.json"):
            text = index.read_text().replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
            (folder / "pytorch_model.bin.index.json").write_text(text)
            index.unlink()
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_llm(layout, tiny_llm, tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files, "SHARD_BYTES", 30_000)  # so that some of what is written has shards
    source = save(tiny_llm, tiny_tokenizer, tmp_path / "source", layout)
    target = open_storage(str(tmp_path / "models" / "opt"))
    manifest, done = import_llm(str(source), None, target)
    assert done and manifest.config["source"] == str(source) and manifest.stats["logits_off_by"] == 0

    config = LLMConfig(name=target.uri, dtype="float32")
    assert len(load_tokenizer(config)) == len(tiny_tokenizer)
    for name, weight in load_llm(config).state_dict().items():
        assert torch.equal(weight, tiny_llm.state_dict()[name]), name
    folder = Path(target.uri)
    files = {path.name for path in folder.iterdir()}
    assert files == {MANIFEST, *manifest.files} and "README.md" not in files
    assert all(file_sha256(folder / name) == entry["sha256"] for name, entry in manifest.files.items())
    assert [path.name for path in folder.parent.iterdir()] == ["opt"], "no draft is left"
    if "pickled" in layout:
        assert len(list(folder.glob("*-of-*.safetensors"))) > 1 and not list(folder.glob("*.bin"))
    assert import_llm(str(source), None, target) == (manifest, False)


def test_weights_are_converted_on_request(tiny_llm, tiny_tokenizer, tmp_path):
    source = save(tiny_llm, tiny_tokenizer, tmp_path / "source", "pickled")
    target = open_storage(str(tmp_path / "target"))
    import_llm(str(source), None, target)
    manifest, done = import_llm(str(source), None, target, "bfloat16")
    assert done and manifest.config["dtype"] == "bfloat16", "another import takes the earlier one's place"
    written = load_file(tmp_path / "target" / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "target" / "config.json").read_text())["dtype"] == "bfloat16"
    for name, weight in load_llm(LLMConfig(name=target.uri, dtype="bfloat16")).state_dict().items():
        assert torch.equal(weight, tiny_llm.state_dict()[name].bfloat16()), name


@pytest.mark.s3
def test_from_a_bucket_into_a_bucket(tiny_llm, tiny_tokenizer, s3: S3Config, s3_uri, tmp_path, monkeypatch):
    for name, value in store_environment(s3).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(machine_cache, "CACHE", tmp_path / "cache")
    source, target = (open_storage(f"{s3_uri}/{name}", s3) for name in ("published", "imported"))
    for path in save(tiny_llm, tiny_tokenizer, tmp_path / "source", "sharded pickled").iterdir():
        source.write(path.name, path.read_bytes())
    manifest, _ = import_llm(source.uri, None, target)
    assert {entry.key for entry in target.list()} == {MANIFEST, *manifest.files}
    for name, weight in load_llm(LLMConfig(name=target.uri, dtype="float32")).state_dict().items():
        assert torch.equal(weight, tiny_llm.state_dict()[name]), name


def test_from_the_hub_at_the_commit_that_was_read(tiny_llm, tiny_tokenizer, tmp_path, monkeypatch):
    source = save(tiny_llm, tiny_tokenizer, tmp_path / "source", "pickled")
    requested = []

    class Hub:
        def model_info(self, name, revision):
            siblings = [huggingface_hub.hf_api.RepoSibling(rfilename=path.name) for path in source.iterdir()]
            return huggingface_hub.ModelInfo(id=name, sha="c0ffee", siblings=[vars(file) for file in siblings])

    def download(name, revision, allow_patterns):
        requested.append((name, revision, "pytorch_model*.bin" in allow_patterns, "*.safetensors" in allow_patterns))
        return str(source)

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    manifest, _ = import_llm("maker/opt", "main", open_storage(str(tmp_path / "target")))
    assert requested == [("maker/opt", "c0ffee", True, False)]
    assert manifest.config == {"source": "maker/opt", "revision": "c0ffee", "dtype": None}
    with pytest.raises(ValueError, match=r"run `allmrec models import maker/opt --to models/opt` once"):
        load_llm(LLMConfig(name="maker/opt"))


def truncate(folder: Path) -> None:
    path = sorted(folder.glob("*-00002-of-*"))[0]
    path.write_bytes(path.read_bytes()[:-1000])


def drop(folder: Path) -> None:
    sorted(folder.glob("*-00002-of-*"))[0].unlink()


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def arm(folder: Path) -> None:
    with sorted(folder.glob("*-00002-of-*"))[0].open("wb") as file:
        pickle.dump({"weight": Bomb()}, file)


def arm_zip(folder: Path) -> None:
    torch.save({"weight": Bomb()}, sorted(folder.glob("*-00002-of-*"))[0])


def thin(folder: Path) -> None:
    """One weight less, of the shard that has the embeddings."""
    for path in folder.glob("*-of-*"):
        load, store = (torch.load, torch.save) if path.suffix == ".bin" else (load_file, save_file)
        held = load(path)
        if held.pop("model.decoder.embed_tokens.weight", None) is not None:
            store(held, path)


FAULTS = {
    "truncated": (truncate, r"00002-of-\d+\.\w+ is truncated or damaged"),
    "a shard less": (drop, r"lacks \w+-00002-of-\d+\.\w+, which .*index.json names"),
    "a weight less": (thin, r"lacks .*model.decoder.embed_tokens.weight"),
    "code": (arm, r"00002-of-\d+\.bin is refused: it holds more than tensors"),
    "code in a zip": (arm_zip, r"00002-of-\d+\.bin is refused: it holds more than tensors"),
}


@pytest.mark.parametrize("layout", ["sharded safetensors", "sharded pickled"])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_a_whole_and_harmless_checkpoint_is_refused(
    fault, layout, tiny_llm, tiny_tokenizer, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    if "code" in fault and "pickled" not in layout:
        pytest.skip("safetensors hold no code")
    source = save(tiny_llm, tiny_tokenizer, tmp_path / "source", layout)
    damage, message = FAULTS[fault]
    damage(source)
    with pytest.raises(ValueError, match=message):
        import_llm(str(source), None, open_storage(str(tmp_path / "target")))
    assert {path.name for path in tmp_path.iterdir()} == {"source"}, "nothing ran, and nothing is kept"


def test_a_result_that_is_another_llm_is_not_kept(tiny_llm, tiny_tokenizer, tmp_path, monkeypatch):
    source = save(tiny_llm, tiny_tokenizer, tmp_path / "source", "pickled")
    read = weight_files._read_pickled
    monkeypatch.setattr(
        weight_files, "_read_pickled", lambda file: ((name, tensor * 1.01) for name, tensor in read(file))
    )
    with pytest.raises(ValueError, match="logits differ from the source's by"):
        import_llm(str(source), None, open_storage(str(tmp_path / "target")))
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_a_folder_with_other_files_is_left_alone(tiny_llm, tiny_tokenizer, tmp_path):
    source = save(tiny_llm, tiny_tokenizer, tmp_path / "source")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(ValueError, match="holds other files"):
        import_llm(str(source), None, open_storage(str(tmp_path / "photos")))
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_a_source_without_weights_says_what_is_read(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no weights that can be imported: model.safetensors, pytorch_model.bin"):
        import_llm(str(tmp_path), None, open_storage(str(tmp_path / "target")))


def test_gguf(tiny_tokenizer, tmp_path):
    """Unpacked by transformers, whose names and order of attention's rows are others than llama.cpp's."""
    gguf = pytest.importorskip("gguf")
    llm = ARCHITECTURES["Llama, tied"].build(len(tiny_tokenizer))
    source = tmp_path / "source"
    source.mkdir()
    write_gguf(gguf, llm, tiny_tokenizer, source / "tiny.gguf")
    (source / "other.gguf").write_bytes(b"")
    target = open_storage(str(tmp_path / "target"))
    with pytest.raises(ValueError, match=r"holds 2 GGUF files; name one as .*tiny.gguf"):
        import_llm(str(source), None, target)
    manifest, _ = import_llm(f"{source}/tiny.gguf", None, target)
    assert read_manifest(target).stats["architecture"] == "LlamaForCausalLM" and "config.json" in manifest.files
    config = LLMConfig(name=target.uri, dtype="float32")
    text = "The Last Garden"
    assert load_tokenizer(config)(text)["input_ids"] == tiny_tokenizer(text)["input_ids"]
    imported, tokens = load_llm(config), torch.arange(5, 12)[None]
    torch.testing.assert_close(imported(tokens).logits, llm(tokens).logits, atol=1e-4, rtol=1e-4)


def write_gguf(gguf, llm, tokenizer, path: Path) -> None:
    """As llama.cpp writes a Llama: rows of queries and keys are in its own order of rotation."""
    config, weights = llm.config, llm.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer.add_tokenizer_model("gpt2")
    # transformers gives such a tokenizer this token whether or not the file has it.
    writer.add_token_list(["<|endoftext|>" if token == "<unk>" else token for token in vocabulary])
    writer.add_token_types([gguf.TokenType.CONTROL] * 4 + [gguf.TokenType.NORMAL] * (len(vocabulary) - 4))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    for name, number in (("bos", tokenizer.bos_token_id), ("eos", tokenizer.eos_token_id)):
        getattr(writer, f"add_{name}_token_id")(number)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in weights.items():
        for kind, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if f"{kind}.weight" in name:
                half = tensor.view(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
                tensor = half.swapaxes(1, 2).reshape(tensor.shape)
        if name != "lm_head.weight":
            stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
            writer.add_tensor(stored, tensor.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
