"""The report of a nightly run: recommendations, the difference from the previous run, cost, quality gates.

`summarise` makes plain data (report.json) of sums over shards, `render` one self-contained HTML page of that. All text
is escaped: titles are whatever a shop wrote. Knows no run that is not finished and no store.

Dimensions: I = n + 1 items, K = top_k
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from allmrec.core.errors import QualityGateFailed
from allmrec.core.shard_tasks import Report
from allmrec.data.catalogue import Catalogue
from allmrec.nightly.config import QualityGatesConfig
from allmrec.nightly.filters import ItemFilter
from allmrec.nightly.statistics import ITEMS, OVERLAP_BINS, SCORE_EDGES, SOURCES

FOLDER = "_reports"  # beside the dates' folders; engines ignore prefixes that begin with _
_TOP = 10  # items named in the report
_PHASES = ("retrieve", "rank", "write")
# Gate → the report's value that it bounds, and whether the bound is the least or the most.
_GATES = {
    "min_overlap": ("overlap", "least"),
    "min_coverage": ("coverage", "least"),
    "max_fallback_share": ("popular", "most"),
    "max_users_change": ("users_change", "most"),
    "max_score_drift": ("score_drift", "most"),
    "max_new_items": ("new_items", "most"),
}
_ADVICE = {"max_new_items"}  # a run that fails one of these is published


def summarise(
    total: Report,
    catalogue: Catalogue,
    filter: ItemFilter,
    last_users: int | None,
    gpus_per_worker: float = 0,
    price_per_gpu_hour: float | None = None,
    new_I: np.ndarray | None = None,
    not_in_bundle: int = 0,
) -> dict[str, Any]:
    """The figures of a run, JSON-able. What cannot be known (no previous run, no LLM) is None.

    Args:
        total: of the shards' audits: what they counted, and `statistics` over all of them.
        last_users: rows of the previous run.
        new_I: bool (I,), items that are new since training; by default none.
        not_in_bundle: items that may be recommended and that the bundle does not have.
    """
    sums, counts, users_I = total.sums, total.counts, total.item_counts[ITEMS].astype(np.float64)
    new_I = filter.allowed_I & (np.zeros_like(filter.allowed_I) if new_I is None else new_I)
    users = int(sums["sources"].sum())
    compared = int(sums["overlap"].sum())
    gpu_hours = total.seconds.get("worker", 0) * gpus_per_worker / 3600
    tokens, padding = counts["tokens"], counts["padding"]
    bias = _popularity_bias(users_I, catalogue.popularity, filter.allowed_I)
    most = np.argsort(-users_I, kind="stable")[:_TOP]
    return {
        "users": users,
        "sources": dict(zip(SOURCES, sums["sources"].astype(int).tolist(), strict=True)),
        "scored_by_llm": counts["scored_by_llm"],
        "reused": counts["reused"],
        "vectors_read": counts["vectors_read"],
        "vectors_reused": counts["vectors_reused"],
        "suppressed_users": counts["suppressed_users"],
        "filled_from_teacher": counts["filled_from_teacher"],
        "dropped": dict(sorted(total.dropped.items())),
        "items_left_out": filter.excluded(),
        "popular": float(sums["sources"][SOURCES.index("popular")] / max(users, 1)),
        "lengths": sums["lengths"].astype(int).tolist(),
        "score_edges": SCORE_EDGES.tolist(),
        "first_scores": sums["first_scores"].astype(int).tolist(),
        "last_first_scores": sums["last_first_scores"].astype(int).tolist(),
        "mean_scores": [_ratio(*pair) for pair in zip(sums["rank_scores"], sums["rank_counts"], strict=True)],
        "coverage": float((users_I > 0).sum() / filter.allowed_I.sum()),
        "new_items": float(new_I.sum() / filter.allowed_I.sum()),
        "new_items_eligible": int(new_I.sum()),
        "new_items_recommended": int((users_I[new_I] > 0).sum()),
        "items_not_in_bundle": not_in_bundle,
        **bias,
        "most_recommended": [
            {"item_id": catalogue.item_ids[item].as_py(), "title": catalogue.titles[item].as_py(), "users": int(count)}
            for item, count in zip(most.tolist(), users_I[most], strict=True)
            if count
        ],
        "overlap": _ratio(sums["overlap_sum"][0], compared),
        "overlaps": sums["overlap"].astype(int).tolist(),
        "users_compared": compared,
        "last_users": last_users,
        "users_change": None if last_users is None else abs(users / max(last_users, 1) - 1),
        "score_drift": stability_index(sums["first_scores"], sums["last_first_scores"]),
        "tokens": tokens,
        "padding": _ratio(padding, tokens + padding),
        "dropped_history": counts["dropped_history"],
        "cut_titles": counts["cut_titles"],
        "seconds": {name: float(total.seconds.get(name, 0)) for name in _PHASES},
        "worker_seconds": float(total.seconds.get("worker", 0)),
        "tokens_per_second": _ratio(tokens, total.seconds.get("rank", 0)),
        "gpu_hours": float(gpu_hours),
        "cost": None if price_per_gpu_hour is None else float(gpu_hours * price_per_gpu_hour),
    }


def stability_index(now: np.ndarray, then: np.ndarray) -> float | None:
    """The population stability index of two histograms, sum (p - q) ln(p / q); None where one is empty.

    Each bin has half a case besides its own, so that an empty one does not make it infinite.
    """
    if not now.sum() or not then.sum():
        return None
    p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (now, then))
    return float(((p - q) * np.log(p / q)).sum())


def quality_gates(figures: Mapping[str, Any], config: QualityGatesConfig) -> list[dict[str, Any]]:
    """Every gate with its value and bound, and whether it holds. Without a value there is nothing to hold."""
    found = []
    for name, (figure, kind) in _GATES.items():
        value, bound = figures[figure], getattr(config, name)
        passes = value is None or bound is None or (value >= bound if kind == "least" else value <= bound)
        gate = {"name": name, "figure": figure, "value": value, "bound": bound, "holds": passes}
        found.append({**gate, "blocks": name not in _ADVICE})
    return found


def refuse_failed_gates(found: Sequence[Mapping[str, Any]], report: str) -> None:
    """Raises QualityGateFailed when a gate does not hold.

    Args:
        report: where to look.
    """
    raised = [gate for gate in found if not gate["holds"] and gate["blocks"]]
    if raised:
        told = ", ".join(
            f"{gate['figure']} is {gate['value']:.3g} and nightly.quality_gates.{gate['name']} is {gate['bound']:g}"
            for gate in raised
        )
        off = " ".join(f"--set nightly.quality_gates.{gate['name']}=null" for gate in raised)
        raise QualityGateFailed(
            f"nothing is published: {told}. Look at {report}; if the run is right nevertheless, publish it with {off} "
            "(finished shards are kept)"
        )


def failed_advice(found: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The failed gates that hold no run back."""
    return [gate for gate in found if not gate["holds"] and not gate["blocks"]]


def render(report: Mapping[str, Any], template: str = "report.html.jinja") -> str:
    """The page, of report.json, or another one of the folder's. It loads nothing from elsewhere."""
    environment = Environment(
        loader=PackageLoader("allmrec.nightly", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    plots = _plots(report["figures"]) if "figures" in report else []
    return environment.get_template(template).render(report=report, number=_number, percent=_percent, plots=plots)


def _popularity_bias(counts_I: np.ndarray, popularity_I: np.ndarray, allowed_I: np.ndarray) -> dict[str, Any]:
    """How uneven recommendations are, and whether more than the log: 0.5 would be the mean place of even ones."""
    order = np.flatnonzero(allowed_I)[np.argsort(popularity_I[allowed_I], kind="stable")]
    counts, popularity = counts_I[order], popularity_I[order]
    tenth = max(1, len(order) // 10)
    place = np.arange(len(order)) / max(len(order) - 1, 1)
    ascending = np.sort(counts)
    total = max(counts.sum(), 1)
    weights = 2 * np.arange(1, len(order) + 1) - len(order) - 1
    return {
        "gini": float((weights * ascending).sum() / (len(order) * total)),
        "popularity_place": float((place * counts).sum() / total),
        "top_tenth_recommended": float(counts[-tenth:].sum() / total),
        "top_tenth_logged": float(popularity[-tenth:].sum() / max(popularity.sum(), 1)),
    }


def _plots(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    edges = [f"{edge:g}" for edge in figures["score_edges"]]
    first, last = figures["first_scores"], figures["last_first_scores"]
    used = [place for place in range(len(first)) if first[place] or last[place]] or [0]
    shown = slice(used[0], used[-1] + 1)
    names = [f"< {edges[0]}", *edges][shown]
    scores = {"in this run": first[shown]} | ({"in the previous run": last[shown]} if any(last) else {})
    plots = [("Score of the first item, by users (bins by their lower edge)", _bars(names, scores))]
    ranks = [str(rank) for rank in range(1, len(figures["mean_scores"]) + 1)]
    plots.append(("Mean score by rank", _bars(ranks, {"score": [score or 0 for score in figures["mean_scores"]]})))
    if figures["users_compared"]:
        edges = [f"{place / OVERLAP_BINS:g}" for place in range(OVERLAP_BINS)]
        plots.append(
            ("Jaccard similarity with the previous list, by users", _bars(edges, {"users": figures["overlaps"]}))
        )
    return plots


def _bars(names: Sequence[str], groups: Mapping[str, Sequence[float]]) -> str:
    """Bars, a colour for each group, as a data URI of an SVG image."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "nightly", "font.size": 9, "font.family": "DejaVu Sans"}):
        canvas = Figure(figsize=(7.2, 2.4), layout="constrained")
        axes = canvas.add_subplot()
        width = 0.8 / len(groups)
        for number, (label, heights) in enumerate(groups.items()):
            at = np.arange(len(names)) + (number - (len(groups) - 1) / 2) * width
            axes.bar(at, heights, width, label=label, color=("#4269d0", "#efb118")[number])
        axes.set_xticks(np.arange(len(names)), names)
        if len(groups) > 1:
            axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
        axes.spines[["top", "right"]].set_visible(False)
        image = io.BytesIO()
        canvas.savefig(image, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(image.getvalue()).decode()


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _number(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"
