"""Who is known, over all files of a catalogue."""

from pathlib import Path

import pyarrow as pa

from allmrec.core.artifacts import writing
from allmrec.core.workspace import open_workspace
from allmrec.data.known import Known
from schemas import items


def test_items_are_looked_up_in_every_file_of_the_catalogue(tmp_path: Path) -> None:
    workspace, ids = open_workspace(str(tmp_path)), pa.array(["c", "nowhere", "a", "b", "a"])
    assert not Known(workspace).items(ids).any(), "before there is a catalogue"
    with writing(workspace.items, "items", "test") as out:
        for number, id in enumerate("abc"):
            row = {"item_id": id, "item_index": number + 1, "popularity": 1, "interactions": 1, "text_hash": id}
            out.table(number, items.SCHEMA, pa.Table.from_pylist([row], items.SCHEMA))
    assert Known(workspace).items(ids).tolist() == [True, False, True, True, True]
