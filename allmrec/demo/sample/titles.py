"""Latent items in words: titles, descriptions and categories.

What the words tell is the franchise, the genre, the part and the edition; of an item's hidden cluster they tell
nothing. Vectorised over items by Arrow.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.demo.sample.shop import DOMAINS, NUM_GENRES, Domain, LatentItems, SampleConfig, generator
from schemas import check, items


def _words(text: str) -> list[str]:
    return text.split()


# Each genre's own words: how its franchises are called, what their subtitles are about, and how it feels.
GENRES: dict[str, tuple[list[str], list[str], list[str]]] = {
    name: (_words(kinds), _words(nouns), _words(moods))
    for name, kinds, nouns, moods in [
        ("Fantasy", "Chronicles Saga Realms Legends", "Dragon Wizard Crown Prophecy Runestone", "epic enchanted"),
        ("Science Fiction", "Odyssey Frontier Horizon Colony", "Starship Android Nebula Signal Orbit", "cosmic sleek"),
        ("Horror", "Nightmares Haunting Asylum Whispers", "Ghost Cellar Ritual Scream Coffin", "chilling sinister"),
        ("Mystery", "Mysteries Casefiles Secrets Riddles", "Detective Alibi Manor Cipher Suspect", "clever puzzling"),
        ("Western", "Trails Gunslingers Canyon Outlaws", "Sheriff Bounty Saloon Mustang Showdown", "dusty lawless"),
        ("Romance", "Hearts Letters Promises Serenade", "Wedding Kiss Summer Stranger Waltz", "tender bittersweet"),
        ("War", "Battalion Frontlines Offensive Siege", "Soldier Trench Convoy Medal Ambush", "gritty thunderous"),
        ("Sports", "League Champions Rivals Derby", "Stadium Coach Trophy Underdog Playoff", "rousing sweaty"),
        ("Racing", "Circuit Drift Speedway Throttle", "Engine Turbo Garage Racer Finish", "roaring breakneck"),
        ("Pirates", "Voyages Corsairs Buccaneers Isles", "Treasure Galleon Captain Kraken Lagoon", "salty swaggering"),
        ("Espionage", "Protocol Agents Dossier Conspiracy", "Spy Embassy Defector Passport Mole", "tense shadowy"),
        ("Comedy", "Mishaps Antics Shenanigans Capers", "Landlord Prank Neighbour Holiday Circus", "hilarious silly"),
    ]
}
STEMS = _words("Moon Iron Raven Ember Frost Silver Thorn Storm Ash Willow Copper Night")
TAILS = _words("fall haven crest mere wick gate hollow ford spire brook vale march")
OPENINGS = _words("Lost Crimson Silent Golden Broken Distant Burning Hidden Royal Wild Electric Velvet")
TOUCHES = _words("Last Forgotten Stolen Secret Final Fearless Twisted Midnight")
BRANDS = _words("Halcyon Larkspur Redwood Bluefin Quillon Tamarack Osprey Meridian Kestrel Juniper Basalt Foxglove")
NUMERALS = ["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX"]
EDITIONS: dict[Domain, list[str]] = {
    "movies": ["Deluxe Edition", "Extended Cut", "Remastered", "Collector's Edition"],
    "games": ["Deluxe Edition", "Anniversary Edition", "Remastered", "Ultimate Edition"],
}
KIND: dict[Domain, str] = {"movies": "film", "games": "game"}

assert len(GENRES) == NUM_GENRES


def items_table(config: SampleConfig, domain: Domain, latent: LatentItems) -> pa.Table:
    """The domain's catalogue (schemas.items.INPUT), row i for position i among the latent items."""
    random = generator(config, 5, DOMAINS.index(domain))
    count, genre = len(latent), latent.genre
    kinds, nouns, moods = (list(words) for words in zip(*GENRES.values(), strict=True))
    noun, other_noun, mood = (_of_genre(random, words, genre) for words in (nouns, nouns, moods))
    touch = _take(TOUCHES, random.integers(len(TOUCHES), size=count))
    brand = _take(BRANDS, random.integers(len(BRANDS), size=count)[latent.franchise])

    name = _join(" ", _franchise_names(random, latent), _of_genre(random, kinds, genre, latent.franchise))
    numeral = _only(latent.part > 0, _take(NUMERALS, latent.part))
    branded = random.random(count) < 0.12
    subtitled = (latent.part == 0) | (random.random(count) < 0.4)
    special = ~branded & (random.random(count) < 0.15)
    edition = _take(EDITIONS[domain], random.integers(len(EDITIONS[domain]), size=count))
    head = _join(" ", _only(branded, brand), name, numeral)
    subtitle = _join(" ", _all("The", count), touch, noun)
    title = _join(": ", head, _only(subtitled, subtitle), _only(special, edition))

    genre_name = _take(list(GENRES), genre)
    description = _join(
        "",
        *(pc.if_else(np.isin(mood, ["epic", "enchanted"]), "An ", "A "), mood, " ", pc.utf8_lower(genre_name)),
        *(f" {KIND[domain]} by ", brand, ". ", name, " tells of the ", pc.utf8_lower(touch), " "),
        *(pc.utf8_lower(noun), " and the ", pc.utf8_lower(other_noun), "."),
    )
    department = _all({"movies": "Movies", "games": "Games"}[domain], count)
    flat = np.stack([np.asarray(department), np.asarray(genre_name)], axis=1).ravel()
    categories = pa.ListArray.from_arrays(np.arange(0, 2 * count + 1, 2, dtype=np.int32), pa.array(flat, pa.string()))
    table = pa.table(
        {
            "item_id": item_ids(config, domain),
            "title": title,
            "description": _only(random.random(count) >= 0.04, description),
            "categories": categories,
            "available": pa.array(random.random(count) >= 0.02),
        }
    )
    return check(table, items.INPUT)


def item_ids(config: SampleConfig, domain: Domain) -> pa.Array:
    """Ids that tell nothing of their items: string (N,)."""
    number = generator(config, 6, DOMAINS.index(domain)).permutation(config.items)
    return pa.array(np.char.add(domain[0].upper(), np.char.zfill(number.astype(str), 6)))


def user_ids(config: SampleConfig) -> pa.Array:
    """The same in both domains: string (U,)."""
    return pa.array(np.char.add("U", np.char.zfill(np.arange(config.users).astype(str), 7)))


def _franchise_names(random: np.random.Generator, latent: LatentItems) -> pa.Array:
    """A name for each item's franchise, no two alike while the words last (some 1,900)."""
    plain = len(STEMS) * len(TAILS)
    number = random.permutation(max(2 * plain, latent.franchise[-1] + 1))[latent.franchise]
    opening, compound = np.divmod(number, plain)
    stem, tail = np.divmod(compound, len(TAILS))
    prefix = _only(opening > 0, _take(OPENINGS, (opening - 1 + compound) % len(OPENINGS)))
    return _join(" ", prefix, _join("", _take(STEMS, stem), _take(TAILS, tail)))


def _of_genre(
    random: np.random.Generator, words: list[list[str]], genre: np.ndarray, group: np.ndarray | None = None
) -> pa.Array:
    """One of its genre's words for each item; the same for all items of a group, if there are groups."""
    drawn = random.integers(len(words[0]), size=len(genre))
    return _take(
        [word for of_genre in words for word in of_genre],
        genre * len(words[0]) + (drawn if group is None else drawn[group]),
    )


def _take(words: pa.Array | list[str], index: np.ndarray) -> pa.Array:
    return pa.array(words).take(pa.array(index))


def _only(mask: np.ndarray, words: pa.Array) -> pa.Array:
    return pc.if_else(pa.array(mask), words, pa.scalar(None, pa.string()))


def _all(word: str, count: int) -> pa.Array:
    return pa.array(np.full(count, word))


def _join(separator: str, *parts: pa.Array | str) -> pa.Array:
    """The parts that are not null, joined."""
    return pc.binary_join_element_wise(*parts, separator, null_handling="skip")
