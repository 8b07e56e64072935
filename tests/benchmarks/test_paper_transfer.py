"""RECFORMER on a catalogue that it was not trained on, which it knows by its words."""

import numpy as np
import pyarrow as pa
import torch

from allmrec.core.artifacts import writing
from allmrec.core.workspace import open_workspace
from allmrec.recformer.artifact import load_recformer, save_recformer
from allmrec.recformer.build import build_recformer
from allmrec.recformer.config import RecformerConfig
from allmrec.recformer.network import read_items
from benchmarks.paper_transfer import by_words
from schemas import items as items_schema
from tests.cf.conftest import ragged
from tests.recformer.conftest import NUM_ITEMS, items_table


def test_recformer_knows_items_of_another_catalogue_by_their_words(tmp_path):
    workspace, config = open_workspace(str(tmp_path)), RecformerConfig(max_items=4, max_tokens=48)
    items = items_table()
    network, sentences, tokenizer = build_recformer(config, lambda: [items], seed=0)
    vectors_ND = torch.zeros(NUM_ITEMS + 1, network.dim)
    vectors_ND[1:] = read_items(network, sentences, np.arange(1, NUM_ITEMS + 1), config.tokens_per_pass)
    weights = network.state_dict()
    resolved = {"baselines": {"recformer": config.model_dump()}}
    with writing(workspace.recformer, "recformer", "", resolved) as out:
        out.add(
            save_recformer(workspace.recformer, weights, weights, vectors_ND, sentences, network.encoder, tokenizer)
        )
    # The other catalogue has the last three items, the last one first.
    rows = items.take(pa.array([NUM_ITEMS - 1, NUM_ITEMS - 2, NUM_ITEMS - 3]))
    others = rows.set_column(rows.schema.get_field_index("item_index"), "item_index", pa.array([1, 2, 3], pa.int32()))
    with writing(workspace.items, "items", "") as out:
        out.table(0, items_schema.SCHEMA, others.cast(items_schema.SCHEMA))

    own, moved = load_recformer(workspace.recformer), by_words(workspace.recformer, workspace)
    torch.testing.assert_close(moved.item_embeddings, own.item_embeddings[[0, 12, 11, 10]])
    torch.testing.assert_close(moved.represent(ragged([[1, 3], [2]])), own.represent(ragged([[12, 10], [11]])))
