"""What the nightly run recommends to which users, when it times out, and where it publishes."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from allmrec.core.settings import Section, Timezone
from allmrec.data.config import ListConfig, by_suffix
from allmrec.publishing.iceberg import IcebergConfig

LLM_SREC_RANKERS = ("llm-srec", "llm-srec-blend")
# Rankers that are systems of `baselines`, or have one in them: the part of the bundle that a row depends on.
_SYSTEMS = {**dict.fromkeys(LLM_SREC_RANKERS, "llm-srec"), "tallrec": "tallrec"}


class ItemsConfig(ListConfig):
    """A list of items: ids, a table of `item_id`, or both."""

    ids: list[str] = Field(default_factory=list)  # of items, beside those of the table


class QualityGatesConfig(Section):
    """What a run must satisfy to be published; null: not checked. The report shows every value."""

    min_overlap: float | None = Field(None, ge=0, le=1)  # mean Jaccard similarity to the previous run's lists
    min_coverage: float | None = Field(None, ge=0, le=1)  # share of the eligible items that are recommended
    max_fallback_share: float | None = Field(None, ge=0, le=1)  # share of users whose list is popular items
    max_users_change: float | None = Field(None, ge=0)  # in users since the previous run; 0.1: a tenth more or fewer
    max_score_drift: float | None = Field(None, ge=0)  # population stability index of first scores; 0.25 is high
    # Share of the eligible items that are new since training. Above it the report says that it is time to train again;
    # the run is published all the same.
    max_new_items: float | None = Field(0.2, ge=0, le=1)


class NightlyConfig(Section):
    """Who gets recommendations, from which candidates, and when a run must not be published."""

    timezone: Timezone = "UTC"  # in which a date begins and ends, and today is determined
    output: str | None = None  # folder or s3:// prefix to publish to; null: <root>/<name>/recommendations
    candidates: ListConfig | None = None  # another system's `candidates` table; null: the teacher's
    # A list of user_id: exactly these users get recommendations, popular items if they have no history; null: all users
    # with a history.
    users: ListConfig | None = None
    # What retrieves the candidates from the whole catalogue: the teacher, or LLM-SRec, by vectors of its own.
    retriever: Literal["teacher", "llm-srec"] = "teacher"
    # Retrieved per user and ranked; rankers with LLM-SRec, whose prompts list none, have 200 by default.
    num_candidates: int = Field(20, ge=1)
    # With more available items than this, retrieval uses an approximate index (the extra `faiss`); null: always exact.
    # Worth it from some hundred thousand items on CPUs; the log reports the index's recall. Bundles have the teacher's.
    approximate_above: int | None = Field(None, ge=1)
    # Least number of these that are new since training, where there are new items; see docs/nightly.md.
    new_item_candidates: int = Field(2, ge=0)
    top_k: int = Field(10, ge=1)  # recommended items per user
    # blend: a weighted sum of the LLM's and the teacher's log-probabilities, fitted on the validation cases; llm-srec,
    # tallrec: the system of `baselines`; llm-srec-blend: as blend, of LLM-SRec and the teacher.
    ranker: Literal["llm", "teacher", "blend", "tallrec", "llm-srec", "llm-srec-blend"] = "llm"
    recommend_seen: bool = False  # whether items that the user has seen may be recommended again
    allowed_categories: list[str] | None = Field(None, min_length=1)  # recommended items have one of them; null: any
    blocked_items: ItemsConfig = ItemsConfig()  # never recommended, besides unavailable items
    suppressed_items: ItemsConfig = ItemsConfig()  # recalls: as blocked_items, counted separately
    suppressed_users: ListConfig | None = None  # a list of user_id: privacy requests; these users get no row
    # Users' and items' vectors, as Parquet beside the recommendations; LLM-SRec must retrieve or rank.
    publish_vectors: bool = False
    lease_s: float = Field(60, gt=0)  # a run that has not renewed its lease for this long is considered dead
    timeout_s: float | None = Field(None, gt=0)  # a longer run ends with exit code 1 and a diagnosis; null: no limit
    stall_timeout_s: float | None = Field(10_800, gt=0)  # so does a run that has finished no shard for this long
    price_per_gpu_hour: float | None = Field(None, ge=0)  # for the cost in the report and in the plan of --dry-run
    sampled_users: int = Field(20, ge=0)  # users, and new items, that the report shows by title; 0: none
    quality_gates: QualityGatesConfig = QualityGatesConfig()  # what a run must satisfy to be published
    iceberg: IcebergConfig | None = None  # a table that lists the published files (the extra `iceberg`); null: none

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("ranker") in LLM_SREC_RANKERS:
            return {"num_candidates": 200} | values
        return values

    @field_validator("candidates", "users", "suppressed_users", "blocked_items", "suppressed_items", mode="before")
    @classmethod
    def _from_uris(cls, value: Any) -> Any:
        """A URI, or a list of them, is short for `{paths: [...]}`, in the format of the first one's suffix."""
        paths = [value] if isinstance(value, str) else value
        if not isinstance(paths, list):
            return value
        return by_suffix(paths, {"format": "parquet"})

    @model_validator(mode="after")
    def _enough_candidates(self) -> "NightlyConfig":
        if self.top_k > self.num_candidates:
            raise ValueError(f"top_k {self.top_k} is more than num_candidates {self.num_candidates}; raise the latter")
        return self

    @model_validator(mode="after")
    def _has_vectors(self) -> "NightlyConfig":
        if self.publish_vectors and not self.uses_llm_srec:
            raise ValueError("publish_vectors: the vectors are LLM-SRec's; set retriever or ranker to llm-srec")
        return self

    @property
    def ranking_system(self) -> str | None:
        """The system of `baselines` that ranks."""
        return _SYSTEMS.get(self.ranker)

    @property
    def ranks_by_llm_srec(self) -> bool:
        return self.ranker in LLM_SREC_RANKERS

    @property
    def uses_llm_srec(self) -> bool:
        return self.retriever == "llm-srec" or self.ranks_by_llm_srec

    @property
    def uses_llm(self) -> bool:
        return self.ranker != "teacher" or self.uses_llm_srec

    @property
    def is_blend(self) -> bool:
        return self.ranker in ("blend", "llm-srec-blend")

    def ranking(self) -> dict[str, Any]:
        """The keys that a user's row depends on, beyond the tables that are named here."""
        keys = {"num_candidates", "approximate_above", "top_k", "ranker", "recommend_seen", "timezone"}
        later = {"new_item_candidates"}  # keys since the first release: a run of a release without them stays the same
        new = self.model_dump(mode="json", include=later, exclude_defaults=True)
        return self.model_dump(mode="json", include=keys) | new

    def identity(self) -> dict[str, Any]:
        """The keys that a run depends on. What retrieves shows in the candidates: no user's row depends on its name."""
        later = {"retriever", "publish_vectors"}
        return self.ranking() | self.model_dump(mode="json", include=later, exclude_defaults=True)
