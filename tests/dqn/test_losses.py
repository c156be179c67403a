"""Targets and losses against PyTorch's own and against hand-made numbers."""

import pytest
import torch
from torch.nn import functional as F

from relive.dqn.losses import LOSSES, double_value, greedy_value, td_target


def test_the_online_network_chooses_and_the_target_network_values() -> None:
    next_q = torch.tensor([[1.0, 5.0, 2.0], [4.0, 0.0, 3.0]])
    chooser = torch.tensor([[9.0, 0.0, 1.0], [0.0, 1.0, 2.0]])
    assert greedy_value(next_q).tolist() == [5.0, 4.0]
    assert double_value(next_q, chooser).tolist() == [1.0, 3.0]


def test_the_target_bootstraps_by_the_discount_alone() -> None:
    reward, value = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([10.0, 10.0, 10.0])
    discount = torch.tensor([0.0, 0.5, 0.125])  # terminated; one step; three steps of 0.5
    assert td_target(reward, discount, value).tolist() == [1.0, 6.0, 2.25]


@pytest.mark.parametrize("name", ["squared", "huber"])
def test_a_loss_is_pytorchs_and_its_slope_is_its_derivative(name: str) -> None:
    delta = torch.tensor([-3.0, -1.0, -0.4, 0.0, 0.4, 1.0, 3.0], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros_like(delta)
    expected = (
        F.huber_loss(delta, zero, reduction="none")
        if name == "huber"
        else F.mse_loss(delta, zero, reduction="none") / 2
    )
    (slope,) = torch.autograd.grad(expected.sum(), delta)
    torch.testing.assert_close(LOSSES[name].value(delta), expected)
    torch.testing.assert_close(LOSSES[name].slope(delta), slope)
