"""A workspace up to Stage-2 with tiny untrained models: what bundles and evaluation need, made without Ray."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from allmrec.alignment.network import AlignmentNetwork, save_alignment
from allmrec.cf.teacher import build_teacher, save_teacher
from allmrec.core.artifacts import commit, shard_name, write_shard, writing
from allmrec.core.hashing import shard_of
from allmrec.core.pretrained import model_identity
from allmrec.core.storage import Storage, open_storage
from allmrec.data.catalogue import Catalogue, ItemCounts
from allmrec.data.evaluation_cases import CandidateItems, draw_cases
from allmrec.data.sequences import Sequences
from allmrec.data.splits import NONE, Split
from allmrec.data.trained_items import write_trained_items
from allmrec.projection.projectors import fresh_projectors, save_projectors
from jobs.config import Config
from schemas import evaluation_cases, items, rejected, sequences

NUM_ITEMS, NUM_USERS, NUM_SHARDS, JOINT = 40, 60, 3, 6
GENRES = ["Comedy", "Science Fiction", "War", "Western"]
TITLES: list[str | None] = [f"Moonfall {n}" for n in range(NUM_ITEMS - 3)] + [
    "The Last Garden",
    "The Last Garden",
    None,
]


def tiny_config(root: Path, **sections: Any) -> Config:
    """One worker; `root/llm` and `root/encoder` are the models' folders."""
    return Config(
        name="tiny",
        root=str(root),
        data={"num_shards": NUM_SHARDS},
        teacher={"dim": 8, "max_history": 6},
        alignment={"joint_dim": JOINT},
        workers={"num_workers": 1},
        llm={"name": str(root / "llm")},
        text={"model": str(root / "encoder")},
        **sections,
    )


def write_tiny_workspace(config: Config, llm: Any, tokenizer: Any, num_users: int = NUM_USERS) -> Storage:
    """Items, sequences, evaluation cases, teacher, alignment and projectors of a workspace, and its LLM's folder."""
    llm.save_pretrained(config.llm.name)
    tokenizer.save_pretrained(config.llm.name)
    Path(config.text.model).mkdir()
    Path(config.text.model, "config.json").write_text("{}")
    storage = open_storage(config.workspace_uri)
    rng = np.random.default_rng(0)
    popularity = np.arange(NUM_ITEMS, dtype=np.int64)[::-1]
    item_table = pa.table(
        {
            "item_id": [f"item-{n:02d}" for n in range(NUM_ITEMS)],
            "title": pa.array(TITLES),
            "description": pa.nulls(NUM_ITEMS, pa.string()),
            "categories": pa.array([["Movies", GENRES[n % 4]] for n in range(NUM_ITEMS)]),
            "available": pa.nulls(NUM_ITEMS, pa.bool_()),
            "item_index": np.arange(1, NUM_ITEMS + 1, dtype=np.int32),
            "popularity": popularity,
            "interactions": popularity + 1,
            "text_hash": ["-"] * NUM_ITEMS,
        }
    )
    _commit_table(storage.at("items"), "items", items.SCHEMA, [item_table])
    _commit_table(storage.at("rejected"), "rejected", rejected.SCHEMA, [rejected.SCHEMA.empty_table()])

    user_ids = pa.array(sorted(f"user-{n:02d}" for n in range(num_users)))
    lists = [rng.choice(NUM_ITEMS, rng.integers(2, 8), replace=False) + 1 for _ in range(num_users)]
    rows = pa.table(
        {
            "user_id": user_ids,
            "item_index": pa.array(lists, pa.list_(pa.int32())),
            "timestamp": pa.array([[0] * len(one) for one in lists], pa.list_(pa.timestamp("us", "UTC"))),
            "train_length": pa.array([len(one) - 2 if len(one) > 2 else len(one) for one in lists], pa.int32()),
        }
    )
    shard = shard_of(user_ids, config.data.num_shards)
    shards = [rows.filter(pa.array(shard == number)) for number in range(config.data.num_shards)]
    sizes = {"users": num_users, "items": NUM_ITEMS, "interactions": sum(map(len, lists))}
    _commit_table(storage.at("sequences"), "sequences", sequences.SCHEMA, shards, sizes)
    catalogue = Catalogue.read(storage.at("items"))
    users = [Sequences.from_table(part) for part in shards]
    split = Split(config.evaluation.split, config.seed)
    parts = [split.divide(some, np.zeros_like(some.items)) for some in users]
    counts = ItemCounts(catalogue.popularity, np.append(0, popularity + 1), num_users)
    candidates = CandidateItems.of(counts, config.evaluation)
    cases = [draw_cases(*both, candidates, config.evaluation, config.seed) for both in zip(users, parts, strict=True)]
    tested = {name: int(sum((getattr(one, name) != NONE).sum() for one in parts)) for name in ("valid", "test")}
    _commit_table(storage.at("evaluation_cases"), "evaluation_cases", evaluation_cases.SCHEMA, cases, tested)

    torch.manual_seed(1)
    teacher = build_teacher(config.teacher, NUM_ITEMS).eval()
    torch.nn.init.normal_(teacher.get_parameter("items.weight"))
    teacher.get_parameter("items.weight").data[0] = 0
    settings = config.model_dump(mode="json")
    with writing(storage.at("teacher"), "teacher", "test", settings) as out:
        out.add(save_teacher(storage.at("teacher"), teacher))
        out.stats |= {"num_items": NUM_ITEMS, "ndcg@10": 0.25}
        out.add(write_trained_items(storage.at("teacher"), storage.at("items")))
    network = AlignmentNetwork(config.teacher.dim, 5, JOINT)
    e_NJ, q_NJ = network.joint(teacher.item_embeddings, torch.randn(NUM_ITEMS + 1, 5))
    with writing(storage.at("alignment"), "alignment", "test", settings) as out:
        out.add(save_alignment(storage.at("alignment"), network, e_NJ, q_NJ))
        out.stats["encoder"] = "tiny"
        out.add(write_trained_items(storage.at("alignment"), storage.at("items")))
    item_dim = config.teacher.dim if config.projection.item_input == "teacher" else JOINT
    trained, untrained = (
        fresh_projectors(config.teacher.dim, item_dim, llm.config.hidden_size, seed).state_dict() for seed in (0, 1)
    )
    files = save_projectors(storage.at("projectors"), trained, untrained)
    identity = model_identity(config.llm.name, config.llm.revision)
    commit(storage.at("projectors"), "projectors", "test", files, settings, {"loss": 2.5, "llm": identity})
    return storage


def write_items(storage: Storage, table: pa.Table) -> None:
    """The catalogue of a later preparation."""
    _commit_table(storage.at("items"), "items", items.SCHEMA, [table])


def _commit_table(storage: Storage, kind: str, schema: pa.Schema, shards: list[pa.Table], stats: dict | None = None):
    files = {shard_name(n): write_shard(storage, schema, shard_name(n), table) for n, table in enumerate(shards)}
    commit(storage, kind, "test", files, {}, stats)
