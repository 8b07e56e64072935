"""A catalogue that fits into one process, cleaned, numbered and merged at once."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.data.prepare.items import clean_items, merge_items, number_items


def cleaned_rows(source):
    """All CLEANED rows of a source."""
    pieces = ((piece, table) for piece in source.pieces for table in source.read(piece))
    return pa.concat_tables(clean_items(table, source.config, source.place(piece)) for piece, table in pieces)


def index_items(cleaned, known=(), excluded=(), before=None):
    """All CLEANED rows → the `items` table without interactions, and the rejected rows."""
    good = cleaned.filter(pc.is_null(cleaned.column("reason")))
    files = np.unique(good.column("file").to_numpy(), return_inverse=True)[1]
    item_ids = number_items(good.column("item_id"), files, pa.array(known, pa.string()))
    return merge_items(cleaned, item_ids, 1, excluded, before)
