"""The report: says what was measured of which models, and no name gets markup into it."""

import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from allmrec.evaluation.report import (
    FIGURES,
    Report,
    baseline_of,
    difference,
    figure,
    full_figures,
    render,
    sampled_figures,
)
from allmrec.metrics import METRICS

HOSTILE = "</title><script>alert('x')</script><img src=x onerror=alert(1)>{{ 7 * 7 }}\"'&"
SYSTEMS = ("random", "teacher", "a-llmrec")


def paired(system: str, baseline: str, number: int) -> dict:
    none = dict.fromkeys(("baseline", "difference", "low", "high"))
    numbers = {"baseline": baseline, "difference": number / 8, "low": number / 8 - 0.5, "high": number / 8 + 0.5}
    return {
        **(none if (system, number) == (baseline, 1) else numbers),
        "tied": 41 if system == "a-llmrec" else 0,
        "by_text": 0.375 if system == "a-llmrec" else None,
    }


def report(name: str = "demo", model: str = "runs/demo/standin_llm", stderr: float | None = 0.01) -> Report:
    metrics = [
        {"system": system, "protocol": protocol, "subset": subset, "metric": metric}
        | {"value": 0.1 + number / 10, "stderr": stderr, "count": 900 if subset == "all" else 300, "seed": 7}
        | paired(system, system if protocol == "swap" else "teacher", number)
        for number, system in enumerate(SYSTEMS)
        for protocol in ("random", "matched", "swap")
        for subset in ("all", "warm")
        for metric in METRICS
    ]
    metrics += [
        {"system": system, "protocol": "full", "subset": "all", "metric": metric}
        | {"value": 0.01 * len(system), "stderr": stderr, "count": 900, "seed": 7}
        | paired(system, "teacher", 0)
        for system in ("random", "teacher")
        for metric in (*METRICS, "recall@20")
    ]
    bundle = {
        "version": "0123456789ab",
        "code": "0.1.0",
        "dependencies": {"torch": "2.13.0"},
        "config": {"teacher": {"model": "sasrec"}},
        "models": {
            "llm": {"name": model, "identity": "e" * 64},
            "text": {"name": "sentence-transformers/x", "identity": "x@main"},
        },
        "stats": {"teacher": {"ndcg@10": 0.4321, "note": name}, "items": {}, "alignment": {"losses": [3.0, 2.5]}},
    }
    costs = {
        "teacher": Counter(cases=900, seconds=0.5),
        "a-llmrec": Counter(cases=900, seconds=30.0, tokens=90_000, padding=10_000, dropped_history=17, cut_titles=3),
    }
    data = {"users": 1000, "items": 200, "interactions": 12_345, "items without a title": 4}
    return Report(name, 7, 0.05, bundle, data, metrics, costs)


class Tags(HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.tags, self.words = Counter(), []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        assert not any(name.startswith("on") for name, _ in attributes)
        for name, value in attributes:
            assert name not in ("src", "href") or value.startswith("data:"), "the page loads nothing"

    def handle_data(self, data):
        self.words.append(data)


def test_it_names_the_models_and_the_numbers():
    text = " ".join(Tags(render(report())).words)
    text = re.sub(r"\s+", " ", text)
    for words in (
        "runs/demo/standin_llm",
        "sentence-transformers/x",
        "12,345",
        "12.35",
        "0.300 ± 0.010",
        "0123456789ab",
    ):
        assert words in text, words
    assert "900 cases" in text and "300 cases" in text
    assert "10.0 %" in text, "padding"
    assert "0.4321" in text and "3 → 2.5" in text, "what training said"
    assert "fewest" not in text, "no table for a subset without cases"


def test_a_protocol_without_cases_is_said_to_be_left_out():
    whole, sentence = report(), "Protocol matched is left out"
    nothing_trains = replace(whole, metrics=[row for row in whole.metrics if row["protocol"] != "matched"])
    text, usual = (" ".join(Tags(render(one)).words) for one in (nothing_trains, whole))
    assert sentence in text and "Protocol: matched" not in text and "Protocol: random" in text
    assert sentence not in usual and "Protocol: matched" in usual


def test_hostile_names_inject_nothing():
    benign, hostile = Tags(render(report())), Tags(render(report(HOSTILE, HOSTILE)))
    assert hostile.tags == benign.tags
    assert HOSTILE in " ".join(hostile.words) and "49" not in "".join(hostile.words)


def test_the_same_evaluation_makes_the_same_page():
    assert render(report()) == render(report())


def test_figures():
    rows = report().metrics
    assert figure(rows, "teacher", "random", "all", "hit@1") == "0.200 ± 0.010"
    assert figure(report(stderr=None).metrics, "teacher", "random", "all", "hit@1") == "0.200"
    assert figure(rows, "teacher", "random", "cold", "hit@1") == "–"


def test_differences_ties_and_text_embeddings_are_shown():
    rows = report().metrics
    assert baseline_of(rows) == "teacher"
    assert difference(rows, "a-llmrec", "random", "all", "hit@1") == "+0.250 [-0.250, 0.750]"
    assert difference(rows, "teacher", "random", "all", "hit@1") == "–", "none to itself"
    assert difference(rows, "teacher", "random", "cold", "hit@1") == "–"
    text = re.sub(r"\s+", " ", " ".join(Tags(render(report())).words))
    random, swap = (text.partition(f"Protocol: {name}")[2].partition("Protocol:")[0] for name in ("random", "swap"))
    assert "difference to teacher [paired 95 % interval]" in random and "+0.250 [-0.250, 0.750]" in random
    assert "difference to itself without the swap" in swap
    assert "41 37.5 %" in random and "target tied" in random and "shown by q_i" in random


def test_learning_curves_are_drawn_and_not_written_out():
    whole = report()
    curve = [{"prompts": 0, "hit@1": 0.05, "ndcg@10": 0.2}, {"prompts": 640, "hit@1": 0.1, "ndcg@10": 0.3}]
    stats = whole.bundle["stats"] | {"projectors": {"steps": 40, "curve": curve}}
    page = render(replace(whole, bundle={**whole.bundle, "stats": stats}))
    tags, usual = Tags(page), Tags(render(whole))
    assert tags.tags["img"] == usual.tags["img"] + 1 == 3 and 'alt="Learning curves"' in page
    text = " ".join(tags.words)
    assert "steps" in text and "640" not in text


def test_answers_have_a_table_of_their_own():
    written = [
        {"system": "a-llmrec", "protocol": "generation", "subset": "all", "metric": metric}
        | {"value": 0.5, "stderr": None, "count": 8, "seed": 7}
        | paired("a-llmrec", "teacher", 2)
        for metric in ("named", "hit@1", "hit@1 substring")
    ]
    page = replace(report(), metrics=[*report().metrics, *written])
    text = re.sub(r"\s+", " ", " ".join(Tags(render(page)).words))
    assert "hit@1 substring" in text.partition("Protocol: generation")[2] and "8 cases" in text
    assert "Protocol: generation" not in " ".join(Tags(render(report())).words)


def test_the_whole_catalogue_has_a_table_of_the_systems_that_can_score_it():
    text = re.sub(r"\s+", " ", " ".join(Tags(render(report())).words))
    table = text.partition("Protocol: full")[2].partition("Cost")[0]
    assert "recall@20" in table and "0.070 ± 0.010" in table and "a-llmrec" not in table
    assert [*full_figures(report().metrics)][:2] == ["ndcg@10", "recall@20"]
    sampled = [row for row in report().metrics if row["protocol"] != "full"]
    assert not full_figures(sampled), "without those systems there is nothing to show"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")
def test_a_browser_draws_the_plots_and_runs_nothing(tmp_path):
    page = render(report(HOSTILE)).replace("</body>", "<script>document.title = 'ran'</script></body>")
    (tmp_path / "report.html").write_text(page)
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, "--dump-dom", str(tmp_path / "report.html")], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.count('<img src="data:image/svg+xml') == 2
    assert "<title>ran</title>" not in done.stdout, "the page's policy forbids scripts"


def test_shuffled_histories_have_a_table_and_columns_of_their_own():
    plain = report()
    assert sampled_figures(plain.metrics) == FIGURES
    more = [
        {"system": system, "protocol": "shuffle", "subset": "all", "metric": metric, "value": 0.7, "stderr": 0.01}
        | {"count": 900, "seed": 7}
        | paired(system, system, 2)
        for system in ("random", "teacher")
        for metric in (*METRICS, *(["cosine"] if system == "teacher" else []))
    ]
    shuffled = replace(plain, metrics=[*plain.metrics, *more])
    assert list(sampled_figures(shuffled.metrics)) == [*FIGURES, "shuffle", "cosine"]
    text = re.sub(r"\s+", " ", " ".join(Tags(render(shuffled)).words))
    assert "difference to itself with the true order" in text and "cosine" in text
    assert "Protocol: shuffle" in text and "Protocol: shuffle" not in " ".join(Tags(render(plain)).words)
    assert baseline_of(more) is None
