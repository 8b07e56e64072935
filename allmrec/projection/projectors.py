"""Stage-2: projectors F_U and F_I into the LLM's token space (paper equation 7)."""

from allmrec.config import Section


class ProjectionConfig(Section):
    learning_rate: float = 1e-4  # Table 3
