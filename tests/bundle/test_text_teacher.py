"""A bundle whose teacher knows items by their texts: a new one's E_i is made of its text, and nothing is trained."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from allmrec.bundle.build import build_bundle
from allmrec.bundle.loading import load_bundle
from allmrec.cf.teacher import build_teacher, load_teacher, save_teacher
from allmrec.core.artifacts import commit, read_manifest, read_table, writing
from allmrec.core.storage import Storage
from allmrec.data.trained_items import write_trained_items
from jobs.runtime.step import resolved
from schemas import item_text_embeddings
from tests.evaluation.tiny import tiny_config, write_items, write_tiny_workspace

SECTIONS = ("text", "teacher", "alignment", "llm", "prompt", "projection", "bundle")
TEXT_DIM = 5


def write_texts(storage: Storage, items: pa.Table, encoder: str = "tiny") -> torch.Tensor:
    vectors_IS = np.random.default_rng(3).normal(size=(len(items), TEXT_DIM)).astype(np.float32)
    schema, target = item_text_embeddings.schema(TEXT_DIM), storage.at("item_text_embeddings")
    keys = [items.column(name).to_pylist() for name in ("item_id", "text_hash")]
    columns = [*keys, [encoder] * len(items), vectors_IS.tolist()]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    with writing(target, "item_text_embeddings", "test") as out:
        out.table(0, schema, pa.table(arrays, schema=schema))
        out.stats["encoder"] = encoder
    return torch.from_numpy(vectors_IS)


def test_new_items_are_known_by_their_texts(tmp_path, tiny_llm, tiny_tokenizer):
    config = tiny_config(tmp_path)
    storage = write_tiny_workspace(config, tiny_llm, tiny_tokenizer)
    items = read_table(storage.at("items"))
    teacher_config = config.teacher.model_copy(update={"items": "text"})
    settings = resolved(config.model_copy(update={"teacher": teacher_config}), SECTIONS)
    teacher = build_teacher(teacher_config, len(items), TEXT_DIM)
    teacher.items.read(torch.cat([torch.zeros(1, TEXT_DIM), write_texts(storage, items)]))
    with writing(storage.at("teacher"), "teacher", "test", settings) as out:
        out.add(save_teacher(storage.at("teacher"), teacher.eval()))
        out.stats |= {"num_items": len(items), "encoder": "tiny"}
        out.add(write_trained_items(storage.at("teacher"), storage.at("items")))
    before = load_bundle(storage, build_bundle(storage, settings)).teacher.item_embeddings

    new = {**items.to_pylist()[0], "item_id": "a-new-one", "title": "Moonfall", "text_hash": "new", "item_index": 1}
    rows = [new, *({**row, "item_index": row["item_index"] + 1} for row in items.to_pylist())]
    later = pa.Table.from_pylist(rows, items.schema)
    write_items(storage, later)
    texts_IS = write_texts(storage, later)
    bundle = load_bundle(storage, build_bundle(storage, settings))
    e_ND = bundle.teacher.item_embeddings
    torch.testing.assert_close(e_ND[1], load_teacher(storage.at("teacher")).embed_texts(texts_IS)[0])
    assert torch.equal(e_ND[2:], before[1:]) and bundle.new_N.tolist()[1] and not bundle.new_N[2:].any()

    manifest = read_manifest(storage.at("teacher"))
    stats = manifest.stats | {"encoder": "another"}
    commit(storage.at("teacher"), manifest.kind, manifest.fingerprint, manifest.files, manifest.config, stats)
    write_items(storage, pa.Table.from_pylist([{**rows[0], "item_id": "another"}, *rows[1:]], items.schema))
    write_texts(storage, read_table(storage.at("items")))
    with pytest.raises(ValueError, match=r"was not embedded by another, by which .* was trained; set text.model"):
        build_bundle(storage, settings)
