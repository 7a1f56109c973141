"""A run in use: evaluated on 1, 2 and 3 ranks, masks filled from a file, words embedded."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.integration.conftest import assert_one_line_error, launcher, run_script
from tests.support.synthetic import write_data_set

PYTHON = sys.executable
CONTEXTS = ("The old lamp was quiet.", "A lamp, and another lamp.", "She sold her lamp")


@pytest.mark.slow
def test_any_number_of_ranks_finds_the_same_scores(
    encoder: Path, data_set: Path, tmp_path: Path
) -> None:
    """5 micro-batches: 2 ranks have 3 and 2 of them, 3 ranks 2, 2 and 1."""
    shards = tmp_path / "shards"
    tokenizer = (data_set / "tokenizer.model").read_bytes()
    write_data_set(shards, validation=((203,), (97,)), vocab_size=701, tokenizer=tokenizer)
    printed, scores = [], []
    for num_ranks in (1, 2, 3):
        command: list[str | Path] = [PYTHON] if num_ranks == 1 else launcher(num_ranks)
        file = tmp_path / f"{num_ranks}.json"
        ended = run_script(
            *command, "launch/evaluate.py", "--checkpoint", encoder, "--shards", shards,
            "--json", file,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stdout + ended.stderr
        lines = ended.stdout.splitlines()
        begin = next(i for i, line in enumerate(lines) if line.startswith("step 17:"))
        table = [line for line in lines[begin:] if "[launch.py" not in line]
        assert sum(line.startswith("step 17:") for line in lines) == 1, "rank 0 alone speaks"
        printed.append(table)
        scores.append(json.loads(file.read_text()))
    assert printed[0] == printed[1] == printed[2]
    assert scores[0] == scores[1] == scores[2]
    assert scores[0]["num_samples"] == 300


def test_masks_are_filled_from_standard_input(encoder: Path) -> None:
    """Also where U+2028 is inside of one, at which those who split lines would cut it."""
    texts = [
        "The [MASK] lamp [MASK] the window.",
        "A [MASK]\u2028!",
        "Old [MASK] and young [MASK].",
    ]
    command = [PYTHON, "launch/fill_mask.py", "--checkpoint", str(encoder), "--top_k", "2"]
    ended = run_script(*command, "--json", "--input", "-", stdin="\n".join(texts))
    assert ended.returncode == 0, ended.stderr
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [row["text"] for row in rows] == texts
    assert [[len(mask) for mask in row["answers"]] for row in rows] == [[2, 2], [2], [2, 2]]


def test_masks_of_one_left_context_are_drawn(encoder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    command = [PYTHON, "launch/fill_mask.py", "--checkpoint", str(encoder), "--top_k", "3"]
    texts = ["The old [MASK] of the house.", "The old [MASK] was quiet."]
    picture = tmp_path / "a.png"
    ended = run_script(*command, "--picture", picture, *texts)
    assert ended.returncode == 0, ended.stderr
    told, *answers = ended.stdout.splitlines()
    found = re.fullmatch(
        r"the 2 texts are the same up to \[MASK\]: a model that reads from left to right would"
        r" answer them alike; here the answers differ by up to (.*)% \(total variation distance\)",
        told,
    )
    assert found is not None and float(found[1]) > 0, told
    assert answers[::2] == texts
    assert picture.read_bytes().startswith(b"\x89PNG")

    # as JSON lines, and with other words before [MASK], only the answers are printed
    ended = run_script(*command, "--json", "--picture", picture, *texts)
    assert [json.loads(line)["text"] for line in ended.stdout.splitlines()] == texts
    ended = run_script(*command, "--picture", picture, texts[0], "A [MASK]")
    assert ended.stdout.splitlines()[::2] == [texts[0], "A [MASK]"]
    for flags, problem in (
        ([tmp_path / "a.svg", *texts], "a.svg: must end in .png: pictures"),
        ([tmp_path / "b.png", "A [MASK] [MASK]"], "has 2 [MASK]; a comparison takes one a text"),
        ([tmp_path / "b.png", *["A [MASK]"] * 101], "--picture: compares at most 100 texts"),
    ):
        assert_one_line_error(run_script(*command, "--picture", *flags), problem)
    assert not (tmp_path / "b.png").exists()


def test_a_word_is_embedded_into_all_files(encoder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    command: list[str | Path] = [PYTHON, "launch/embed.py", "--checkpoint", encoder]
    ended = run_script(
        *command, "--word", "lamp", "--json", tmp_path / "a.json", "--npz", tmp_path / "a.npz",
        "--projector", tmp_path / "p", "--picture", tmp_path / "a.png", *CONTEXTS,
    )  # fmt: skip
    assert ended.returncode == 0 and ended.stderr == "", ended.stderr
    assert "The old «lamp» was quiet." in ended.stdout and "static" in ended.stdout
    figures = json.loads((tmp_path / "a.json").read_text())
    assert (figures["word"], figures["layer"]) == ("lamp", 2)
    assert [item["text"] for item in figures["sentences"]] == list(CONTEXTS)
    static = np.array(figures["static_cosine_similarity"])
    contextual = np.array(figures["cosine_similarity"])
    np.testing.assert_allclose(static, np.ones((3, 3)), rtol=1e-6)
    assert contextual[0, 1] < 0.999
    with np.load(tmp_path / "a.npz") as arrays:
        np.testing.assert_allclose(
            arrays["vectors"], [item["vector"] for item in figures["sentences"]], rtol=1e-6
        )
    assert (tmp_path / "p/projector_config.pbtxt").exists()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_attention_has_a_direction(encoder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    command: list[str | Path] = [
        PYTHON, "launch/embed.py", "--checkpoint", encoder, "--attention",
    ]  # fmt: skip
    ended = run_script(*command, tmp_path / "a.png", "--head", "3", CONTEXTS[0])
    assert ended.returncode == 0 and ended.stderr == "", ended.stderr
    assert ended.stdout.startswith("attention, layer 2 of 2, head 3 of 3: ")
    direction, by_head = ended.stdout.splitlines()
    shares = [float(word[:-1]) for word in direction.split() if word.endswith("%")]
    assert len(shares) == 4 and sum(shares) == pytest.approx(100, abs=0.3)
    assert all(share > 1 for share in shares), "both directions"
    assert by_head.startswith("to the two neighbours, head by head: ")
    assert by_head.count("%") == 3 + 1, "three heads, and an even spread"
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    for flags, problem in (
        (["--head", "4", "A."], "--head 4: this model's heads are 1 to 3"),
        (["--word", "A", "A."], "leave out --word"),
    ):
        assert_one_line_error(run_script(*command, tmp_path / "b.png", *flags), problem)
