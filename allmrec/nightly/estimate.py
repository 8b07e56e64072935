"""What a run will cost, told from a sample of prompts and from what the previous run took."""

import json
from datetime import date, timedelta
from typing import Any

import numpy as np

from allmrec.core.artifacts import MANIFEST, read_manifest
from allmrec.core.storage import Storage
from allmrec.data.catalogue import Catalogue
from allmrec.data.sequences import Sequences, num_shards
from allmrec.llm.loading import LLMConfig, load_tokenizer
from allmrec.llm.prompt import PromptBuilder, PromptConfig, Titles
from allmrec.nightly.candidates import most_popular
from allmrec.nightly.configured_tables import USERS
from allmrec.nightly.inputs import NightlyInputs
from allmrec.nightly.lists import check_lists
from allmrec.nightly.report import FOLDER
from allmrec.nightly.users import EligibleUsers
from allmrec.readout.prompts import ReadoutPrompts

_SAMPLE = 512  # prompts
_LOOK_BACK = 30  # days
_UNCUT = 1 << 20  # tokens: longer than any prompt, so that none is shortened to the LLM's positions


def estimate(
    inputs: NightlyInputs, output: Storage, run_date: date, limit: int | None, gpus_per_worker: float
) -> dict[str, Any]:
    """What a run would do at most: users, prompts, shards, tokens and what those cost. Touches nothing.

    Raises:
        ValueError: bundle, LLM and items do not fit together, or too little of a list of items is known.
    """
    description, workspace, config = inputs.check(), inputs.workspace, inputs.config
    lists = inputs.item_sources.summary().lists
    check_lists(lists)
    listed = workspace.sequences
    if USERS.is_configured(config) and workspace.nightly_users.exists(MANIFEST):
        listed = workspace.nightly_users
    rows = read_manifest(listed).rows
    count = min(rows, limit or rows)
    known = {count.name: f"{count.known:,} of {count.listed:,} known" for count in lists}
    shards = num_shards(workspace.sequences)
    stats: dict[str, Any] = {"users": count, "shards": shards, "prompts": 0, "output": output.uri, **known}
    if not config.uses_llm:
        return stats
    prompt = PromptConfig(**description["config"]["prompt"])
    sample = EligibleUsers(workspace.sequences, run_date, timezone=config.timezone).read(0).users
    catalogue = Catalogue.read(workspace.items)
    shown: list[int | None] = [None] if config.uses_llm_srec else []  # LLM-SRec's prompts list no candidates
    shown += [config.num_candidates] if config.ranker != "teacher" and not config.ranks_by_llm_srec else []
    soft = config.ranker != "tallrec"
    tokens = count * sum(tokens_of_a_prompt(sample, catalogue, inputs.llm, prompt, number, soft) for number in shown)
    costs = cost_of(tokens, last_speed(output, run_date), gpus_per_worker, config.price_per_gpu_hour)
    return {**stats, "prompts": count * len(shown), "tokens": round(tokens), **costs}


def tokens_of_a_prompt(
    users: Sequences,
    catalogue: Catalogue,
    llm: LLMConfig,
    prompt: PromptConfig,
    num_candidates: int | None,
    soft: bool = True,
) -> float:
    """The mean over some users, with popular items for candidates; the trie adds a few. Takes the tokenizer alone.

    Args:
        num_candidates: None for LLM-SRec's prompts, which list none.
        soft: with slots; or else of text alone.
    """
    tokenizer = load_tokenizer(llm)
    titles = Titles.tokenise(catalogue.titles, tokenizer, prompt.max_title_tokens)
    some = users.take(np.arange(min(len(users), _SAMPLE)))
    if num_candidates is None and len(some):
        return float(ReadoutPrompts(prompt, tokenizer, titles, _UNCUT).of_users(some).lengths.mean()) + 1
    builder = PromptBuilder(prompt, tokenizer, titles, soft, _UNCUT)
    popular = most_popular(catalogue.popularity, catalogue.available, num_candidates or 0)
    return float(builder.build(some, np.tile(popular, (len(some), 1))).lengths.mean()) if len(some) else 0.0


def last_speed(output: Storage, run_date: date) -> float | None:
    """Tokens per second of a worker in the newest run of the month before that asked the LLM; None without one."""
    for days in range(1, _LOOK_BACK + 1):
        key = f"{FOLDER}/run_date={run_date - timedelta(days)}/report.json"
        report = json.loads(output.read(key)) if output.exists(key) else None
        if report and report["figures"]["tokens_per_second"]:
            return report["figures"]["tokens_per_second"]
    return None


def cost_of(
    tokens: float, tokens_per_second: float | None, gpus_per_worker: float, price_per_gpu_hour: float | None
) -> dict[str, Any]:
    """Worker hours, GPU hours and money."""
    if tokens_per_second is None:
        return {"worker hours": "unknown until a run has shown its speed"}
    hours = tokens / tokens_per_second / 3600
    stats: dict[str, Any] = {"worker hours": round(hours, 3), "GPU hours": round(hours * gpus_per_worker, 3)}
    if price_per_gpu_hour is not None:
        stats["cost"] = round(hours * gpus_per_worker * price_per_gpu_hour, 2)
    return stats
