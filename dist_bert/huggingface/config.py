"""The settings of an export and of an import. Not for: what they do with them."""

import dataclasses

from dist_bert.common.settings import setting


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """How a run is exported."""

    best: bool = setting(
        False,
        "export the checkpoint of the lowest validation loss, not the latest (of a fine-tuned run"
        " there is only the best)",
    )
    average: bool = setting(
        False, "export the average of the weights, of a pretrained run with average_decay"
    )
    sample_text: str | None = setting(
        None,
        "texts, one a line, whose token ids are compared (default: those of the run's shards; of a"
        " fine-tuned run, besides its examples)",
        metavar="FILE",
    )
    allow_differences: bool = setting(
        False, "export although some texts have other token ids in transformers"
    )
    onnx: bool = setting(False, "write model.onnx too, which runs without PyTorch")


@dataclasses.dataclass(frozen=True)
class ImportConfig:
    """How a published model is imported."""

    sample_text: str | None = setting(
        None,
        "texts, one a line, whose token ids are compared, too (always: odd texts, and lines in"
        " which every piece of the vocabulary stands once)",
        metavar="FILE",
    )
    allow_differences: bool = setting(
        False, "import although some texts have other token ids in transformers"
    )
