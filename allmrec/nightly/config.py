"""What the nightly run recommends to whom, when it gives up, and where it publishes."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from allmrec.config import Section, Timezone
from allmrec.data.config import ListConfig, by_suffix


class ItemsConfig(ListConfig):
    """A list of items: ids, a table of `item_id`, or both."""

    ids: list[str] = Field(default_factory=list)


class AlarmsConfig(Section):
    """What a run must keep to, or it is not published; null: anything goes. The report shows every value."""

    min_overlap: float | None = Field(None, ge=0, le=1)  # mean Jaccard of a user's list with last night's
    min_coverage: float | None = Field(None, ge=0, le=1)  # of the items that may be recommended, the share that are
    max_popular: float | None = Field(None, ge=0, le=1)  # share of users who get popular items
    max_users_change: float | None = Field(None, ge=0)  # 0.1: a tenth more or fewer users than last night
    max_score_drift: float | None = Field(None, ge=0)  # population stability index of first scores; 0.25 is a lot


class NightlyConfig(Section):
    timezone: Timezone = "UTC"  # where a run's date begins and ends, and which day it is where no date is given
    output: str | None = None  # where recommendations are published; default: <run>/recommendations
    candidates: ListConfig | None = None  # another system's `candidates` table; default: the teacher's
    # A table of user_id: exactly those get recommendations, popular items if they have no history. Default: everyone
    # who has one.
    users: ListConfig | None = None
    num_candidates: int = Field(20, ge=1)  # retrieved for each user and ranked by the LLM
    # Retrieve through an approximate index (the extra `faiss`) where more items are available; default: exactly.
    # Worth it from some hundred thousand items on CPUs; the nightly log says which share of the exact ones it found.
    approximate_above: int | None = Field(None, ge=1)
    top_k: int = Field(10, ge=1)  # recommended to each user
    # blend: the LLM's and the teacher's log-probabilities, weighted as orders the validation cases best.
    ranker: Literal["llm", "teacher", "blend"] = "llm"
    # Items that are never recommended, besides unavailable ones and those that the user has seen.
    recommend_seen: bool = False  # for what is bought again and again: what the user has seen may be recommended, too
    allowed_categories: list[str] | None = Field(None, min_length=1)  # an item needs one of them; null: any item
    blocked_items: ItemsConfig = ItemsConfig()
    suppressed_items: ItemsConfig = ItemsConfig()  # recalls; as blocked, but counted apart
    suppressed_users: ListConfig | None = None  # a table of user_id: privacy requests; they get no row
    lease_s: float = Field(60, gt=0)  # a run that has not renewed its lease for so long counts as dead
    deadline_s: float | None = Field(None, gt=0)  # a run that takes longer ends with a diagnosis
    stalled_s: float | None = Field(10_800, gt=0)  # and so does one in which no shard was finished for so long
    price_per_gpu_hour: float | None = Field(None, ge=0)  # for the report's and the plan's cost
    alarms: AlarmsConfig = AlarmsConfig()

    @field_validator("candidates", "users", "suppressed_users", "blocked_items", "suppressed_items", mode="before")
    @classmethod
    def _from_uris(cls, value: Any) -> Any:
        """A URI, or a list of them, is short for `{paths: [...]}`, in the format that the first one's name says."""
        paths = [value] if isinstance(value, str) else value
        if not isinstance(paths, list):
            return value
        return by_suffix(paths, {"format": "parquet"})

    @model_validator(mode="after")
    def _enough_candidates(self) -> "NightlyConfig":
        if self.top_k > self.num_candidates:
            raise ValueError(f"top_k {self.top_k} is more than num_candidates {self.num_candidates}; raise the latter")
        return self

    def ranking(self) -> dict[str, Any]:
        """The keys that a user's row depends on, beyond the tables that are named here."""
        keys = {"num_candidates", "approximate_above", "top_k", "ranker", "recommend_seen", "timezone"}
        return self.model_dump(mode="json", include=keys)
