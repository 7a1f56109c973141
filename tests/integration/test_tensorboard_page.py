"""A real TensorBoard in a real browser: the curves of a run are on its page."""

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from dist_bert.metrics import MetricsWriter
from tests.integration.conftest import BIN, environment

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
LAST = f"{7.0 / 11:.4f}"  # of every curve, in the table below it
NAMES = ("train/mlm_loss", "train/nsp_loss", "validation/mlm_loss", "validation/nsp_loss")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_the_curves_are_on_the_page(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, 0)
    for step in range(1, 12):
        writer.scalars(step, {name: 7.0 / step for name in NAMES})
    writer.close()
    assert CHROMIUM is not None
    server = subprocess.Popen(
        [str(BIN / "tensorboard"), "--logdir", str(tmp_path), "--host", "127.0.0.1", "--port", "0"],
        env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stderr is not None
        lines = iter(server.stderr.readline, "")
        url = next(found[0] for line in lines if (found := re.search(r"http://[\d.:]+", line)))
        deadline = time.monotonic() + 60
        while not shows_curves(page := dump(url, tmp_path / "profile")):
            assert time.monotonic() < deadline, page
    finally:
        server.kill()
        server.wait()


def shows_curves(page: str) -> bool:
    """Whether each has its card, with the last value."""
    cards = page.split("<scalar-card-component")[1:]
    shown = [name for name in NAMES for card in cards if name in card and LAST in card]
    return sorted(shown) == sorted(NAMES)


def dump(url: str, profile: Path) -> str:
    """The page as the browser has it after its scripts ran."""
    shutil.rmtree(profile, ignore_errors=True)
    ended = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-background-networking", "--disable-component-update",
         f"--user-data-dir={profile}", "--window-size=1600,1600", "--virtual-time-budget=20000",
         "--dump-dom", f"{url}/#timeseries"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return ended.stdout
