"""What F_U projects of a user: x^u (paper equation 7), or what the teacher would choose of a prompt's candidates.

An LLM that follows soft tokens looks for an earlier token that is like the user's. F_U(x^u) is like none of them: x^u's
product with E_i says which item is best, while it points in no item's direction. The choice is a mean of the
candidates' own E_i, the nearer to one of them the surer the teacher is.

Dimensions: B users, C candidates, D = teacher's dim
"""

import torch

from allmrec.cf.teacher import Teacher
from allmrec.projection.projectors import ProjectionConfig


def user_inputs(
    config: ProjectionConfig, teacher: Teacher, x_BD: torch.Tensor, candidates_BC: torch.Tensor | None
) -> torch.Tensor:
    """What F_U projects: `config.user_input`, (B, D).

    Args:
        candidates_BC: int, of the users' prompts; zeros are none. None: prompts without, which show x^u.
    """
    if config.user_input == "representation" or candidates_BC is None:
        return x_BD
    return choice(teacher, x_BD, candidates_BC, config.sharpness)


def choice(teacher: Teacher, x_BD: torch.Tensor, candidates_BC: torch.Tensor, sharpness: float) -> torch.Tensor:
    """sum over c of E_c softmax_c(sharpness s(x^u, E_c)), (B, D); zeros where no candidate is left."""
    none_BC = candidates_BC == 0
    score_BC = (sharpness * teacher.scores(x_BD, candidates_BC)).masked_fill(none_BC, -torch.inf)
    share_BC = score_BC.softmax(1).masked_fill(none_BC, 0.0)
    return torch.einsum("bc,bcd->bd", share_BC, teacher.lookup(candidates_BC))
