"""The moving average against its recurrence written out."""

import numpy as np
import torch
from torch import nn

from championship_sr.train.run.ema import Ema, decay_at


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("scratch", torch.zeros(1), persistent=False)


def test_parameters_and_float_buffers_follow_the_recurrence_and_integers_are_copied():
    network, expected = Counting(), np.zeros(3)
    ema = Ema(network, decay=0.3)
    for step in range(4):
        with torch.no_grad():
            network.weight.copy_(torch.tensor([1.0, 2.0, 3.0]) * (step + 1))
            network.mean.fill_(step)
            network.count.fill_(step)
        ema.update(step)
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * np.array([1.0, 2.0, 3.0]) * (step + 1)
    np.testing.assert_allclose(ema.network.weight.numpy(), expected, rtol=1e-6)
    assert ema.network.count == 3 and 0 < ema.network.mean[0] < 3


def test_the_start_is_forgotten_at_first_and_the_decay_is_reached():
    assert decay_at(0, 0.9995) == 0.1 and decay_at(10**6, 0.9995) == 0.9995


def test_the_average_needs_no_gradient_and_stays_in_eval():
    ema = Ema(nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train(), decay=0.9)
    assert not ema.network.training and not any(p.requires_grad for p in ema.network.parameters())
