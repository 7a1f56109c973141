"""Where a run's first weights come from, found and checked before anything slow; no torch.

The weights are those of a run of ours or of a folder in Hugging Face layout. Not for: reading them
(`dist_bert.checkpoint.weights`).
"""

import dataclasses
from pathlib import Path
from typing import Any

from dist_bert.checkpoint.run_dir import (
    CHECKPOINTS_NAME,
    CONFIG_NAME,
    TOKENIZER_NAME,
    latest_checkpoint,
    require_average,
    require_checkpoint,
    run_folder,
)
from dist_bert.common import files
from dist_bert.common.errors import UserError
from dist_bert.common.settings import from_dict, read_json
from dist_bert.model.config import ModelConfig
from dist_bert.model.published_config import from_published_config
from dist_bert.tokenizer.kind import kind_of

PUBLISHED_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
_PICKLE_NAME = "pytorch_model.bin"
# Settings of a model that weights leave free, or whose sizes have rules of their own, below.
_FREE = (
    "vocab_size",
    "max_position_embeddings",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
)
_FIXED = tuple(f.name for f in dataclasses.fields(ModelConfig) if f.name not in _FREE)
_MLM_ACTIVATION = "mlm_hidden_act"
_MLM_HEAD = ("cls.predictions.transform.", "decoder.bias")  # of BERT, of ModernBERT


@dataclasses.dataclass(frozen=True)
class WeightSource:
    """Weights on disk, and what a model must be to take them."""

    path: Path  # as given
    checkpoint: Path | None  # of a run of ours; None for published weights
    tensor_files: tuple[Path, ...]  # where there is no checkpoint
    model: ModelConfig
    tokenizer: Path | None  # that made the ids; None where published weights come without one
    is_published: bool  # under published names, not ours
    is_average: bool = False  # the average of the checkpoint's weights

    @classmethod
    def find(
        cls, path: str | Path, flag: str = "--init_from", is_average: bool = False
    ) -> "WeightSource":
        """Finds what is at a path.

        Args:
            path: a run's folder or one of its checkpoints, or a folder, safetensors file or index
                in Hugging Face layout. A run that has ended may have its weights file alone.
            flag: that names the path, for messages.
            is_average: take the average of a checkpoint's weights.

        Raises:
            UserError: there are no weights, they are of a kind that cannot be read, or they have
                no average where that is asked for.
        """
        path = Path(path)
        run = run_folder(path)
        if (run / CHECKPOINTS_NAME).is_dir():
            source = cls._of_run(path, run, flag)
            if is_average and source.checkpoint is not None:
                require_average(source.checkpoint)
            return dataclasses.replace(source, is_average=is_average)
        if is_average:
            require_average(path)
        folder = path if path.is_dir() else path.parent
        config = folder / CONFIG_NAME
        tensor_files = _tensor_files(path, flag)
        if not config.exists():
            raise UserError(f"{flag} {path}: {config} is missing: put the model's one there")
        tokenizer = folder / TOKENIZER_NAME
        is_published = "model" not in read_json(config)
        model = (
            from_published_config(read_json(config), str(config))
            if is_published
            else _model_of_run(config)
        )
        known_tokenizer = tokenizer if tokenizer.exists() else _byte_level_file(folder)
        return cls(path, None, tensor_files, model, known_tokenizer, is_published)

    @classmethod
    def _of_run(cls, path: Path, run: Path, flag: str) -> "WeightSource":
        if latest_checkpoint(run) is None:
            raise UserError(
                f"{flag} {path}: has no checkpoint yet: give a run that has saved at least once"
            )
        checkpoint = require_checkpoint(path)
        model = _model_of_run(run / CONFIG_NAME)
        return cls(path, checkpoint, (), model, run / TOKENIZER_NAME, is_published=False)

    def problems(
        self,
        model: ModelConfig,
        tokenizer: dict[str, Any],
        extend_positions: bool,
        parts: str = "all",
    ) -> list[str]:
        """All in which the weights do not fit a run.

        Args:
            model: of the run.
            tokenizer: the entry of that name in the manifest of the run's shards.
            extend_positions: whether a table of positions may be made longer.
            parts: all, or the word embeddings alone, whose width must fit.
        """
        names = [
            name
            for name in (*(_FIXED if parts == "all" else ("hidden_size",)), "vocab_size")
            if getattr(model, name) != getattr(self.model, name)
        ]
        if _MLM_ACTIVATION in names and not self._has_mlm_head():
            names.remove(_MLM_ACTIVATION)  # of a head that will be new
        differences = [
            f"{name} is {getattr(model, name)!r}, the weights have {getattr(self.model, name)!r}"
            for name in names
        ]
        problems = []
        if differences:
            remedy = "give the model the weights' architecture"
            sizes = [(m.hidden_size, m.vocab_size) for m in (model, self.model)]
            if parts == "all" and sizes[0] == sizes[1]:
                remedy += ", or set --init_parts embeddings to take the word embeddings alone"
            problems.append(f"{'; '.join(differences)}: {remedy}")
        saved, wanted = self.model.max_position_embeddings, model.max_position_embeddings
        has_table = parts == "all" and model.positions == "learned"
        if has_table and wanted > saved and not extend_positions:
            problems.append(
                f"max_position_embeddings = {wanted} is above the weights' {saved}: set"
                f" --extend_positions true to repeat them, or --max_position_embeddings {saved}"
            )
        problems += self._tokenizer_problems(tokenizer)
        return [f"--init_from {self.path}: {problem}" for problem in problems]

    def _has_mlm_head(self) -> bool:
        """Whether there are weights to which the MLM head's activation belongs."""
        if not self.is_published:
            return True
        from safetensors import SafetensorError, safe_open

        for path in self.tensor_files:
            try:
                with safe_open(path, "numpy") as file:
                    if any(name.startswith(_MLM_HEAD) for name in file.keys()):  # noqa: SIM118
                        return True
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path}: cannot be read ({error}): fetch it again") from None
        return False

    def _tokenizer_problems(self, tokenizer: dict[str, Any]) -> list[str]:
        if self.tokenizer is None:
            rows, num_pieces = self.model.vocab_size, tokenizer["vocab_size"]
            if rows == num_pieces:
                return []
            return [
                f"vocab_size: the weights have {rows} rows and the shards' tokenizer {num_pieces}"
                " pieces, so their ids mean different things: import the model with `python"
                " launch/import_model.py`, and prepare the shards with its tokenizer"
            ]
        if not self.tokenizer.exists():
            return [f"{self.tokenizer} is missing: copy there the tokenizer of the weights"]
        if files.sha256_of_file(self.tokenizer) == tokenizer["fingerprint"]:
            return []
        return [
            f"{self.tokenizer} is not the tokenizer that made the shards, so their ids mean"
            f" different things: prepare the shards with --tokenizer {self.tokenizer}"
        ]


def _model_of_run(path: Path) -> ModelConfig:
    return from_dict(ModelConfig, read_json(path).get("model", {}), str(path))


def _byte_level_file(folder: Path) -> Path | None:
    """The tokenizer.json of a published folder, if it is used as it is: of byte-level BPE."""
    path = folder / "tokenizer.json"
    return path if path.exists() and kind_of(path.read_bytes()) == "byte-level BPE" else None


def _tensor_files(path: Path, flag: str) -> tuple[Path, ...]:
    """The safetensors files at a path; only the path itself where that is a file."""
    if not path.exists():
        raise UserError(
            f"{flag} {path}: does not exist: give a run's folder, one of its checkpoints or weights"
        )
    if path.suffix == ".safetensors":
        return (path,)
    if (path / PUBLISHED_NAME).exists():
        return (path / PUBLISHED_NAME,)
    index = path if path.name.endswith(".safetensors.index.json") else path / INDEX_NAME
    if index.exists():
        return _indexed_files(index)
    if path.suffix == ".bin" or (path / _PICKLE_NAME).exists():
        raise UserError(
            f"{flag} {path}: {_PICKLE_NAME} is a pickle, which can run code, and is not read:"
            " convert it with transformers, BertForPreTraining.from_pretrained(FOLDER)"
            ".save_pretrained(NEW_FOLDER)"
        )
    raise UserError(
        f"{flag} {path}: holds neither {CHECKPOINTS_NAME}/ of a run nor {PUBLISHED_NAME}:"
        " give a run's folder or weights in Hugging Face layout"
    )


def _indexed_files(index: Path) -> tuple[Path, ...]:
    """The safetensors files that an index names, which are next to it."""
    value = read_json(index)
    for name in ("metadata", "weight_map"):  # transformers needs both
        if not isinstance(value.get(name), dict):
            raise UserError(f"{index}: has no object {name}: fetch it again")
    named = value["weight_map"].values()
    if not all(isinstance(name, str) and Path(name).name == name for name in named):
        raise UserError(f"{index}: weight_map must name files of its own folder: fetch it again")
    names = sorted(set(named))
    missing = [name for name in names if not (index.parent / name).exists()]
    if missing or not names:
        listed = ", ".join(ascii(name)[1:-1] for name in missing) or "no file"
        raise UserError(f"{index}: names {listed}: fetch all again")
    return tuple(index.parent / name for name in names)
