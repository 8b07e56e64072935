"""Stage-1: the alignment network (paper section 4.1)."""

from allmrec.config import Section


class AlignmentConfig(Section):
    joint_dim: int = 128  # d', Table 3
