"""MoRec and CTRL as `baselines`: trained beside the main teacher, bundled and evaluated; nothing else is changed."""

import datetime
import json

import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from allmrec.bundle.loading import load_bundle
from allmrec.bundle.versions import latest_bundle
from allmrec.cf.teacher import load_teacher
from allmrec.core.artifacts import read_table
from allmrec.data.sequences import Sequences
from allmrec.model import ALLMRec
from jobs import baselines, bundle, evaluate, train_baselines
from jobs.config import Config
from jobs.pipeline import ordered, steps_of
from jobs.runtime.console import Console
from jobs.runtime.step import beside_defaults, execute
from tests.bundle.test_text_teacher import write_texts
from tests.evaluation.tiny import NUM_ITEMS, write_items
from tests.text.tiny import build_tiny_sbert

pytestmark = pytest.mark.usefixtures("in_process")
CONSOLE = Console(log_json=True)
NAMED = {"morec": {"epochs": 2}, "ctrl": {"epochs": 2, "pretraining": {"epochs": 1, "dim": 4}}}


def with_baselines(config: Config, **named) -> Config:
    return Config(**config.model_dump(exclude_unset=True) | {"baselines": named})


@pytest.fixture
def named(tiny_workspace, tmp_path) -> Config:
    config, storage = tiny_workspace
    write_texts(storage, read_table(storage.at("items")))
    build_tiny_sbert(["A user who has recently bought Moonfall The Last Garden untitled item"], tmp_path / "sbert")
    text = config.text.model_copy(update={"model": str(tmp_path / "sbert")})
    return with_baselines(config.model_copy(update={"text": text}), **NAMED)


def metrics_of(storage) -> dict[str, dict[tuple[str, ...], float]]:
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for row in json.loads(storage.read("metrics.json")):
        found.setdefault(row["system"], {})[row["protocol"], row["subset"], row["metric"]] = row["value"]
    return found


def test_they_are_trained_bundled_and_evaluated_beside_the_others(tiny_workspace, named):
    config, storage = tiny_workspace
    plain = latest_bundle(storage)
    execute(evaluate.STEP, config, CONSOLE)
    before = metrics_of(storage)
    steps = baselines.steps(named)
    assert all([execute(step, named, CONSOLE) for step in steps])
    assert not any([execute(step, named, CONSOLE) for step in steps]), "nothing has changed"
    other = with_baselines(named, morec=NAMED["morec"], ctrl={"epochs": 1})
    assert [execute(step, other, CONSOLE, dry_run=False) for step in baselines.steps(other)] == [False, True]
    assert execute(steps[1], named, CONSOLE)

    assert execute(bundle.STEP, named, CONSOLE)
    version = latest_bundle(storage)
    loaded = load_bundle(storage, version)
    assert version != plain and set(loaded.systems) == {"morec", "ctrl"}
    assert execute(evaluate.STEP, named, CONSOLE)
    metrics = metrics_of(storage)
    for system in ("morec", "ctrl"):
        assert {protocol for protocol, _, _ in metrics[system]} == {"random", "matched", "swap", "full"}
    assert {system: metrics[system] for system in before} == before, "the others' figures stay"
    users = Sequences.read(storage.at("sequences"))
    stored = load_teacher(storage.at("systems/morec"))
    assert torch.equal(ALLMRec(loaded, config.llm).by_name("morec").represent(users).cpu(), stored.represent(users))
    assert execute(bundle.STEP, config, CONSOLE) and latest_bundle(storage) == plain, "without: to the byte as before"


def test_new_items_are_known_to_morec_by_their_texts(tiny_workspace, named):
    _, storage = tiny_workspace
    for step in baselines.steps(named):
        execute(step, named, CONSOLE)
    items = read_table(storage.at("items"))
    new = {**items.to_pylist()[0], "item_id": "a-new-one", "title": "New", "text_hash": "new", "item_index": 1}
    rows = [new, *({**row, "item_index": row["item_index"] + 1} for row in items.to_pylist())]
    write_items(storage, pa.Table.from_pylist(rows, items.schema))
    texts_IS = write_texts(storage, read_table(storage.at("items")))
    execute(bundle.STEP, named, CONSOLE)
    model = ALLMRec(load_bundle(storage, latest_bundle(storage)), named.llm)
    stored = {name: load_teacher(storage.at(f"systems/{name}")) for name in NAMED}
    for name, teacher in stored.items():
        e_ND = model.by_name(name).item_embeddings.cpu()
        assert torch.equal(e_ND[2:], teacher.item_embeddings[1:]) and len(e_ND) == NUM_ITEMS + 2
    torch.testing.assert_close(
        model.by_name("morec").item_embeddings[1].cpu(), stored["morec"].embed_texts(texts_IS)[0]
    )
    assert not model.by_name("ctrl").item_embeddings[1].any(), "it knows no texts of items"


def test_a_bundle_takes_no_system_of_other_items(tiny_workspace, named):
    _, storage = tiny_workspace
    for step in baselines.steps(named):
        execute(step, named, CONSOLE)
    items = read_table(storage.at("items"))
    names = pa.array(["other", *items.column("item_id").to_pylist()[1:]])
    place = items.column_names.index("item_id")
    write_items(storage, items.set_column(place, items.schema.field(place), names))
    write_texts(storage, read_table(storage.at("items")))
    execute(baselines.step_of("morec"), named, CONSOLE)
    with pytest.raises(
        ValueError, match="morec was trained on other items than the teacher; run train-baselines again"
    ):
        execute(bundle.STEP, named, CONSOLE, force=True)


def test_unset_keys_are_those_of_the_teacher():
    teacher = {"model": "gru4rec", "dim": 12, "epochs": 7, "items": "text", "pretraining": {"epochs": 3}}
    config = Config(name="any", teacher=teacher, baselines={"morec": {"epochs": 9}, "ctrl": {}})
    morec, ctrl = config.named_teachers["morec"], config.named_teachers["ctrl"]
    assert (morec.model, morec.dim, morec.epochs, morec.items, morec.pretraining) == ("gru4rec", 12, 9, "text", None)
    assert (ctrl.model, ctrl.dim, ctrl.epochs, ctrl.items, ctrl.pretraining.epochs) == ("gru4rec", 12, 7, "ids", 10)
    paper = Config(name="any", teacher=teacher, baselines={"morec": {"preset": "paper"}}).named_teachers["morec"]
    assert (paper.model, paper.loss, paper.epochs, paper.dim) == ("sasrec", "bce", 200, 50)
    assert Config(name="any", teacher={"model": "ncf"}, baselines={"ctrl": {}}).named_teachers["ctrl"].model == "sasrec"
    assert not Config(name="any").named_teachers
    for wrong, why in (({"morec": {"model": "ncf"}}, "is for the models"), ({"mrec": {}}, "did you mean 'morec'")):
        with pytest.raises(ValidationError, match=why):
            Config(name="any", baselines=wrong)


def test_a_run_trains_what_is_named_before_the_bundle(named):
    verbs = [step.verb for step in ordered(steps_of(named, datetime.date(2026, 11, 29)))]
    assert verbs.index("embed") < verbs.index("train-baselines morec") < verbs.index("bundle")
    assert "train-baselines ctrl" in verbs and "train-baselines" not in verbs


def test_one_system_is_no_part_of_another_s_identity():
    alone = Config(name="any", baselines={"llm_srec": {"dim": 8}})
    beside = Config(name="any", baselines={"llm_srec": {"dim": 8}, "morec": {}})
    sections = train_baselines.STEP.sections
    assert beside_defaults(beside, sections) == beside_defaults(alone, sections)
    assert beside_defaults(alone, sections) == beside_defaults(alone, ("baselines", "prompt", "llm"))
