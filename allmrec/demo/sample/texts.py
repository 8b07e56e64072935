"""What a stand-in model reads before it meets a catalogue: titles and descriptions of generated shops.

Of any shop but the sample store's own: a catalogue that a model is shown later is new to it, but
for the few titles that chance makes alike (8 of the sample store's 800).
"""

import pyarrow as pa

from allmrec.data.catalogue import item_texts
from allmrec.demo.sample.shop import DOMAINS, SampleConfig, draw_latent_items
from allmrec.demo.sample.titles import items_table

_SHOPS, _ITEMS = 4, 2000
_FIRST_SEED = 1_000_000  # seeds of sample stores are small numbers


def product_texts(seed: int) -> tuple[pa.Array, pa.Array]:
    """Titles, and the texts that SBERT reads of the same items: string (16,000,) each."""
    tables = []
    for shop in range(_SHOPS):
        config = SampleConfig(seed=_FIRST_SEED + seed * _SHOPS + shop, items=_ITEMS)
        tables += [items_table(config, domain, draw_latent_items(config, domain)) for domain in DOMAINS]
    table = pa.concat_tables(tables)
    texts = item_texts(table["title"], table["description"])
    return table["title"].combine_chunks(), texts.combine_chunks()
