"""What the nightly run recommends and where it publishes."""

from typing import Literal

from pydantic import Field, model_validator

from allmrec.config import Section
from allmrec.data.config import SourceConfig


class NightlyConfig(Section):
    output: str | None = None  # where recommendations are published; default: <run>/recommendations
    candidates: SourceConfig | None = None  # another system's `candidates` table; default: the teacher's
    num_candidates: int = Field(20, ge=1)  # retrieved for each user and ranked by the LLM
    # Retrieve through an approximate index (the extra `faiss`) where more items are available; default: exactly.
    # Worth it from some hundred thousand items on CPUs; the nightly log says which share of the exact ones it found.
    approximate_above: int | None = Field(None, ge=1)
    top_k: int = Field(10, ge=1)  # recommended to each user
    ranker: Literal["llm", "teacher"] = "llm"
    lease_s: float = Field(60, gt=0)  # a run that has not renewed its lease for so long counts as dead

    @model_validator(mode="after")
    def _enough_candidates(self) -> "NightlyConfig":
        if self.top_k > self.num_candidates:
            raise ValueError(f"top_k {self.top_k} is more than num_candidates {self.num_candidates}; raise the latter")
        return self
