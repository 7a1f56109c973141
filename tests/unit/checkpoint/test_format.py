"""Files of a checkpoint: any cut of the parameters is read from any other; damage is seen."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from dist_bert.checkpoint.format import (
    WEIGHT,
    CheckpointReader,
    Fragment,
    FragmentFile,
    export_weights,
    write_state,
)
from dist_bert.common.errors import UserError

SHAPES = {"encoder.word": [13, 7], "encoder.bias": [5], "scale": [1]}


def tensors() -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return {
        name: {
            what: torch.randn(torch.Size(shape).numel(), generator=generator)
            for what in (WEIGHT, "exp_avg")
        }
        for name, shape in SHAPES.items()
    }


def cut(num_ranks: int) -> list[list[Fragment]]:
    """What each rank holds when all parameters are laid end to end and cut into equal parts."""
    everything = [
        (name, i) for name, shape in SHAPES.items() for i in range(torch.Size(shape).numel())
    ]
    size = -(-len(everything) // num_ranks)
    ranks = []
    for begin in range(0, len(everything), size):
        own: dict[str, list[int]] = {}
        for name, i in everything[begin : begin + size]:
            own.setdefault(name, []).append(i)
        ranks.append(
            [
                Fragment(n, i[0], {w: t[i[0] : i[-1] + 1] for w, t in tensors()[n].items()})
                for n, i in own.items()
            ]
        )
    return ranks


def write(folder: Path, num_ranks: int) -> Path:
    folder.mkdir()
    listed = [FragmentFile.write(folder, rank, own) for rank, own in enumerate(cut(num_ranks))]
    contents = {
        "state": {"step": 7},
        "shapes": SHAPES,
        "files": [dataclasses.asdict(file) for file in listed],
    }
    write_state(folder, contents)
    return folder


def test_others_may_read_what_they_might_read_of_any_file(tmp_path: Path) -> None:
    checkpoint = write(tmp_path / "step-000000007", 2)
    export_weights(checkpoint, tmp_path / "model.safetensors")
    (tmp_path / "any").touch()
    usual = (tmp_path / "any").stat().st_mode
    written = [*checkpoint.glob("*.safetensors"), tmp_path / "model.safetensors"]
    assert len(written) == 3 and {path.stat().st_mode for path in written} == {usual}


@pytest.mark.parametrize("written_by", [1, 2, 3, 8])
@pytest.mark.parametrize("read_by", [1, 2, 5, 13])
def test_any_cut_is_read_from_any_other(tmp_path: Path, written_by: int, read_by: int) -> None:
    reader = CheckpointReader(write(tmp_path / "step-000000007", written_by))
    assert len(reader.files) == written_by
    for own in cut(read_by):
        for fragment in own:
            for what, values in fragment.tensors.items():
                found = reader.read(what, fragment.name, fragment.start, fragment.size)
                assert torch.equal(found, values)


def test_weights_come_whole_and_in_their_shapes(tmp_path: Path) -> None:
    weights = CheckpointReader(write(tmp_path / "step-000000007", 3)).weights()
    assert {name: list(value.shape) for name, value in weights.items()} == SHAPES
    for name, values in tensors().items():
        assert torch.equal(weights[name].view(-1), values[WEIGHT])


def test_damage_is_seen(tmp_path: Path) -> None:
    folder = write(tmp_path / "step-000000007", 2)
    first, second = CheckpointReader(folder).files
    assert not first.problem(folder) and not second.problem(folder)
    path = folder / second.file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "00001.safetensors has changed since it was written" in second.problem(folder)
    path.write_bytes(data[:-1])
    assert f"has {len(data) - 1} bytes, was written with {len(data)}" in second.problem(folder)
    path.unlink()
    assert "00001.safetensors is missing" in second.problem(folder)
    assert not first.problem(folder)


def test_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"state": {"step": 3}}')
    with pytest.raises(UserError, match="was written by another version of this program"):
        CheckpointReader(tmp_path)


def test_a_state_that_is_not_what_was_written_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "step-000000007", 2)
    path = folder / "state.json"
    written = json.loads(path.read_text())
    for key, value in (("state", {"step": 8}), ("files", []), ("shapes", {}), ("fingerprint", "")):
        path.write_text(json.dumps({**written, key: value}))
        with pytest.raises(UserError, match="has changed since it was written"):
            CheckpointReader(folder)
    path.write_text(json.dumps({k: v for k, v in written.items() if k != "shapes"}))
    with pytest.raises(UserError, match="has changed since it was written"):
        CheckpointReader(folder)
    for broken in (b"", b"\x00" * 64, path.read_bytes()[:-9], b"[" * 100_000):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"state\.json: is not valid JSON"):
            CheckpointReader(folder)
    path.write_text(json.dumps(written))
    assert CheckpointReader(folder).contents["state"] == {"step": 7}
    folder.rename(tmp_path / "step-000000008")
    with pytest.raises(UserError, match="is that of step 7"):
        CheckpointReader(tmp_path / "step-000000008")


def test_damaged_weights_are_not_given_out(tmp_path: Path) -> None:
    folder = write(tmp_path / "step-000000007", 2)
    path = folder / "fragments-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"00001\.safetensors has changed since it was written"):
        export_weights(folder, tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()
