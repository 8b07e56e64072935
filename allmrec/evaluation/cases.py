"""Evaluation cases: one held-out item and its negatives for each user (paper section 5.1)."""

from pydantic import Field

from allmrec.config import Section


class EvaluationConfig(Section):
    num_negatives: int = Field(19, ge=1)  # paper section 5.1
    matched_window: int = Field(100, ge=1)  # neighbours by popularity, each side, that matched negatives come from
    max_users: int | None = None  # evaluate a sample of so many users; default: everyone
