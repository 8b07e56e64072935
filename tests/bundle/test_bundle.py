"""Bundles: the same content makes the same version, nothing changes it afterwards, and damage is refused by name."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from allmrec.bundle.build import build_bundle
from allmrec.bundle.description import DESCRIPTION, check_items, check_llm, read_description
from allmrec.bundle.loading import load_bundle
from allmrec.bundle.versions import bundle_versions
from allmrec.cf.teacher import load_teacher
from allmrec.core.artifacts import MANIFEST, read_manifest, read_table, writing
from allmrec.core.rows import whole
from allmrec.data.sequences import Sequences
from allmrec.data.trained_items import NAME
from allmrec.projection.projectors import fresh_projectors, save_projectors
from jobs.runtime.step import resolved
from schemas import trained_items
from tests.evaluation.tiny import tiny_config, write_items, write_tiny_workspace

SECTIONS = ("text", "teacher", "alignment", "llm", "prompt", "projection", "bundle")


@pytest.fixture
def config(tmp_path):
    return tiny_config(tmp_path)


@pytest.fixture
def storage(config, tiny_llm, tiny_tokenizer):
    return write_tiny_workspace(config, tiny_llm, tiny_tokenizer)


@pytest.fixture
def version(config, storage):
    return build_bundle(storage, resolved(config, SECTIONS))


def contents(storage) -> dict[str, bytes]:
    return {entry.key: storage.read(entry.key) for entry in storage.list("bundles/")}


def test_what_is_loaded_is_what_was_trained(config, storage, version):
    bundle = load_bundle(storage, version)
    users = Sequences.read(storage.at("sequences"))
    assert torch.equal(bundle.teacher.represent(users), load_teacher(storage.at("teacher")).represent(users))
    assert bundle.prompt == config.prompt and bundle.llm == config.llm
    assert bundle.catalogue.num_items == 40 and bundle.stats["projectors"]["loss"] == 2.5
    assert not any(weight.requires_grad for weight in bundle.projectors.parameters())


def trained_with(storage, **changed) -> None:
    """Say of the projectors that their training had other settings, `section={key: value}`."""
    manifest = json.loads(storage.read(f"projectors/{MANIFEST}"))
    for section, keys in changed.items():
        manifest["config"][section] |= keys
    storage.write(f"projectors/{MANIFEST}", json.dumps(manifest).encode())


def test_items_that_were_hardly_seen_take_the_text_embedding(config, storage):
    trained_with(storage, bundle={"min_interactions_for_cf": 2})
    settings = resolved(config, SECTIONS) | {"bundle": {"min_interactions_for_cf": 2}}
    bundle = load_bundle(storage, build_bundle(storage, settings))
    rare = bundle.catalogue.popularity < 2  # padding, and the last two items
    assert rare.sum() == 3
    joint, e_NJ, q_NJ = (whole(table) for table in (bundle.item_inputs(), bundle.e_NJ, bundle.q_NJ))
    assert torch.equal(joint[rare], q_NJ[rare]) and torch.equal(joint[~rare], e_NJ[~rare])
    assert not torch.equal(e_NJ, q_NJ)
    assert torch.equal(whole(bundle.item_inputs(text=True)), q_NJ)
    bundle.teacher.item_embeddings[[5, 40]] = 0  # the last item has few interactions besides
    assert list(bundle.embedding_choice().embedding_counts().values()) == [37, 1, 2]


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("bundle", "min_interactions_for_cf", 3),
        ("projection", "item_input", "random"),
        ("projection", "sharpness", 3.0),
    ],
)
def test_projectors_that_were_trained_on_other_forms_are_refused(config, storage, section, key, value):
    settings = resolved(config, SECTIONS)
    settings[section] |= {key: value}
    with pytest.raises(ValueError, match=rf"trained with {section}\.{key} .*{value}.*run train-projection again"):
        build_bundle(storage, settings)
    trained_with(storage, **{section: {key: value}})
    build_bundle(storage, settings)


def test_a_bundle_of_another_format_says_what_to_do(storage, version):
    key = f"bundles/{version}/{DESCRIPTION}"
    storage.write(key, json.dumps(json.loads(storage.read(key)) | {"format": 1}).encode())
    with pytest.raises(ValueError, match=r"bundle format 1 is not .*run train-projection and bundle again"):
        read_description(storage, version)


def test_the_same_content_makes_the_same_version_and_leaves_it_as_it_is(config, storage, version):
    before = contents(storage)
    # Trained again: the same weights, but the manifest has another duration.
    manifest = json.loads(storage.read(f"projectors/{MANIFEST}"))
    storage.write(f"projectors/{MANIFEST}", json.dumps(manifest | {"stats": {"seconds": 99}}).encode())
    assert build_bundle(storage, resolved(config, SECTIONS)) == version
    assert contents(storage) == before
    assert build_bundle(storage, resolved(config, SECTIONS) | {"seed": 1}) != version
    assert {key: data for key, data in contents(storage).items() if version in key} == before


def test_a_build_that_was_killed_is_finished_by_the_next(config, storage, version):
    before = contents(storage)
    storage.delete(f"bundles/{version}/{DESCRIPTION}")
    storage.delete(f"bundles/{version}/items/part-00000.parquet")
    with pytest.raises(ValueError, match="no such bundle"):
        load_bundle(storage, version)
    build_bundle(storage, resolved(config, SECTIONS))
    assert contents(storage) == before


def test_a_build_that_left_damage_is_repaired_by_the_next(config, storage, version):
    before = contents(storage)
    storage.delete(f"bundles/{version}/{DESCRIPTION}")
    storage.write(f"bundles/{version}/teacher/teacher.safetensors", b"half")
    build_bundle(storage, resolved(config, SECTIONS))
    assert contents(storage) == before


def trained_on(storage, model: str, items) -> None:
    """Say of a model that it was trained on these items."""
    manifest, target = read_manifest(storage.at(model)), storage.at(model)
    kept = {name: entry for name, entry in manifest.files.items() if name != NAME}
    with writing(target, model, "test", manifest.config, keep_previous=True) as out:
        out.add(kept)
        out.stats |= manifest.stats
        out.table(NAME, trained_items.SCHEMA, items)


def test_models_that_do_not_fit_together_make_no_bundle(config, storage):
    settings, items = resolved(config, SECTIONS), read_table(storage.at("items"))
    trained_on(storage, "teacher", items.slice(0, 39))
    with pytest.raises(ValueError, match="were trained on different items; run train-alignment"):
        build_bundle(storage, settings)
    trained_on(storage, "alignment", items.slice(0, 39))  # of 40 rows each
    with pytest.raises(ValueError, match="item_text_embeddings"):
        build_bundle(storage, settings)
    rows = items.to_pylist()
    longer = pa.Table.from_pylist([*rows, {**rows[0], "item_id": "another", "item_index": 41}], items.schema)
    for model in ("teacher", "alignment"):
        trained_on(storage, model, longer)
    write_items(storage, longer)
    with pytest.raises(ValueError, match="its models do not fit its items"):
        build_bundle(storage, settings)
    write_items(storage, items)
    for model in ("teacher", "alignment"):
        trained_on(storage, model, items)
    weights = fresh_projectors(9, 6, 32, 0).state_dict()  # the teacher has 8 dimensions
    manifest = read_manifest(storage.at("projectors"))
    with writing(storage.at("projectors"), "projectors", "test", manifest.config) as out:
        out.add(save_projectors(storage.at("projectors"), weights, weights))
    with pytest.raises(ValueError, match="its parts do not fit together"):
        build_bundle(storage, settings)
    assert bundle_versions(storage) == []


def test_nothing_of_the_llm_and_nothing_pickled_is_inside(storage, version):
    names = {key.removeprefix(f"bundles/{version}/") for key in contents(storage)}
    assert names == {
        DESCRIPTION,
        *(f"{part}/{MANIFEST}" for part in ("teacher", "alignment", "projectors", "items", "new_texts")),
        *(f"{model}/items.parquet" for model in ("teacher", "alignment")),
        "new_texts/q.safetensors",
        "teacher/teacher.safetensors",
        "alignment/alignment.safetensors",
        "alignment/joint.safetensors",
        "projectors/projectors.safetensors",
        "projectors/untrained.safetensors",
        "items/part-00000.parquet",
    }


def test_damage_to_any_file_is_refused_by_name(storage, version):
    for key, data in contents(storage).items():
        broken = bytearray(data)
        broken[len(data) // 2] ^= 1
        storage.write(key, bytes(broken))
        with pytest.raises(ValueError, match=key.rpartition("/")[2]):
            load_bundle(storage, version)
        storage.delete(key)
        with pytest.raises(ValueError, match=r"missing|no such bundle"):
            load_bundle(storage, version)
        storage.write(key, data)
    load_bundle(storage, version)


def test_an_edited_description_is_refused(storage, version):
    key = f"bundles/{version}/{DESCRIPTION}"
    description = json.loads(storage.read(key))
    description["config"]["prompt"]["noun"] = "movie"
    storage.write(key, json.dumps(description).encode())
    with pytest.raises(ValueError, match="does not match its digest"):
        read_description(storage, version)


def test_another_llm_or_items_table_is_refused(config, storage, version, tmp_path):
    description = read_description(storage, version)
    check_llm(description, config.llm)
    check_items(description, storage.at("items"))
    (tmp_path / "llm" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"llm\.name"):
        check_llm(description, config.llm)
    items = read_table(storage.at("items"))
    write_items(storage, items.set_column(items.column_names.index("popularity"), "popularity", items["interactions"]))
    check_items(description, storage.at("items"))
    write_items(storage, items.slice(0, len(items) - 1))
    with pytest.raises(ValueError, match="numbers other items"):
        check_items(description, storage.at("items"))


def test_an_unfinished_part_is_named(config, storage):
    storage.delete(f"projectors/{MANIFEST}")
    with pytest.raises(ValueError, match="projectors"):
        build_bundle(storage, resolved(config, SECTIONS))


def test_popularity_is_by_item_index(storage, version):
    np.testing.assert_array_equal(load_bundle(storage, version).catalogue.popularity[1:3], [39, 38])
