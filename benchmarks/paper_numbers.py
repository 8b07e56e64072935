"""The tables of the A-LLMRec paper (KDD 2024), and the orderings that it claims.

All figures are Hit@1 of the target among 19 random negatives, with the paper's data and LLM (OPT-6.7B): orderings can
be compared with ours, values cannot. Systems have this project's names; A-LLMRec's teacher is SASRec.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

MOVIES, GAMES, BEAUTY, TOYS = "Movies and TV", "Video Games", "Beauty", "Toys"
SASREC, ALLMREC, SBERT, MLP_LLM = "sasrec", "a-llmrec", "a-llmrec-sbert", "mlp-llm"
UNTRAINED, ALLMREC_ALL = "a-llmrec-untrained", "a-llmrec-all"
_TEACHERS = {"ncf": "NCF", "nextitnet": "NextItNet", "gru4rec": "GRU4Rec", SASREC: "SASRec"}
TEACHERS = tuple(_TEACHERS)
NAMES = {
    **_TEACHERS,
    "morec": "MoRec",
    "ctrl": "CTRL",
    "recformer": "RECFORMER",
    "llm-only": "LLM-Only",
    "tallrec": "TALLRec",
    MLP_LLM: "MLP-LLM",
    ALLMREC: "A-LLMRec",
    SBERT: "A-LLMRec (SBERT)",
    UNTRAINED: "A-LLMRec, untrained",
    ALLMREC_ALL: "A-LLMRec_all",
    "llm-srec": "LLM-SRec",
    **{f"{ALLMREC}-{teacher}": f"A-LLMRec ({name})" for teacher, name in _TEACHERS.items()},
}

Claim = tuple[str, str]  # the lower system, the higher one


@dataclass(frozen=True)
class Table:
    """A table of the paper: its rows and columns, in order, and what it claims."""

    rows: tuple[str, ...]
    data: tuple[str, ...]  # the paper's columns
    numbers: Mapping[str, tuple[float, ...]]  # by row
    claims: Mapping[str, tuple[Claim, ...]]  # by subset
    reference: str = ALLMREC  # that the other rows are compared to
    splits: Mapping[str, list[str]] = field(default_factory=lambda: {"": []})  # the keys of each

    def agreement(self, claim: Claim, subset: str) -> tuple[int, int]:
        """The number of a subset's columns in which the paper's figures agree with the claim, and of all columns."""
        lower, higher = (self.numbers.get(system, ()) for system in claim)
        columns = zip(self.data, lower, higher, strict=False)
        rises = [low < high for data, low, high in columns if subset == "all" or subset in data]
        return sum(rises), len(rises)


def below(higher: str, *lower: str) -> tuple[Claim, ...]:
    return tuple((system, higher) for system in lower)


def rising(*systems: str) -> tuple[Claim, ...]:
    """Each above the one before it."""
    return tuple(pairwise(systems))


_MAIN = Table(
    rows=(
        "random",
        "popularity",
        *TEACHERS,
        "morec",
        "ctrl",
        "recformer",
        "llm-only",
        "tallrec",
        MLP_LLM,
        ALLMREC,
        SBERT,
        UNTRAINED,
        "llm-srec",
    ),
    data=(MOVIES, GAMES, BEAUTY, TOYS),
    numbers={
        "ncf": (0.4273, 0.3159, 0.2957, 0.1849),
        "nextitnet": (0.5855, 0.4305, 0.4231, 0.1415),
        "gru4rec": (0.5215, 0.4026, 0.4131, 0.1673),
        SASREC: (0.6154, 0.5402, 0.5298, 0.2359),
        "morec": (0.4130, 0.4894, 0.4997, 0.1728),
        "ctrl": (0.3467, 0.2354, 0.3963, 0.1344),
        "recformer": (0.4865, 0.4925, 0.4878, 0.2871),
        "llm-only": (0.0121, 0.0168, 0.0120, 0.0141),
        "tallrec": (0.2345, 0.4403, 0.5542, 0.0710),
        MLP_LLM: (0.5838, 0.4788, 0.5548, 0.3225),
        ALLMREC: (0.6237, 0.5282, 0.5809, 0.3336),
    },
    claims={
        "all": (
            *below(SASREC, "ncf", "nextitnet", "gru4rec"),
            *rising("ctrl", "morec", SASREC),
            *rising("morec", "recformer", SASREC),
            *below(SASREC, "tallrec"),
            *below("tallrec", "llm-only"),
            *below(MLP_LLM, "llm-only"),
            *below(ALLMREC, SASREC, "llm-only", "tallrec", MLP_LLM),
        )
    },
)
_COLD_WARM = Table(
    rows=(SASREC, "morec", "ctrl", "recformer", "tallrec", ALLMREC, SBERT),
    data=tuple(f"{data}, {subset}" for data in (MOVIES, GAMES, BEAUTY) for subset in ("cold", "warm")),
    numbers={
        SASREC: (0.2589, 0.6787, 0.1991, 0.5764, 0.1190, 0.6312),
        "morec": (0.2745, 0.4395, 0.2318, 0.4977, 0.2145, 0.5425),
        "ctrl": (0.1517, 0.3840, 0.2074, 0.2513, 0.1855, 0.4711),
        "recformer": (0.3796, 0.5449, 0.3039, 0.5377, 0.3387, 0.5133),
        "tallrec": (0.2654, 0.2987, 0.3950, 0.4897, 0.5462, 0.6124),
        ALLMREC: (0.5714, 0.6880, 0.4263, 0.5970, 0.5605, 0.6414),
        SBERT: (0.5772, 0.6802, 0.4359, 0.5792, 0.5591, 0.6405),
    },
    claims={
        "cold": (
            *rising(SASREC, "morec", "recformer", ALLMREC, SBERT),
            *rising(SASREC, "tallrec", ALLMREC),
            *below(ALLMREC, SASREC, "morec", "ctrl"),
        ),
        "warm": (
            *below(SASREC, "morec", "ctrl", "recformer", "tallrec"),
            *below(ALLMREC, SASREC, "morec", "ctrl", "recformer", "tallrec", SBERT),
        ),
    },
)
_COLD_USERS = Table(
    rows=(SASREC, "morec", "ctrl", "recformer", "tallrec", MLP_LLM, ALLMREC),
    data=(MOVIES, GAMES, BEAUTY),
    numbers={
        SASREC: (0.2589, 0.4048, 0.4459),
        "morec": (0.3918, 0.3572, 0.4815),
        "ctrl": (0.2273, 0.1737, 0.3902),
        "recformer": (0.4481, 0.3989, 0.4644),
        "tallrec": (0.2143, 0.3895, 0.5202),
        MLP_LLM: (0.4909, 0.3960, 0.5276),
        ALLMREC: (0.5272, 0.4160, 0.5337),
    },
    claims={"all": below(ALLMREC, SASREC, "morec", "ctrl", "recformer", "tallrec", MLP_LLM)},
    splits={"cold-users": ["evaluation.split={kind: cold-users}"]},
)
_SHOTS = ("256", "128")
_FEW_SHOT = Table(
    rows=(SASREC, "morec", "tallrec", ALLMREC, SBERT),
    data=tuple(f"{data}, K = {users}" for data in (MOVIES, GAMES, BEAUTY) for users in _SHOTS),
    numbers={
        SASREC: (0.2111, 0.1537, 0.1396, 0.1089, 0.2243, 0.1813),
        "morec": (0.2208, 0.1677, 0.1420, 0.1157, 0.2937, 0.2554),
        "tallrec": (0.1846, 0.1654, 0.2321, 0.1154, 0.3127, 0.2762),
        ALLMREC: (0.2880, 0.2518, 0.2495, 0.1608, 0.3467, 0.3099),
        SBERT: (0.2963, 0.2722, 0.2607, 0.1839, 0.3605, 0.3486),
    },
    claims={"all": (*rising(SASREC, "morec", ALLMREC, SBERT), *rising(SASREC, "tallrec", ALLMREC))},
    splits={f"K-{users}": [f"evaluation.split={{kind: few-shot, users: {users}}}"] for users in _SHOTS},
)
_CROSS_DOMAIN = Table(
    rows=(SASREC, "morec", "recformer", "tallrec", ALLMREC, SBERT),
    data=(f"{MOVIES} → {GAMES}",),
    numbers={
        SASREC: (0.0506,),
        "morec": (0.0624,),
        "recformer": (0.0847,),
        "tallrec": (0.0785,),
        ALLMREC: (0.0901,),
        SBERT: (0.1203,),
    },
    claims={
        "all": (
            *[(SASREC, system) for system in ("morec", "recformer", "tallrec", ALLMREC)],
            *below(ALLMREC, "morec", "recformer", "tallrec"),
            *below(SBERT, ALLMREC),
        )
    },
)
FIRST = "A-LLMRec"  # the row that an ablation's others are compared to
_STAGE_1 = Table(
    rows=(FIRST, "w/o L_matching", "w/o L_item-recon & L_text-recon", "w/o L_rec", "Freeze SBERT"),
    data=(MOVIES, BEAUTY, TOYS),
    numbers={
        FIRST: (0.6237, 0.5809, 0.3336),
        "w/o L_matching": (0.5838, 0.5548, 0.3225),
        "w/o L_item-recon & L_text-recon": (0.5482, 0.5327, 0.3204),
        "w/o L_rec": (0.6130, 0.5523, 0.1541),
        "Freeze SBERT": (0.6173, 0.5565, 0.1720),
    },
    claims={"all": below(FIRST, "w/o L_matching", "w/o L_item-recon & L_text-recon", "w/o L_rec", "Freeze SBERT")},
    reference=FIRST,
)
_NO_USER, _NO_ITEMS, _RANDOM = "w/o user representation", "w/o joint embedding", "random joint embedding"
_STAGE_2 = Table(
    rows=(FIRST, _NO_USER, _NO_ITEMS, _RANDOM, "MLP-LLM"),
    data=(MOVIES, GAMES, BEAUTY, TOYS),
    numbers={
        FIRST: (0.6237, 0.5282, 0.5809, 0.3336),
        _NO_USER: (0.5925, 0.5121, 0.5547, 0.3217),
        _NO_ITEMS: (0.1224, 0.4773, 0.5213, 0.2831),
        _RANDOM: (0.1200, 0.4729, 0.5427, 0.0776),
        "MLP-LLM": (0.5838, 0.4788, 0.5548, 0.3225),  # Table 1's
    },
    claims={"all": (*below(FIRST, _NO_USER, _NO_ITEMS, _RANDOM, "MLP-LLM"), (_NO_ITEMS, _NO_USER))},
    reference=FIRST,
)
_ALL_ITEMS = Table(
    rows=(FIRST, "A-LLMRec_all"),
    data=(BEAUTY,),
    numbers={FIRST: (0.5809,), "A-LLMRec_all": (0.6002,)},
    claims={"all": ((FIRST, "A-LLMRec_all"),)},
    reference=FIRST,
)
_TIMES = Table(
    rows=("tallrec", ALLMREC, ALLMREC_ALL),
    data=(BEAUTY,),
    numbers={"tallrec": (0.5542,), ALLMREC: (0.5809,), ALLMREC_ALL: (0.6002,)},
    claims={"all": rising("tallrec", ALLMREC, ALLMREC_ALL)},
)
_OTHER_TEACHERS = Table(
    rows=tuple(row for teacher in reversed(TEACHERS) for row in (teacher, f"{ALLMREC}-{teacher}")),
    data=(BEAUTY, TOYS),
    numbers={
        SASREC: (0.5298, 0.2359),
        f"{ALLMREC}-{SASREC}": (0.5809, 0.3336),
        "nextitnet": (0.4231, 0.1415),
        f"{ALLMREC}-nextitnet": (0.5642, 0.3203),
        "gru4rec": (0.4131, 0.1673),
        f"{ALLMREC}-gru4rec": (0.5542, 0.3089),
        "ncf": (0.2957, 0.1849),
        f"{ALLMREC}-ncf": (0.5431, 0.3263),
    },
    claims={
        "all": (
            *[(teacher, f"{ALLMREC}-{teacher}") for teacher in TEACHERS],
            *below(f"{ALLMREC}-{SASREC}", *[f"{ALLMREC}-{teacher}" for teacher in TEACHERS if teacher != SASREC]),
        )
    },
    reference=f"{ALLMREC}-{SASREC}",
)

TABLES = {
    "1": _MAIN,
    "4": _COLD_WARM,
    "5": _COLD_USERS,
    "6": _FEW_SHOT,
    "7": _CROSS_DOMAIN,
    "8": _STAGE_1,
    "9": _STAGE_2,
    "all": _ALL_ITEMS,
    "10": _TIMES,
    "11": _OTHER_TEACHERS,
}
# Table 2, by data set.
SIZES = {
    MOVIES: {"users": 297_498, "items": 59_944, "interactions": 3_409_147, "a user": 11.46},
    GAMES: {"users": 64_073, "items": 33_614, "interactions": 598_509, "a user": 8.88},
    BEAUTY: {"users": 9_930, "items": 6_141, "interactions": 63_953, "a user": 6.44},
    TOYS: {"users": 30_831, "items": 61_081, "interactions": 282_213, "a user": 9.15},
}
# Table 10, Beauty: minutes of training and seconds a batch of inference.
MINUTES = {"tallrec": 588.58, ALLMREC: 232.5, ALLMREC_ALL: 643.33}
SECONDS = {"tallrec": 3.36, ALLMREC: 1.98, ALLMREC_ALL: 1.98}
