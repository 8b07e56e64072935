"""NextItNet's convolutions are causal and dilated, and see as far back as the dilations say."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from allmrec.cf.nextitnet import Convolution, NextItNet
from allmrec.cf.teacher import TeacherConfig


@pytest.mark.parametrize("dilation", [1, 2, 4, 8])
def test_a_layer_is_a_causal_dilated_convolution(dilation):
    torch.manual_seed(0)
    layer, x_BTD = Convolution(6, dilation), torch.randn(2, 11, 6)
    kernel_DDK = layer.kernel.weight.view(6, 3, 6).transpose(1, 2)
    padded_BDT = F.pad(x_BTD.mT, (2 * dilation, 0))
    convolved_BDT = F.conv1d(padded_BDT, kernel_DDK, layer.kernel.bias, dilation=dilation)
    torch.testing.assert_close(layer(x_BTD), layer.norm(convolved_BDT.mT).relu())


@pytest.mark.parametrize(("blocks", "reach"), [(1, 7), (2, 31)])
def test_it_sees_as_far_back_as_the_dilations_reach(blocks, reach):
    """1 + 2 (1 + 2 + 4 + 8 + …) items, with a kernel of three."""
    torch.manual_seed(0)
    teacher = NextItNet(TeacherConfig(model="nextitnet", dim=6, blocks=blocks), 50).eval()
    for weight in teacher.parameters():
        nn.init.normal_(weight, std=0.5)
    history = torch.arange(1, 41)[None]
    x = teacher.user_representations(history)
    for age, seen in ((reach - 1, True), (reach, False)):
        changed = history.clone()
        changed[0, -1 - age] = 45
        assert ((teacher.user_representations(changed) - x).abs().max() > 1e-6) == seen
