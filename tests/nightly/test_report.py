"""The report: figures of known sums, quality_gates, and a page in which hostile titles are text."""

import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from allmrec.core.shard_tasks import Report
from allmrec.data.catalogue import Catalogue
from allmrec.nightly.config import QualityGatesConfig
from allmrec.nightly.filters import ItemFilter
from allmrec.nightly.report import quality_gates, refuse_failed_gates, render, stability_index, summarise
from allmrec.nightly.statistics import statistics
from schemas.recommendations import SCHEMA

HOSTILE = "</td><script>document.title = 'owned'</script>{{ 7 * 7 }} \"quoted\" <img src=x onerror=alert(1)>"
IDS = ["", "a", "b", "c", "d", "e"]


def rows(lists: dict[str, str], source: str = "llm", scores: tuple[float, ...] = (0.6, 0.3, 0.1)) -> pa.Table:
    """A list of one-letter items a user."""
    table = [
        {
            "run_date": 0,
            "user_id": user,
            "items": [{"item_id": item, "rank": n + 1, "score": scores[n]} for n, item in enumerate(items)],
            "source": source,
            "bundle": "v1",
            "run_id": "r",
        }
        for user, items in lists.items()
    ]
    columns = {name: [row[name] for row in table] for name in SCHEMA.names}
    return pa.table([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)


@pytest.fixture
def catalogue() -> Catalogue:
    titles = pa.array(["", HOSTILE, *IDS[2:]])
    return Catalogue(
        words=pa.table({"title": titles[1:]}),
        item_ids=pa.array(IDS),
        titles=titles,
        text_hashes=titles,
        popularity=np.array([0, 50, 30, 10, 5, 5]),
        available=np.arange(6) > 0,
        drawable=np.arange(1, 6),
    )


@pytest.fixture
def figures(catalogue: Catalogue) -> dict[str, Any]:
    current = pa.concat_tables([rows({"u": "abc", "v": "ab"}), rows({"new": "a"}, "popular", (50.0,))])
    last = rows({"u": "abd", "v": "ab", "left": "e"})
    total = Report(
        counts=Counter(tokens=900, padding=100, dropped_history=7),
        dropped=Counter(seen=4),
        seconds={"rank": 3.0, "worker": 7200.0},
    )
    for part in (current.slice(0, 1), current.slice(1)):  # two shards
        total.add(statistics(part, last, catalogue.item_ids, 3))
    verdicts = ItemFilter(np.array([1, 0, 0, 0, 0, 3], dtype=np.int8))
    return summarise(total, catalogue, verdicts, 2, gpus_per_worker=0.5, price_per_gpu_hour=3.0)


def test_figures(figures: dict[str, Any]) -> None:
    assert figures["users"] == 3 and figures["sources"] == {"llm": 2, "teacher": 0, "popular": 1}
    assert figures["lengths"] == [0, 1, 1, 1] and figures["mean_scores"] == pytest.approx([0.6, 0.3, 0.1])
    assert figures["coverage"] == 3 / 4 and figures["items_left_out"]["blocked"] == 1
    assert figures["overlap"] == (2 / 4 + 2 / 2) / 2 and figures["users_compared"] == 2
    assert figures["users_change"] == 0.5 and figures["popular"] == 1 / 3
    assert figures["gpu_hours"] == 1 and figures["cost"] == 3 and figures["padding"] == 0.1
    assert figures["tokens_per_second"] == 300 and figures["dropped"] == {"seen": 4}
    assert figures["top_tenth_recommended"] == 3 / 6, "item a has half of the recommendations"


def test_a_shard_without_users_adds_nothing(catalogue: Catalogue) -> None:
    found = statistics(SCHEMA.empty_table(), SCHEMA.empty_table(), catalogue.item_ids, 3)
    assert not any(values.any() for values in (*found.sums.values(), *found.item_counts.values()))


def test_the_stability_index_grows_with_the_shift() -> None:
    base = np.array([100.0, 200, 100])
    shifts = [stability_index(np.roll(base, by) * [1, 1, 1], base) for by in (0, 1)]
    assert shifts[0] == 0 and shifts[1] is not None and shifts[1] > 0.25
    assert stability_index(base, np.zeros(3)) is None


def test_gates_name_value_bound_and_the_way_out(figures: dict[str, Any]) -> None:
    found = quality_gates(figures, QualityGatesConfig(min_overlap=0.8, max_users_change=0.5))
    assert [gate["name"] for gate in found if not gate["holds"]] == ["min_overlap"]
    with pytest.raises(
        ValueError, match=r"overlap is 0\.75 and nightly.quality_gates.min_overlap is 0\.8.*r\.html.*=null"
    ):
        refuse_failed_gates(found, "r.html")
    refuse_failed_gates(
        quality_gates({**figures, "overlap": None}, QualityGatesConfig(min_overlap=0.8)), "the first run has no other"
    )


def page(figures: dict[str, Any]) -> str:
    made_of = {"run_date": "2026-11-21", "run_id": "r1", "bundle": "v1", "weight": 0.4, "code": "1", "llm": HOSTILE}
    found = quality_gates(figures, QualityGatesConfig(min_overlap=0.8, min_coverage=0.5))
    return render(
        {
            **made_of,
            "sampled_users": 20,
            "ranker": "blend",
            "retriever": "teacher",
            "last": None,
            "quality_gates": found,
            "lists": [],
            "figures": figures,
        }
    )


def test_titles_are_text(figures: dict[str, Any]) -> None:
    html = page(figures)
    assert "<script" not in html and "<img src=x" not in html and "{{ 7 * 7 }}" in html and "raised" in html


def test_a_browser_shows_it(figures: dict[str, Any], tmp_path: Path) -> None:
    browser = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    if not browser:
        pytest.skip("no browser is installed: apt-get install chromium")
    path = tmp_path / "report.html"
    path.write_text(page(figures))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    shown = subprocess.run([*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120)
    assert "<title>Recommendations of 2026-11-21</title>" in shown.stdout, shown.stderr
    assert "<script" not in shown.stdout and "onerror=alert" in shown.stdout, "text, and no element"
    assert shown.stdout.count("<img") == 3, "the plots and nothing else"
