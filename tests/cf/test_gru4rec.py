"""GRU4Rec equals its paper's equations, a step at a time from the first item on."""

import pytest
import torch

from allmrec.cf.gru4rec import GRU4Rec
from allmrec.cf.teacher import TeacherConfig


@pytest.mark.parametrize("blocks", [1, 2])
def test_it_is_the_recurrence_of_the_paper_from_the_first_item_on(blocks):
    torch.manual_seed(0)
    teacher = GRU4Rec(TeacherConfig(model="gru4rec", dim=6, blocks=blocks), 20).eval().requires_grad_(False)
    history = [3, 7, 1, 9]
    states = [torch.zeros(12) for _ in range(blocks)]
    for item in history:
        x = teacher.items.weight[item]
        for layer in range(blocks):
            from_input = getattr(teacher.gru, f"weight_ih_l{layer}") @ x + getattr(teacher.gru, f"bias_ih_l{layer}")
            from_state = getattr(teacher.gru, f"weight_hh_l{layer}") @ states[layer]
            from_state += getattr(teacher.gru, f"bias_hh_l{layer}")
            (r_in, z_in, h_in), (r_back, z_back, h_back) = from_input.chunk(3), from_state.chunk(3)
            reset, keep = torch.sigmoid(r_in + r_back), torch.sigmoid(z_in + z_back)
            x = states[layer] = (1 - keep) * torch.tanh(h_in + reset * h_back) + keep * states[layer]
    expected = teacher.out.weight @ x + teacher.out.bias
    torch.testing.assert_close(teacher.user_representations(torch.tensor([[0, 0, 0, *history]]))[0], expected)
