"""A run of one catalogue is evaluated with the models of another: prepared apart, joined by `transfer`."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from allmrec.alignment.network import AlignmentNetwork, load_joint, load_network, save_alignment
from allmrec.bundle.loading import load_bundle
from allmrec.bundle.versions import latest_bundle
from allmrec.cf.teacher import load_teacher
from allmrec.core.artifacts import read_manifest, read_table, writing
from allmrec.core.rows import whole
from allmrec.core.storage import Storage
from allmrec.data.catalogue import Catalogue
from allmrec.data.evaluation_cases import EvaluationConfig
from allmrec.text.embeddings import read_texts
from allmrec.text.encoder import TextConfig, encoder_files, load_encoder
from jobs import bundle, evaluate, transfer
from jobs.config import Config
from jobs.runtime.console import Console
from jobs.runtime.step import execute
from schemas import item_text_embeddings
from tests.evaluation.tiny import JOINT, NUM_ITEMS, tiny_config, write_tiny_workspace
from tests.text.tiny import DIM, build_tiny_sbert

QUIET = Console(log_json=True)

pytestmark = pytest.mark.usefixtures("in_process")


def write_texts(storage: Storage, encoder: str, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(NUM_ITEMS, 5)).astype(np.float32)
    items = read_table(storage.at("items"))
    keys = (items.column(name).to_pylist() for name in ("item_id", "text_hash"))
    columns = [*keys, [encoder] * NUM_ITEMS, vectors.tolist()]
    schema, target = item_text_embeddings.schema(5), storage.at("item_text_embeddings")
    table = pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )
    with writing(target, "item_text_embeddings", "test") as out:
        out.table(0, schema, table)
        out.stats["encoder"] = encoder
    return vectors


@pytest.fixture
def runs(tmp_path, tiny_llm, tiny_tokenizer) -> tuple[Storage, Storage, Config]:
    """The trained run, the other one, and its config."""
    trained = tiny_config(tmp_path / "movies")
    movies = write_tiny_workspace(trained, tiny_llm, tiny_tokenizer)
    split = {"kind": "cross-domain", "trained_in": trained.workspace_uri}
    config = tiny_config(tmp_path / "games", evaluation={"split": split, "systems": ["teacher", "a-llmrec-sbert"]})
    games = write_tiny_workspace(config, tiny_llm, tiny_tokenizer)
    write_texts(movies, "sbert", 0)
    write_texts(games, "sbert", 1)
    for name in transfer.MODELS:
        for entry in list(games.at(name).list()):
            games.at(name).delete(entry.key)
    return movies, games, config


def test_models_come_over_and_are_evaluated(runs):
    movies, games, config = runs
    assert execute(transfer.STEP, config, QUIET)
    q_NJ = whole(load_joint(games.at("alignment"))[1])
    assert not q_NJ.equal(whole(load_joint(movies.at("alignment"))[1]))
    assert read_manifest(games.at("projectors")).files == read_manifest(movies.at("projectors")).files
    items_ND = load_teacher(games.at("teacher")).item_embeddings
    assert items_ND.shape == (NUM_ITEMS + 1, config.teacher.dim) and items_ND[1:].any(dim=1).all()
    assert not execute(transfer.STEP, config, QUIET)  # nothing has changed

    execute(bundle.STEP, config, QUIET)
    execute(evaluate.STEP, config, QUIET)
    metrics = json.loads(games.read("metrics.json"))
    tested = read_manifest(games.at("evaluation_cases")).stats["test"]
    counts = {row["count"] for row in metrics if (row["subset"], row["protocol"]) == ("all", "random")}
    assert counts == {tested} and {row["system"] for row in metrics} == {"teacher", "a-llmrec-sbert"}


@pytest.mark.parametrize("item_embeddings", ["decoded", "drawn"])
def test_both_rows_of_table_7_have_a_form_of_their_own(runs, item_embeddings):
    movies, games, config = runs
    split = config.evaluation.split.model_copy(update={"item_embeddings": item_embeddings})
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"split": split})})
    assert execute(transfer.STEP, config, QUIET)
    network, (e_NJ, q_NJ) = load_network(movies.at("alignment")), map(whole, load_joint(games.at("alignment")))
    items_ND = load_teacher(games.at("teacher")).item_embeddings
    torch.testing.assert_close(e_NJ[1:], network.encode_items(items_ND)[1:])
    torch.testing.assert_close(q_NJ[1:], network.encode_texts(read_texts(games.at("item_text_embeddings")))[1:])
    assert (e_NJ[1:] - q_NJ[1:]).abs().amax(1).min() > 1e-4, "no item's e is its q"
    known_ND = load_teacher(movies.at("teacher")).item_embeddings
    assert bool((torch.cdist(items_ND, known_ND).amin(1) < 0.01).all()) == (item_embeddings == "drawn")


def test_items_are_shown_as_this_config_says_whatever_the_other_run_trained_with(runs):
    _, games, config = runs
    config = Config(**config.model_dump(exclude_unset=True) | {"bundle": {"min_interactions_for_cf": 0}})
    for step in (transfer.STEP, bundle.STEP):
        execute(step, config, QUIET)
    by_text_N = load_bundle(games, latest_bundle(games)).uses_text_embedding()
    assert not by_text_N[1:].any(), "no item has an interaction here, and yet e_i shows it"


def test_a_fine_tuned_encoder_comes_along(runs, tmp_path):
    movies, games, config = runs
    texts = Catalogue.read(games.at("items"), texts=True).texts[1:]
    build_tiny_sbert(texts.to_pylist(), tmp_path / "sbert")
    encoder, network = load_encoder(TextConfig(model=str(tmp_path / "sbert"))), AlignmentNetwork(8, DIM, JOINT)
    settings = read_manifest(movies.at("alignment")).config
    settings["alignment"]["text_encoder"] = "fine-tuned"
    e_NJ, q_NJ = torch.randn(2, NUM_ITEMS + 1, JOINT)
    with writing(movies.at("alignment"), "alignment", "this training", settings) as out:
        out.add(save_alignment(movies.at("alignment"), network, e_NJ, q_NJ))
    with writing(movies.at("fine_tuned"), "fine_tuned", "a later training") as tuned:
        for name, data in encoder_files(encoder).items():
            tuned.file(f"encoder/{name}", data)
    with pytest.raises(ValueError, match="train-alignment was started again and not finished; run it there first"):
        execute(transfer.STEP, config, QUIET)

    with writing(movies.at("fine_tuned"), "fine_tuned", "this training") as out:
        out.add(tuned.files)
    assert execute(transfer.STEP, config, QUIET)
    first_S = torch.from_numpy(encoder.encode(texts[0].as_py()))  # of every item here: their texts have one hash
    expected_J = network.encode_texts(first_S)
    torch.testing.assert_close(whole(load_joint(games.at("alignment"))[1])[1:], expected_J.expand(NUM_ITEMS, -1))


def test_other_models_of_text_and_language_are_refused(runs):
    _, games, config = runs
    write_texts(games, "another", 1)
    with pytest.raises(ValueError, match=r"embedded by another, and in .* by sbert; use the same text.model"):
        execute(transfer.STEP, config, QUIET)
    write_texts(games, "sbert", 1)
    other = config.model_copy(update={"llm": config.llm.model_copy(update={"name": "org/other"})})
    with pytest.raises(ValueError, match=r"were trained into the LLM .*; point llm.name at that one"):
        execute(transfer.STEP, other, QUIET)
    plain = config.model_copy(update={"evaluation": EvaluationConfig()})
    with pytest.raises(ValueError, match="transfer needs another workspace"):
        execute(transfer.STEP, plain, QUIET)
    assert not games.exists("teacher/manifest.json")
