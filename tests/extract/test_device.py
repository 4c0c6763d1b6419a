"""The device that a name means, and torch's switches for float32, on machines that the tests pretend to have."""

import pytest
import torch

from championship_sr.extract.device import bench_px, check_tf32, float32_products, has_bf16, pick_device
from championship_sr.store.errors import ConfigError


@pytest.fixture
def four_gpus(monkeypatch):
    """A machine with four GPUs; the list of those that became the current one."""
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    return taken


def flags():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark


@pytest.mark.parametrize("name", ["tpu", "", "cuda:x"])
def test_a_device_that_is_none_is_named(name):
    with pytest.raises(ConfigError, match=rf"device={name}: expected auto, cpu, cuda, cuda:N or mps"):
        pick_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_named(name):
    with pytest.raises(ConfigError, match=f"device={name}: this machine has no CUDA device"):
        pick_device(name)


@pytest.mark.parametrize(("name", "rank", "index"), [("cuda:1", 0, 1), ("cuda", 2, 2), ("auto", 3, 3), ("auto", 5, 1)])
def test_the_gpu_that_is_taken_becomes_the_current_one_and_no_other(four_gpus, name, rank, index):
    assert pick_device(name, rank) == torch.device("cuda", index)
    assert four_gpus == [index]


def test_a_gpu_beyond_the_last_is_refused(four_gpus):
    with pytest.raises(ConfigError, match="device=cuda:4: this machine's last CUDA device is cuda:3"):
        pick_device("cuda:4")
    assert four_gpus == []


@pytest.mark.parametrize("tf32", [True, False])
def test_switches_hold_inside_the_block_and_are_restored_even_after_an_error(tf32):
    before = flags()
    with pytest.raises(KeyError), float32_products(tf32=tf32, fixed_shapes=True):
        assert flags() == (tf32, tf32, True)
        with float32_products():
            assert flags() == (False, False, False)
        assert flags() == (tf32, tf32, True)
        raise KeyError
    assert flags() == before


def test_tf32_is_refused_where_there_is_none():
    with pytest.raises(ConfigError, match=r"precision=tf32: .* the device is cpu; set fp32"):
        check_tf32("tf32", torch.device("cpu"))
    check_tf32("tf32", torch.device("cuda"))
    check_tf32("fp32", torch.device("cpu"))


def test_bfloat16_that_a_gpu_only_emulates_does_not_count(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not has_bf16(torch.device("cuda")) and not has_bf16(torch.device("cpu"))


def test_a_gpu_is_measured_with_large_tiles():
    assert bench_px(torch.device("cpu")) == 64
    assert 256 <= bench_px(torch.device("cuda", 1)) <= 512
