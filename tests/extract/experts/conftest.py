"""An entry whose weights file a test makes."""

import pytest
import torch
from safetensors.torch import save_file

from championship_sr.extract.config import load_expert_config


@pytest.fixture
def entry(tmp_path):
    """The entry of an expert whose weights file holds this state, or these bytes."""

    def make(state, suffix=".safetensors", **values):
        path = tmp_path / f"weights{suffix}"
        if isinstance(state, bytes):
            path.write_bytes(state)
        elif suffix == ".safetensors":
            save_file({key: value.contiguous() for key, value in state.items()}, path)
        else:
            torch.save(state, path)
        return load_expert_config({"name": "e", "weights": str(path), "tap": "conv_after_body"} | values)

    return make
