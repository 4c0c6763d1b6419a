"""A small EDSR, and how an entry declares it."""

import torch

from championship_sr.extract.edsr import EDSR

DECLARED = {"architecture": "extract.edsr:EDSR", "hyperparameters": {"num_feat": 8, "num_block": 3, "res_scale": 1.0}}


def edsr(**values) -> EDSR:
    torch.manual_seed(1)
    return EDSR(**{"num_feat": 8, "num_block": 3, "res_scale": 1.0} | values)
