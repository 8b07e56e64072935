"""The evaluation as one self-contained HTML page: models, data, metrics with errors and differences, plots, costs.

Knows metrics rows and manifests' stats, as plain data; draws and words them. All text is escaped: names of models and
runs are free text.
"""

import base64
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

# Column of the summary → protocol, subset, metric.
FIGURES = {
    "hit@1": ("random", "all", "hit@1"),
    "matched": ("matched", "all", "hit@1"),
    "swap": ("swap", "all", "hit@1"),
    "ndcg@10": ("random", "all", "ndcg@10"),
    "warm hit@1": ("random", "warm", "hit@1"),
    "cold hit@1": ("random", "cold", "hit@1"),
}
WRITTEN_FIGURES = {
    "named": ("generation", "all", "named"),
    "hit@1": ("generation", "all", "hit@1"),
    "hit@1 substring": ("generation", "all", "hit@1 substring"),
}
CANDIDATES = {
    "random": "Random negatives, as in the paper. They reward popularity.",
    "matched": "Negatives about as popular as the target, drawn as held-out items are: what is left when popularity "
    "tells nothing. Targets that too few others are as popular as are left out.",
    "swap": "Random negatives, but every user has another user's representation and history. "
    "A system that is personal loses by it.",
    "shuffle": "Random negatives, but every history is in a drawn order. What a system loses by it, it knew from the "
    "order. Cosine: of the user's vectors by both orders, for systems that have one.",
}
PROTOCOLS = CANDIDATES | {
    "full": "All items of the filtered data that the history has not, for systems that can score them all. Recall@N is "
    "how often the target is among as many items as the nightly run retrieves: the most that a ranker of these can "
    "reach.",
    "generation": "Random negatives, and the LLM writes freely instead of ranking, for a sample of the users. Named: "
    "the answer is the title of a candidate. Hit@1: it is the target's title and nothing else. Substring: the target's "
    "title appears anywhere in it.",
}
# Protocols in which a system is compared with itself: the words for what that has.
ITSELF = {"swap": "itself without the swap", "shuffle": "itself with the true order"}
SUBSETS = {
    "all": "all targets",
    "warm": "targets among the 35 % of items with the most interactions",
    "cold": "targets among the 35 % with the fewest",
}
_COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0")


@dataclass(frozen=True)
class Report:
    """What the page says."""

    name: str  # of the run
    seed: int
    chance: float  # hit@1 of a coin
    bundle: Mapping[str, Any]  # `bundle.json`
    data: Mapping[str, int]  # users, items, interactions, ... (paper Table 2)
    metrics: Sequence[Mapping[str, Any]]  # rows of metrics.json
    costs: Mapping[str, Counter[str]]  # by system
    caveats: Sequence[str] = ()  # why its figures mean less than they seem to


def render(report: Report) -> str:
    """The page. It loads nothing from elsewhere."""
    environment = Environment(
        loader=PackageLoader("allmrec.evaluation", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    systems = {protocol: distinct(report.metrics, "system", protocol) for protocol in PROTOCOLS}
    return environment.get_template("report.html.jinja").render(
        report=report,
        systems=systems,
        metrics={protocol: distinct(report.metrics, "metric", protocol) for protocol in PROTOCOLS},
        protocols=PROTOCOLS,
        subsets=SUBSETS,
        cell=lambda *key: figure(report.metrics, *key),
        difference=lambda *key: difference(report.metrics, *key),
        baseline=baseline_of(report.metrics),
        itself=ITSELF,
        tied=lambda *key: (_row(report.metrics, *key) or {}).get("tied"),
        by_text=lambda *key: (_row(report.metrics, *key) or {}).get("by_text"),
        count=lambda protocol, subset: _count(report.metrics, protocol, subset),
        plots=[
            (
                "Hit@1 by protocol",
                _bars(
                    report, systems["random"], [(name, (name, "all", "hit@1")) for name in CANDIDATES if systems[name]]
                ),
            ),
            (
                "Hit@1 of warm and cold items, random negatives",
                _bars(report, systems["random"], [(subset, ("random", subset, "hit@1")) for subset in SUBSETS]),
            ),
        ],
        curves=_curves(report),
        training={
            part: {name: _number(value) for name, value in stats.items() if value is not None and name != "curve"}
            for part, stats in report.bundle["stats"].items()
        },
        number=_number,
    )


def sampled_figures(metrics: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, str, str]]:
    """FIGURES, and those of shuffled histories where there are any."""
    if not distinct(metrics, "system", "shuffle"):
        return FIGURES
    return FIGURES | {"shuffle": ("shuffle", "all", "hit@1"), "cosine": ("shuffle", "all", "cosine")}


def full_figures(metrics: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, str, str]]:
    """As FIGURES, of protocol "full"; empty where no system was placed in the catalogue."""
    shown = [name for name in distinct(metrics, "metric", "full") if name == "ndcg@10" or name.startswith("recall@")]
    return {f"{subset} {name}".removeprefix("all "): ("full", subset, name) for subset in SUBSETS for name in shown}


def figure(metrics: Sequence[Mapping[str, Any]], system: str, protocol: str, subset: str, metric: str) -> str:
    """A figure and its standard error, `0.312 ± 0.014`; a dash where there were no cases."""
    row = _row(metrics, system, protocol, subset, metric)
    if row is None:
        return "–"
    return f"{row['value']:.3f}" + (f" ± {row['stderr']:.3f}" if row["stderr"] is not None else "")


def difference(metrics: Sequence[Mapping[str, Any]], system: str, protocol: str, subset: str, metric: str) -> str:
    """To the row's baseline, with its paired 95 % interval, `+0.031 [0.012, 0.050]`; a dash where there is none."""
    row = _row(metrics, system, protocol, subset, metric)
    if row is None or row["difference"] is None:
        return "–"
    return f"{row['difference']:+.3f}" + (f" [{row['low']:.3f}, {row['high']:.3f}]" if row["low"] is not None else "")


def baseline_of(metrics: Sequence[Mapping[str, Any]]) -> str | None:
    """The system that the others are compared with (but for the protocols of ITSELF); None where there is none."""
    return next((row["baseline"] for row in metrics if row["protocol"] not in ITSELF and row["baseline"]), None)


def distinct(metrics: Sequence[Mapping[str, Any]], column: str, protocol: str) -> list[str]:
    """A protocol's systems or metrics, in their order."""
    return list(dict.fromkeys(row[column] for row in metrics if row["protocol"] == protocol))


def _row(metrics: Sequence[Mapping[str, Any]], *key: str) -> Mapping[str, Any] | None:
    names = ("system", "protocol", "subset", "metric")
    return next((row for row in metrics if tuple(row[name] for name in names) == key), None)


def _count(metrics: Sequence[Mapping[str, Any]], protocol: str, subset: str) -> int:
    """Cases behind a table."""
    return max((row["count"] for row in metrics if (row["protocol"], row["subset"]) == (protocol, subset)), default=0)


def _number(value: Any) -> str:
    if isinstance(value, list):  # such as the loss of each epoch
        return " → ".join(map(_number, value))
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _bars(report: Report, systems: Sequence[str], groups: Sequence[tuple[str, tuple[str, str, str]]]) -> str:
    """Bars of hit@1 with standard errors, a colour for each group, as a data URI of an SVG image."""
    with _drawn(report) as (axes, image):
        width = 0.8 / len(groups)
        for number, (label, key) in enumerate(groups):
            rows = [_row(report.metrics, system, *key) or {"value": 0.0, "stderr": None} for system in systems]
            at = np.arange(len(systems)) + (number - (len(groups) - 1) / 2) * width
            errors = [row["stderr"] or 0.0 for row in rows]
            axes.bar(at, [row["value"] for row in rows], width, yerr=errors, label=label, color=_COLOURS[number])
        axes.axhline(report.chance, color="black", linewidth=0.8, linestyle="--", label="chance")
        axes.set_xticks(np.arange(len(systems)), systems)
    return image[0]


def _curves(report: Report) -> str | None:
    """Hit@1 of validation users against the examples seen, a line for each part that kept its curve; else None."""
    curves = {part: stats["curve"] for part, stats in report.bundle["stats"].items() if stats.get("curve")}
    if not curves:
        return None
    with _drawn(report) as (axes, image):
        for number, (part, curve) in enumerate(curves.items()):
            seen = next(iter(curve[0]))  # prompts or users
            counts, hits = ([point[key] for point in curve] for key in (seen, "hit@1"))
            axes.plot(counts, hits, marker="o", markersize=3, label=f"{part} ({seen})", color=_COLOURS[number])
        axes.axhline(report.chance, color="black", linewidth=0.8, linestyle="--", label="chance")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    return image[0]


@contextmanager
def _drawn(report: Report) -> Iterator[tuple[Any, list[str]]]:
    """Axes to draw on; afterwards the list has the image, a data URI of an SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    image: list[str] = []
    with matplotlib.rc_context({"svg.hashsalt": report.name, "font.size": 9, "font.family": "DejaVu Sans"}):
        canvas = Figure(figsize=(7.2, 2.9), layout="constrained")
        axes = canvas.add_subplot()
        yield axes, image
        axes.set_ylabel("Hit@1")
        axes.legend(frameon=False, ncols=4, loc="lower right", bbox_to_anchor=(1, 1))
        axes.spines[["top", "right"]].set_visible(False)
        file = io.BytesIO()
        canvas.savefig(file, format="svg", metadata={"Date": None})
    image.append("data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode())
