"""launch/pretrain.py on a CPU with the attention of a GPU: FlashAttention's operator.

A plain kernel stands in for the GPU's (tests/support/flash_kernel.py). Says once what it gets.
"""

import runpy
from typing import Any

from dist_bert.model import bert as model_module
from tests.support.flash_kernel import flash_kernel_on_cpu

if __name__ == "__main__":
    with flash_kernel_on_cpu() as calls:
        told: list[Any] = []

        def use(*arguments: Any) -> bool:
            if calls and not told:
                told.append(calls[0])
                print(f"attention by the operator: {calls[0]}", flush=True)
            return True

        vars(model_module)["can_use_varlen_kernel"] = use
        runpy.run_path("launch/pretrain.py", run_name="__main__")
