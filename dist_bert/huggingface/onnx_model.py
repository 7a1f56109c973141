"""Exports a transformers model as an ONNX file, which runs without PyTorch.

Not for: writing the other files of the folder (`dist_bert.huggingface.folder`).

Letters: B samples of a batch, S padded length.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dist_bert.common import files
from dist_bert.common.errors import UserError
from dist_bert.tokenizer.config import SPECIAL_PIECES

ONNX_NAME = "model.onnx"
_OPSET = 20  # the first with GELU as one operator
_MAX_DIFFERENCE = 1e-3
_LONG = 1_024  # tokens, to compare: no weight belongs to a position of ModernBERT
# A protobuf file is limited to 2 GiB; the weights of a larger model go into another file.
_MAX_FILE_BYTES = 2_000_000_000


def check_onnx() -> None:
    """Checks before slow work whether ONNX files can be written and verified.

    Raises:
        UserError: a package is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--onnx true: {error.name} is not installed: pip install -c constraints.txt -e"
            " '.[onnx,huggingface]'"
        ) from None


def write_onnx(model: Any, folder: Path) -> str:
    """Writes FOLDER/model.onnx for batches of any size and length, and compares its outputs.

    Args:
        model: of transformers, float32, in evaluation mode. Its inputs become those of the file,
            int64 (B, S); its outputs have their names.
        folder: must exist.

    Returns:
        The result as text.

    Raises:
        UserError: onnxruntime's outputs differ.
    """
    import onnxruntime

    path = folder / ONNX_NAME
    longest: int = model.config.max_position_embeddings
    batch = _batch(model.config, 2, min(8, longest))
    with torch.no_grad():
        names = list(model(**batch))
    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=longest)}
    num_bytes = sum(4 * parameter.numel() for parameter in model.parameters())
    with _quiet():
        torch.onnx.export(
            model,
            (),
            path,
            kwargs=batch,
            input_names=list(batch),
            output_names=names,
            dynamic_shapes={name: shape for name in batch},
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
            external_data=num_bytes > _MAX_FILE_BYTES,
        )
    for written in folder.glob(f"{ONNX_NAME}*"):
        files.fsync(written)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    window = getattr(model.config, "local_attention", None)  # tokens that a local layer attends to
    compared = longest if window is None else min(longest, max(_LONG, 2 * window))
    sizes = ((1, 2), (3, min(13, longest)), (2, compared))
    batches = (_batch(model.config, *size) for size in sizes)
    differences = torch.stack([_difference(model, session, batch) for batch in batches])
    found = float(differences.max())  # torch's max keeps a NaN, Python's may lose it
    told = (
        f"{', '.join(names)} of onnxruntime: largest difference {found:.1e} at"
        f" {', '.join(f'{samples} x {length}' for samples, length in sizes)} tokens"
    )
    if not found <= _MAX_DIFFERENCE:
        raise UserError(
            f"{told}, must be at most {_MAX_DIFFERENCE:g}; install the versions of constraints.txt"
        )
    return told


def _batch(config: Any, num_samples: int, length: int) -> dict[str, Tensor]:
    """Random pieces; all samples except the first are padded, each more than the one before."""
    shape = (num_samples, length)
    drawn = torch.Generator().manual_seed(length)
    places = torch.arange(length).expand(shape)
    lengths = length - torch.arange(num_samples)[:, None] * (length // (num_samples + 1))
    batch = {
        "input_ids": torch.randint(len(SPECIAL_PIECES), config.vocab_size, shape, generator=drawn),
        "attention_mask": (places < lengths).long(),
    }
    if num_segments := getattr(config, "type_vocab_size", 0):
        batch["token_type_ids"] = ((places >= length // 3) & (num_segments > 1)).long()
    return batch


def _difference(model: Any, session: Any, batch: dict[str, Tensor]) -> Tensor:
    """The largest difference between outputs for equal inputs.

    Not at padding: whose window holds no token attends to nothing, of which softmax has no value.
    """
    given = {name: value.numpy() for name, value in batch.items()}
    is_token = batch["attention_mask"].bool()
    with torch.no_grad():
        expected = model(**batch)
    differences = []
    for (name, theirs), ours in zip(expected.items(), session.run(None, given), strict=True):
        found = (torch.from_numpy(ours) - theirs).abs()
        is_of_tokens = found.ndim > 2 or name in ("start_logits", "end_logits")
        differences.append((found[is_token] if is_of_tokens else found).max())
    return torch.stack(differences).max()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses torch's remarks on unneeded packages and generated names."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
