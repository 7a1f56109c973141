"""Before its first step a run has the initial weights, bit for bit, and no optimizer state."""

import pytest

from tests.integration.conftest import launcher, run_script
from tests.integration.first_step_worker import CASES

pytestmark = [pytest.mark.trains, pytest.mark.slow]


def test_no_engine_changes_the_initial_weights() -> None:
    """DeepSpeed rounds them to 16 bits; without ZeRO it also applies the weight decay once."""
    ended = run_script(*launcher(2), "tests/integration/first_step_worker.py")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = ended.stdout.splitlines()
    assert not [line for line in lines if line.startswith("wrong: ")]
    assert sum(line.startswith("right: ") for line in lines) == 2 * len(CASES), ended.stdout
