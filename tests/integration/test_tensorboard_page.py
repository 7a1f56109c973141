"""A real TensorBoard in a real browser: the curves of a run are on its page."""

import re
import shutil
from pathlib import Path

import pytest

from dist_bert.training.metrics import MetricsWriter
from tests.integration.conftest import BIN
from tests.support.processes import run_script, started, wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
LAST = f"{7.0 / 11:.4f}"  # of every curve, in the table below it
ADDRESS = re.compile(r"http://[\d.:]+(?=/)")
NAMES = ("train/mlm_loss", "train/nsp_loss", "validation/mlm_loss", "validation/nsp_loss")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_the_curves_are_on_the_page(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, 0)
    for step in range(1, 12):
        writer.scalars(step, {name: 7.0 / step for name in NAMES})
    writer.close()
    assert CHROMIUM is not None
    command = [BIN / "tensorboard", "--logdir", tmp_path, "--host", "127.0.0.1", "--port", "0"]
    with open(tmp_path / "told", "w+") as told, started(*command, stdout=told, stderr=told):
        text = (tmp_path / "told").read_text
        wait_until(lambda: ADDRESS.search(text()), "an address")
        url = ADDRESS.findall(text())[0]
        wait_until(lambda: shows_curves(dump(url, tmp_path / "profile")), "curves on the page")


def shows_curves(page: str) -> bool:
    """Whether each has its card, with the last value."""
    cards = page.split("<scalar-card-component")[1:]
    shown = [name for name in NAMES for card in cards if name in card and LAST in card]
    return sorted(shown) == sorted(NAMES)


def dump(url: str, profile: Path) -> str:
    """The page as the browser has it after its scripts ran."""
    shutil.rmtree(profile, ignore_errors=True)
    ended = run_script(
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update",
        f"--user-data-dir={profile}", "--window-size=1600,1600", "--virtual-time-budget=20000",
        "--dump-dom", f"{url}/#timeseries",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
