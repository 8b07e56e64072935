"""What the nightly run recommends and where it publishes."""

from typing import Literal

from pydantic import Field

from allmrec.config import Section


class NightlyConfig(Section):
    output: str | None = None  # where recommendations are published; default: <run>/recommendations
    candidates: str | None = None  # a `candidates` table (Parquet) from another system; default: the teacher's
    num_candidates: int = Field(20, ge=1)  # retrieved for each user and ranked by the LLM
    top_k: int = Field(10, ge=1)  # recommended to each user
    ranker: Literal["llm", "teacher"] = "llm"
    lease_s: float = Field(60, gt=0)  # a run that has not renewed its lease for so long counts as dead
