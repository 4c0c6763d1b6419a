"""Extraction on a GPU; skipped where there is none."""

import multiprocessing

import pytest
import torch

from championship_sr.extract.edsr import EDSR
from championship_sr.extract.run.extraction import extract
from championship_sr.extract.run.shares import Part
from championship_sr.store.shards.reader import Store
from tests.extract.stores import checksums

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_a_store_extracted_twice_has_the_same_bytes(make_config, tmp_path):
    for name in ("once", "again"):
        extract(make_config(store=str(tmp_path / name), device="cuda"))
    assert checksums(tmp_path / "once") == checksums(tmp_path / "again")


def test_tf32_is_recorded_and_leaves_no_switch_behind(make_config):
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    config = make_config(device="cuda", precision="tf32")
    extract(config)
    assert Store(config.store).experts["tiny"].identity["precision"] == "tf32"
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_a_forward_without_memory_is_run_again(make_config, monkeypatch, tmp_path):
    extract(make_config(store=str(tmp_path / "undisturbed"), device="cuda"))
    forward, failed = EDSR.forward, []

    def short(self, x):
        if len(x) > 1 and not failed:
            failed.append(len(x))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, x)

    monkeypatch.setattr(EDSR, "forward", short)
    config = make_config(device="cuda", batch_size=2, tile_px=8, halo_px=2)
    extract(config)
    assert failed and Store(config.store)  # whole


def test_two_processes_share_one_gpu(make_config):
    config, context = make_config(device="cuda:0"), multiprocessing.get_context("spawn")
    parts = [context.Process(target=extract, args=(config,), kwargs={"part": Part(i, 2)}) for i in (1, 2)]
    for process in parts:
        process.start()
    for process in parts:
        process.join()
    assert [process.exitcode for process in parts] == [0, 0] and Store(config.store)
