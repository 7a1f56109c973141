"""The devices of a test that is the same on a CPU and on a GPU: the CPU's run is its proof here."""

import importlib.util

import pytest
import torch

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ON_GPU = [pytest.mark.gpu, needs_gpu]
DEVICES = ["cpu", pytest.param("cuda", marks=ON_GPU)]
on_each_device = pytest.mark.parametrize("device", DEVICES, indirect=True)
has_torchao = importlib.util.find_spec("torchao") is not None
needs_torchao = pytest.mark.skipif(not has_torchao, reason="needs torchao: extra float8")
