"""Times between two points of a device's work; on a GPU without waiting for it."""

import time

import pytest
import torch

from dist_bert.distributed.device_timer import moment, total_seconds


def test_spans_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1.0, 1.5, 10.0, 12.25])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    device = torch.device("cpu")
    spans = [(moment(device), moment(device)) for _ in range(2)]
    assert total_seconds(spans) == 2.75
    assert total_seconds(()) == 0.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_host_does_not_wait_for_the_gpu() -> None:
    device = torch.device("cuda")
    matrix = torch.randn(8_192, 8_192, device=device)
    matrix @ matrix  # the first one pays for set-up
    torch.cuda.synchronize()
    begin = time.perf_counter()
    start = moment(device)
    for _ in range(20):
        matrix @ matrix
    spans = [(start, moment(device))]
    host_seconds = time.perf_counter() - begin
    torch.cuda.synchronize()
    whole_seconds = time.perf_counter() - begin
    assert host_seconds < total_seconds(spans) / 2 and total_seconds(spans) < whole_seconds
