"""A workspace up to its bundle with random models, of any number of users: what a nightly benchmark begins from."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from allmrec.alignment.network import AlignmentNetwork, save_alignment
from allmrec.cf.teacher import build_teacher, save_teacher
from allmrec.core.artifacts import writing
from allmrec.core.hashing import shard_of
from allmrec.core.pretrained import model_identity
from allmrec.core.storage import Storage
from allmrec.core.workspace import Workspace
from allmrec.data.catalogue import Catalogue
from allmrec.data.sequences import offsets_of
from allmrec.data.trained_items import write_trained_items
from allmrec.demo.llm import train_tokenizer
from allmrec.projection.projectors import fresh_projectors, save_projectors
from jobs import bundle
from jobs.config import Config
from jobs.runtime.console import Console
from jobs.runtime.step import execute
from schemas import items, sequences

_TEXT_DIM, _LONGEST = 32, 30


def write_run(config: Config, num_users: int, num_items: int, hidden: int, layers: int) -> None:
    """Tables, models and bundle; the LLM is an OPT of `layers` layers of `hidden`, drawn and not trained."""
    workspace, folder = config.workspace, Path(config.llm.name)
    rng = np.random.default_rng(config.seed)
    numbers = np.arange(1, num_items + 1)
    ids = [f"item-{number}" for number in numbers]
    columns = {
        "item_id": ids,
        "title": [f"Volume {number} of the Collection" for number in numbers],
        "description": pa.nulls(num_items, pa.string()),
        "categories": pa.nulls(num_items, pa.list_(pa.string())),
        "available": pa.nulls(num_items, pa.bool_()),
        "item_index": numbers,
        "popularity": num_items // numbers,
        "interactions": num_items // numbers,
        "text_hash": ids,
    }
    _table(workspace.items, items.SCHEMA, [pa.table(columns)])
    _table(workspace.sequences, sequences.SCHEMA, _sequences(config, num_users, num_items, rng))
    titles = Catalogue.read(workspace.items).titles
    tokenizer = train_tokenizer(titles, [config.prompt], 2000)
    tokenizer.save_pretrained(folder)
    llm = drawn_llm(len(tokenizer), hidden, layers)
    llm.save_pretrained(folder)
    Path(config.text.model).mkdir(exist_ok=True)
    _models(config, workspace, num_items, hidden)
    execute(bundle.STEP, config, Console(log_json=True))


def _sequences(config: Config, num_users: int, num_items: int, rng: np.random.Generator) -> list[pa.Table]:
    user_ids = pa.array(np.char.add("user-", np.arange(num_users).astype(str)))
    shards = shard_of(user_ids, config.data.num_shards)
    tables = []
    for shard in range(config.data.num_shards):
        mine = user_ids.filter(pa.array(shards == shard))
        lengths = rng.integers(2, _LONGEST, len(mine))
        offsets = offsets_of(lengths).astype(np.int32)
        # Distinct within a history: steps around the catalogue from a drawn start.
        positions = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        drawn = (np.repeat(rng.integers(0, num_items, len(mine)), lengths) + 7 * positions) % num_items + 1
        times = pa.array(np.zeros(offsets[-1], np.int64)).cast(pa.timestamp("us", "UTC"))
        columns = {
            "user_id": mine,
            "item_index": pa.ListArray.from_arrays(offsets, pa.array(drawn.astype(np.int32))),
            "timestamp": pa.ListArray.from_arrays(offsets, times),
            "train_length": pa.array(lengths.astype(np.int32)),
        }
        tables.append(pa.table(columns))
    return tables


def drawn_llm(vocab: int, hidden: int, layers: int) -> Any:
    """An OPT of that size, with random weights."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": hidden, "word_embed_proj_dim": hidden, "ffn_dim": 4 * hidden, "num_hidden_layers": layers}
    return OPTForCausalLM(OPTConfig(vocab_size=vocab, num_attention_heads=8, max_position_embeddings=1024, **shape))


def _models(config: Config, workspace: Workspace, num_items: int, hidden: int) -> None:
    settings = config.model_dump(mode="json")
    teacher = build_teacher(config.teacher, num_items).eval()
    with writing(workspace.teacher, Workspace.teacher, "drawn", settings) as out:
        out.add(save_teacher(workspace.teacher, teacher))
        out.stats["num_items"] = num_items
        out.add(write_trained_items(workspace.teacher, workspace.items))
    joint = config.alignment.joint_dim
    network = AlignmentNetwork(config.teacher.dim, _TEXT_DIM, joint)
    vectors = network.joint(teacher.item_embeddings, torch.randn(num_items + 1, _TEXT_DIM))
    with writing(workspace.alignment, Workspace.alignment, "drawn", settings) as out:
        out.add(save_alignment(workspace.alignment, network, *vectors))
        out.add(write_trained_items(workspace.alignment, workspace.items))
    projectors = fresh_projectors(config.teacher.dim, joint, hidden, seed=0).state_dict()
    with writing(workspace.projectors, Workspace.projectors, "drawn", settings) as out:
        out.add(save_projectors(workspace.projectors, projectors, untrained=projectors))
        out.stats["llm"] = model_identity(config.llm.name, config.llm.revision)


def _table(storage: Storage, schema: pa.Schema, shards: list[pa.Table]) -> None:
    with writing(storage, "table", "drawn") as out:
        for shard, table in enumerate(shards):
            out.table(shard, schema, table)
