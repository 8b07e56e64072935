"""Code, config, docs and messages say things one way: names and words that better ones have replaced stay gone."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.config import Config

ROOT = Path(__file__).parents[2]
TREE = ("allmrec", "jobs", "schemas", "benchmarks", "tests", "docs", "cluster")
PAGES = [page for page in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]) if page.name != "CHANGELOG.md"]
FILES = sorted(
    {*PAGES, ROOT / "Makefile"}.union(
        path
        for top in TREE
        for path in (ROOT / top).rglob("*")
        if path.suffix in (".py", ".md", ".yaml", ".jinja") and path != Path(__file__)
    )
)

# Identifiers in Python: the old name, or a pattern of it → the name in its place.
IDENTIFIERS = {
    "pooled": "map_actors",
    "watched": "with_timeout",
    "GaveUp": "JobTimeout",
    "_keep_only": "prune_checkpoints",
    "(.*_)?seal(ed)?(_.*)?": "commit",
    "unseal": "invalidate",
    "holds": "is_intact",
    "describe": "file_entry",
    "made_by": "fingerprint",
    "(.*_)?facts": "stats",
    "outside": "external_inputs",
    "journal": "commit_log",
    "summed": "all_reduce_sum",
    "load_placed_llm": "load_llm_with_placement",
    "run_uri": "workspace_uri",
    "(.*_)?nights?(_.*)?|Night|tonight": "job, prepare_job, run",
    "LastRun": "PreviousRun",
    "NightlyUsers": "EligibleUsers",
    "ShardOfUsers": "UserShard",
    "_?asked(_[A-Z]+)?": "requested",
    "carry_over|carried(_.*)?": "reuse",
    "inspection|Inspect[A-Z].*": "statistics, audit",
    "upkeep": "maintenance",
    "(.*_)?(deals?|dealt)(_.*)?|Deal.*": "partition",
    "exchanged?": "shuffle",
    "Draft": "UpdateHistories",
    "Finish": "BuildSequences",
    "NamesItems": "MentionsItems",
    "LayOut|lay_out": "WriteItemEmbeddings",
    "(.*_)?(forget|forgotten)(_.*)?|Forgotten": "exclusions, excluded_users",
    "(set_)?aside": "rejection, split_rejections",
    "left_out": "filtered_out",
    "absurd(_.*)?": "timestamp_out_of_range",
    "_?stays": "keep_mask",
    "with_enough": "min_count_mask",
    "unrepeated": "deduplicate_mask",
    "repeats": "deduplicate",
    "iterated": "k_core",
    "worth(_[A-Z]+)?": "expected_metrics",
    "gains": "gain_table",
    "(.*_)?places(_[A-Z]+|_in_catalogue)?": "within_row_ranks, catalogue_ranks, positions",
    "_?nearest": "recall_at_1",
    "nearer": "mean_rank_fraction",
    "(.*_)?scorers?(_.*)?|Scorer": "ALLMRec, model",
    "(.*_)?text_form.*": "min_interactions_for_cf",
    "forms|_check_forms": "embedding_counts",
    "Choices|_choices": "ValidationBatch",
    "sharers": "title_multiplicity",
    "stalled_s": "stall_timeout_s",
    "deadline_s": "timeout_s",
    "(.*_)?alarms?(_.*)?": "quality_gates",
    "max_popular": "max_fallback_share",
    "dirt": "corruption",
    "(.*_)?spoil.*": "corrupt_*",
    "Shelf|(.*_)?shelf(_.*)?": "LatentItems",
    "(.*_)?fame(_.*)?": "popularity_weight",
    "choosers?": "decoding_methods",
    "(.*_)?contenders?(_.*)?": "prepare_engines",
    "[Ss]traight(_.*|Stage2)?": "reference",
}

# Names that are ordinary English as well: not for what these files define, nor for what is imported from them.
DEFINITIONS = {
    "jobs/runtime/ray_data.py": {"over": "map_tasks", "tables": "iter_results"},
    "jobs/runtime/ray_train.py": {"_prepared": "with_threads"},
    "allmrec/core/distributed.py": {
        "place": "rank_and_world_size",
        "own": "local_shard",
        "most": "all_reduce_max",
        "least": "all_reduce_min",
    },
    "allmrec/projection/engine.py": {"whole": "gathered"},
    "allmrec/nightly/candidates.py": {"given": "external_candidates"},
    "allmrec/nightly/statistics.py": {"measure": "statistics"},
    "allmrec/evaluation/answers.py": {"measure": "evaluate"},
    "allmrec/metrics.py": {"measure": "evaluate_scores"},
}

MODULES = [
    "jobs/datasets.py",
    "jobs/workers.py",
    "allmrec/core/journal.py",
    "allmrec/core/models.py",
    "allmrec/core/checkpoints.py",
    "allmrec/nightly/carry_over.py",
    "allmrec/nightly/inspection.py",
    "allmrec/nightly/upkeep.py",
    "benchmarks/choosers.py",
    "benchmarks/contenders.py",
    "benchmarks/nights.py",
]

KEYS = {"repeats", "core", "forgotten_users", "text_form_below", "stalled_s", "deadline_s", "alarms", "max_popular"}

# Words of text, comments and messages: the pattern, and what is said in its place.
WORDS = {
    r"\bdeal(s|t)?\b": "partition",
    r"\bjournals?\b": "log",
    r"(?<!Last )\bforg[eo]t\w*": "excluded",
    r"\baside\b": "rejected",
    r"\btext form": "text embedding",
    r"\btonight|\blast night": "this run, the previous run",
    r"\bcarr(y|ied|ies)[ -]over\b": "reuse",
    r"\blook(s|ed|ing)? after\b": "manage",
    r"\bg[ai]ve(s|n)? up\b": "time out, end",
    r"\bg(o|oes) on\b|\bwent on\b": "resume, continue",
    r"\b(nobody|whom|somebody|whoever|anew)\b": "no user, which, who, again",
    r"\b(lies?|stands?|stood)\b(?!-)(?! for\b)": "is, are",
    r"\bso many\b": "up to N, about N",
    r"\balready there\b|\b(is|are) there (already|before)\b|\bthat (is|are) there\b": "already exists, existing",
    r"\bno longer\b": "say what is, not what was",
    r"\bstraight\b": "reference implementation",
    r"\bscorers?\b": "model, system",
    r"\bcontenders?\b": "implementation, engine",
    r"\b(shelf|spoils?|dirt|fame)\b": "latent items, corrupt, popularity",
    r"\babsurd\b": "out of range",
    r"\balarms?\b": "quality gate",
    r"\brun: \"?Storage": "workspace, storage",
}


def names(path: Path) -> Iterator[str]:
    """Every identifier of a Python file, those in f-strings too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, (ast.arg, ast.keyword)):
            yield node.arg or ""
        elif isinstance(node, ast.alias):
            yield from (node.name.split(".")[-1], node.asname or "")


def definitions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def test_renamed_identifiers_are_gone() -> None:
    old = {re.compile(pattern): new for pattern, new in IDENTIFIERS.items()}
    found = {
        f"{path.relative_to(ROOT)}: {name}; say {new}"
        for path in FILES
        if path.suffix == ".py"
        for name in set(names(path))
        for pattern, new in old.items()
        if pattern.fullmatch(name)
    }
    assert not found


@pytest.mark.parametrize("file", DEFINITIONS)
def test_renamed_definitions_are_gone(file: str) -> None:
    assert not definitions(ROOT / file) & DEFINITIONS[file].keys()


def test_renamed_modules_and_keys_are_gone() -> None:
    assert not [module for module in MODULES if (ROOT / module).exists()]
    assert not set(re.findall(r"'(\w+)':", str(Config(name="any").model_dump()))) & KEYS


@pytest.mark.parametrize(("pattern", "word"), WORDS.items(), ids=WORDS)
def test_texts_use_the_words_of_the_code(pattern: str, word: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match.group()!r}; say {word}"
        for path in FILES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for match in re.finditer(pattern, line, re.IGNORECASE)
    ]
    assert not found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_on_pages_exist(page: Path) -> None:
    """In backticks: files and folders of the tree, and modules that are run."""
    text = page.read_text()
    paths = re.findall(r"`((?:allmrec|jobs|schemas|benchmarks|tests|cluster|docs|\.ci)/[\w./-]*)`", text)
    paths += [
        name.replace(".", "/") + ".py" for name in re.findall(r"-m ((?:benchmarks|jobs|tests)\.[a-z_.]+[a-z])", text)
    ]
    assert not [path for path in paths if "NAME" not in path and not (ROOT / path).exists()]
