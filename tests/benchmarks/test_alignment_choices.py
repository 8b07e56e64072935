"""Stage-1's choices: every variant differs from its preset in one of them, and the measures know what they measure."""

import pytest
import torch

from allmrec.alignment.network import AlignmentConfig
from benchmarks.alignment_choices import CHOICES, explained, hits, linear_map, settings, spread


def test_each_variant_switches_one_choice():
    configs = {name: AlignmentConfig(**keys) for name, keys in settings().items()}
    for choice, keys in CHOICES.items():
        for base, name in (("paper", f"paper, {choice}"), ("default", f"default, not {choice}")):
            one, other = configs[base].model_dump(), configs[name].model_dump()
            assert {key for key in one if one[key] != other[key]} == set(keys), name
    both = {name: configs[name].model_dump() for name in ("paper", "default")}
    switched = {key for key in both["paper"] if both["paper"][key] != both["default"][key]}
    assert switched == {"preset"} | {key for keys in CHOICES.values() for key in keys}, "nothing is left unmeasured"


def test_a_target_that_ties_is_no_hit():
    user, items = torch.tensor([[1.0], [1.0]]), torch.tensor([[0.0], [2.0], [1.0], [2.0]])
    assert hits(user, items, torch.tensor([[1, 2], [1, 3]])) == 0.5


def test_what_is_linear_is_explained_and_a_constant_has_no_spread():
    torch.manual_seed(0)
    rows = torch.randn(200, 5) * 0.01 + 3
    made = rows @ torch.randn(5, 3) - 1
    found = linear_map(rows[:100], made[:100])(rows[100:])
    assert explained(made[100:], found) == pytest.approx(1, abs=1e-3)
    assert spread(rows) < 1e-4 and spread(rows - rows.mean(0)) == pytest.approx(1, abs=1e-5)
