"""Build the stand-ins that come with the package, from generated catalogues and nothing else, and their model cards.

    allmrec standin shipped --folder allmrec/demo/standins

Minutes are not needed: the LLM's weights are written, not trained (docs/standin.md).
"""

from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import torch
from jinja2 import StrictUndefined, Template

import allmrec.demo.encoder
import allmrec.demo.llm
from allmrec.data.catalogue import display_titles
from allmrec.demo.encoder import build_encoder
from allmrec.demo.llm import Standin, StandinLLMConfig, build, examine
from allmrec.demo.sample.shop import SampleConfig, draw_latent_items
from allmrec.demo.sample.texts import product_texts
from allmrec.demo.sample.titles import items_table
from allmrec.llm.prompt import PromptConfig
from jobs.runtime.command import main

WORDINGS = [
    PromptConfig(verb_past=past, verb=verb, noun=noun)
    for past, verb, noun in [
        ("watched", "watch", "movie"),
        ("bought", "buy", "item"),
        ("played", "play", "game"),
        ("read", "read", "book"),
        ("heard", "hear", "album"),
    ]
]
EXAMINED = {  # candidates, and how many of them begin like another
    "20 candidates": (20, 0),
    "20 candidates, ten of them beginning alike": (20, 10),
    "8 candidates": (8, 0),
}


def ship(folder: Path, seed: int) -> None:
    """Write `folder`/llm and `folder`/encoder."""
    titles, texts = product_texts(seed)
    llm = build(pa.concat_arrays([pa.array([""], titles.type), titles]), WORDINGS, StandinLLMConfig(), seed)
    llm.llm.half()
    llm.save(folder / "llm")
    llm.llm.float()
    found = checks(held_out(llm.llm, llm.tokenizer), seed + 1)
    version = torch.__version__.split("+")[0]
    described = card(allmrec.demo.llm, seed=seed, stats=llm.stats, checks=found, torch=version)
    (folder / "llm" / "README.md").write_text(described)
    build_encoder(texts, folder / "encoder", seed)
    (folder / "encoder" / "README.md").write_text(card(allmrec.demo.encoder, seed=seed, texts=len(texts)))


def held_out(llm: Any, tokenizer: Any) -> Standin:
    """The stand-in before the sample store's own catalogue, of whose titles it has read one in a hundred."""
    config = SampleConfig()
    table = items_table(config, "movies", draw_latent_items(config, "movies"))
    titles = display_titles(table["title"]).combine_chunks()
    return Standin.before(pa.concat_arrays([pa.array([""], titles.type), titles]), WORDINGS[0], llm, tokenizer)


def checks(before: Standin, seed: int) -> list[dict[str, Any]]:
    """What `examine` says of each kind of prompts."""
    return [
        {"what": what, **examine(before, seed, prompts=512, num_candidates=candidates, alike=alike)}
        for what, (candidates, alike) in EXAMINED.items()
    ]


def card(owner: ModuleType, **stats: Any) -> str:
    """The model card whose template is beside a module."""
    module = Path(str(owner.__file__))
    template = module.with_name(f"{module.stem}_card.md.jinja")
    return Template(template.read_text(), undefined=StrictUndefined, keep_trailing_newline=True).render(**stats)


if __name__ == "__main__":
    main("standin", "shipped")
