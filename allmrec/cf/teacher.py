"""The teacher contract: what a frozen collaborative filtering model gives to everything downstream."""

from typing import Literal

from allmrec.config import Section


class TeacherConfig(Section):
    model: Literal["sasrec"] = "sasrec"
