"""The published layouts, in small: each shipped config reads files as its publisher writes them, oddities and all."""

import gzip
import json
from pathlib import Path

import pytest

from allmrec.core.storage import open_storage
from allmrec.data.prepare.clean import Cleaned, CleanInteractions, log_columns
from allmrec.data.prepare.item_ids import ItemIds, ItemLookup
from allmrec.data.prepare.items import ITEMS
from allmrec.data.sources.source import open_source
from jobs.config import load_config
from schemas import rejected
from tests.data.catalogues import cleaned_rows, index_items

CONFIGS = Path(__file__).parent.parent.parent / "jobs" / "configs"
BEAUTY_2014 = [
    '{"reviewerID": "A1", "asin": "0205616461", "reviewerName": "\\"J\\" & co", "helpful": [2, 3], "reviewText": "T", '
    '"overall": 5.0, "summary": "ok", "unixReviewTime": 1369699200, "reviewTime": "05 28, 2013"}',
    '{"reviewerID": "A2", "asin": "B00004U9V2", "helpful": [0, 0], "overall": 2.0, "unixReviewTime": 1355443200}',
    '{"reviewerID": "A2", "asin": "NOWHERE", "helpful": [0, 0], "overall": 2.0, "unixReviewTime": 1355443200}',
]
META_2014 = [
    "{'asin': '0205616461', 'description': \"As we age, our once 'youthful' skin\", 'title': 'Bio-Active &amp; Serum', "
    "'imUrl': 'http://x/1.jpg', 'salesRank': {'Health & Personal Care': 461765}, "
    "'categories': [['Beauty', 'Skin Care', 'Face'], ['Beauty']]}",
    "{'asin': 'B00004U9V2', 'price': 12.5, 'title': 'Caf\\xe9 \\u2122', 'related': {'also_bought': ['B1']}, "
    "'categories': [['Beauty']]}",
    "{'asin': 'B00000UNTI', 'categories': [['Beauty']], 'brand': ''}",
    "{'asin': 'B0000BROKEN', 'title': 'cut o",
]
GAMES_2018 = [
    '{"overall": 5.0, "verified": true, "reviewTime": "10 17, 2015", "reviewerID": "A1", "asin": "0700026657", '
    '"style": {"Format:": " DVD"}, "vote": "3", "reviewText": "fun", "unixReviewTime": 1445040000}',
    '{"overall": 5.0, "verified": true, "reviewTime": "10 17, 2015", "reviewerID": "A1", "asin": "0700026657", '
    '"style": {"Format:": " DVD"}, "vote": "3", "reviewText": "fun", "unixReviewTime": 1445040000}',
    '{"overall": 4.0, "reviewerID": "A2", "asin": "0700026658", "image": ["http://x"], "unixReviewTime": 1437955200}',
]
META_2018 = [
    '{"category": ["Video Games", "PC", "</span></span></span>"], "tech1": "", "description": ["A <b>game</b>.", '
    '"&nbsp;", "Play &amp; win."], "title": "Anno 2070 &quot;Deep Ocean&quot;", "rank": [">#1 in Games"], "asin": '
    '"0700026657", "price": "", "imageURL": [], "date": "", "details": {"Weight:": "1"}}',
    '{"category": [], "description": [], "title": "\\n\\nvar aPageStart = (new Date()).getTime();\\nvar ue_t0=1;'
    '.a-box{color:#fff}", "asin": "0700026658", "similar_item": "<table><tr></tr></table>"}',
    '{"category": ["Video Games"], "description": "one text", "title": "", "asin": "0700026659"}',
    '{"category": ["Video Games"], "description": ["again"], "title": "Anno 2070", "asin": "0700026657"}',
]
CARDS_2023 = [
    '{"rating": 5.0, "title": "Great gift", "text": "ok", "images": [], "asin": "B00IX1I3G6", "parent_asin": '
    '"B00IX1I3G6", "user_id": "AHZ6", "timestamp": 1549866158332, "helpful_vote": 0, "verified_purchase": true}',
    '{"rating": 1.0, "title": "Bad", "text": "", "images": [{"small_image_url": "x"}], "asin": "VARIANT", '
    '"parent_asin": "B005ISQ7JC", "user_id": "AFZU", "timestamp": 1599113692752, "helpful_vote": 3}',
]
META_2023 = [
    '{"main_category": "Gift Cards", "title": "Gift Card &#8211; Print", "average_rating": 4.9, "features": ["f"], '
    '"description": ["First.", "Second."], "price": null, "images": [], "store": "Amazon", "categories": '
    '["Gift Cards", "Gift Card Categories"], "details": {"Brand": "A"}, "parent_asin": "B00IX1I3G6"}',
    '{"main_category": null, "title": null, "description": [], "price": "from 5", "categories": [], '
    '"parent_asin": "B005ISQ7JC", "bought_together": null}',
]
ML_1M = ["1::1193::5::978300760", "1::661::3::978302109", "2::1193::9"]
ML_1M_MOVIES = [
    "661::James & the \"Giant' Peach (1996)::Animation|Children's",
    "1193::Misérables: I (1995)::Drama",
]
ML_20M = ["userId,movieId,rating,timestamp", "1,2,3.5,1112486027", "1,29,4.0,1112484676", '1,"2,3.5,1112486027']
ML_20M_MOVIES = [
    "movieId,title,genres",
    '2,"American President, The (1995)",Comedy|Drama|Romance',
    '29,"City ""of"" Lost Children, Thé (1995)",(no genres listed)',
]
LAYOUTS = {  # config: log, catalogue; encoding, end of lines
    "amazon-2014": (BEAUTY_2014, META_2014, "utf-8", "\n"),
    "amazon-2018": (GAMES_2018, META_2018, "utf-8", "\n"),
    "gift-cards": (GAMES_2018, META_2018, "utf-8", "\n"),
    "amazon-2023": (CARDS_2023, META_2023, "utf-8", "\n"),
    "movielens-1m": (ML_1M, ML_1M_MOVIES, "latin-1", "\n"),
    "movielens-20m": (ML_20M, ML_20M_MOVIES, "utf-8", "\r\n"),
    "movielens-25m": (ML_20M, ML_20M_MOVIES, "utf-8", "\r\n"),
}


def read(name):
    """The prepared items, the good events, and the reasons of what was rejected, in order."""
    config = load_config(CONFIGS / f"{name}.yaml")
    log, catalogue, encoding, newline = LAYOUTS[name]
    for source, lines in (config.data.interactions, log), (config.data.items, catalogue):
        path = Path(source.paths[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        data = "".join(f"{line}{newline}" for line in lines).encode(encoding)
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    shop = open_source("items", config.data.items, config.storage, ITEMS)
    items, bad_items = index_items(cleaned_rows(shop))
    source = open_source("interactions", config.data.interactions, config.storage, log_columns(config.data))
    item_ids = ItemIds.write(open_storage("ids"), ItemLookup.of(items.column("item_id").combine_chunks()))
    clean = CleanInteractions(source, config.data, item_ids)
    cleaned = Cleaned.concat(table for piece in range(len(source.pieces)) for table in clean.read(piece))
    ids = ["", *items.column("item_id").to_pylist()]
    events = [
        (row["user_id"], ids[row["item_index"]], row["timestamp"] // 1_000_000) for row in cleaned.events.to_pylist()
    ]
    catalogue = {row["item_id"]: (row["title"], row["description"], row["categories"]) for row in items.to_pylist()}
    return catalogue, events, bad_items.column("reason").to_pylist(), cleaned.rejections.column("reason").to_pylist()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_amazon_2014():
    catalogue, events, bad_items, bad = read("amazon-2014")
    assert catalogue == {
        "0205616461": (
            "Bio-Active & Serum",
            "As we age, our once 'youthful' skin",
            ["Beauty", "Skin Care", "Face"],
        ),
        "B00004U9V2": ("Café ™", None, ["Beauty"]),
        "B00000UNTI": (None, None, ["Beauty"]),
    }
    assert events == [("A1", "0205616461", 1369699200), ("A2", "B00004U9V2", 1355443200)]
    assert (bad_items, bad) == ([rejected.MALFORMED], [rejected.UNKNOWN_ITEM])


@pytest.mark.parametrize("name", ["amazon-2018", "gift-cards"])
def test_amazon_2018(name):
    catalogue, events, bad_items, bad = read(name)
    assert catalogue == {
        "0700026657": ('Anno 2070 "Deep Ocean"', "A game . Play & win.", ["Video Games", "PC"]),
        "0700026658": (None, None, []),
        "0700026659": (None, "one text", ["Video Games"]),
    }
    assert events == [("A1", "0700026657", 1445040000)] * 2 + [("A2", "0700026658", 1437955200)]
    assert (bad_items, bad) == ([rejected.DUPLICATE_ITEM], [])


def test_amazon_2023():
    catalogue, events, bad_items, bad = read("amazon-2023")
    assert catalogue == {
        "B00IX1I3G6": ("Gift Card – Print", "First. Second.", ["Gift Cards", "Gift Card Categories"]),
        "B005ISQ7JC": (None, None, []),
    }
    assert events == [("AHZ6", "B00IX1I3G6", 1549866158), ("AFZU", "B005ISQ7JC", 1599113692)]
    assert (bad_items, bad) == ([], [])


def test_movielens_1m():
    catalogue, events, bad_items, bad = read("movielens-1m")
    assert catalogue == {
        "661": ("James & the \"Giant' Peach (1996)", None, ["Animation", "Children's"]),
        "1193": ("Misérables: I (1995)", None, ["Drama"]),
    }
    assert events == [("1", "1193", 978300760), ("1", "661", 978302109)]
    assert (bad_items, bad) == ([], [rejected.MALFORMED])


@pytest.mark.parametrize("name", ["movielens-20m", "movielens-25m"])
def test_movielens_20m_and_25m(name):
    catalogue, events, bad_items, bad = read(name)
    assert catalogue == {
        "2": ("American President, The (1995)", None, ["Comedy", "Drama", "Romance"]),
        "29": ('City "of" Lost Children, Thé (1995)', None, ["(no genres listed)"]),
    }
    assert events == [("1", "2", 1112486027), ("1", "29", 1112484676)]
    assert (bad_items, bad) == ([], [rejected.MALFORMED])


def test_the_samples_are_what_they_say():
    for lines in (BEAUTY_2014, GAMES_2018, META_2018, CARDS_2023, META_2023):
        assert all(isinstance(json.loads(line), dict) for line in lines)
    with pytest.raises(json.JSONDecodeError):
        json.loads(META_2014[0])
