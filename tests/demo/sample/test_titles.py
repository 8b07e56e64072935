"""Titles read like a shop's, show franchise and genre, and never the hidden cluster."""

import dataclasses

import numpy as np

from allmrec.demo.sample.shop import SampleConfig, draw_latent_items
from allmrec.demo.sample.titles import GENRES, item_ids, items_table, user_ids

CONFIG = SampleConfig(users=10, items=900)
LATENT = draw_latent_items(CONFIG, "games")
TABLE = items_table(CONFIG, "games", LATENT)


def test_titles_have_three_to_nine_words_and_are_mostly_unique():
    titles = TABLE.column("title").to_pylist()
    words = np.array([len(title.split()) for title in titles])
    assert words.min() >= 3
    assert words.max() <= 9
    assert len(set(titles)) > 0.95 * len(titles)


def test_parts_of_a_franchise_share_its_name():
    titles = TABLE.column("title").to_pylist()
    second = np.flatnonzero(LATENT.part == 1)
    for at in second:
        shared = set(titles[at].replace(":", "").split()) & set(titles[at - 1].replace(":", "").split())
        assert len(shared) >= 2
        assert " II" in titles[at]


def test_every_description_tells_the_genre():
    names = [name.lower() for name in GENRES]
    for genre, description in zip(LATENT.genre, TABLE.column("description").to_pylist(), strict=True):
        assert description is None or names[genre] in description


def test_the_hidden_cluster_changes_no_word():
    other = dataclasses.replace(LATENT, cluster=LATENT.cluster[::-1].copy())
    assert items_table(CONFIG, "games", other).equals(TABLE)


def test_ids_are_unique_and_users_are_shared():
    assert len(set(item_ids(CONFIG, "games").to_pylist())) == 900
    assert len(user_ids(CONFIG).unique()) == 10
    assert not set(item_ids(CONFIG, "games").to_pylist()) & set(item_ids(CONFIG, "movies").to_pylist())
