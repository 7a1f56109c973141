"""Which of the two exports a run gets: as a pretrained encoder, or as a fine-tuned model.

torch is imported only once something is exported.
"""

from pathlib import Path

from dist_bert.checkpoint.run_dir import (
    BEST_NAME,
    CONFIG_NAME,
    LATEST_NAME,
    require_average,
    require_weights,
    run_folder,
)
from dist_bert.common.errors import UserError
from dist_bert.common.settings import read_json
from dist_bert.finetuning.results import best_run
from dist_bert.huggingface.config import ExportConfig


def find_run(place: Path, is_best: bool, is_average: bool) -> tuple[Path, bool]:
    """What a folder has to export.

    Args:
        place: a run's folder, or one of its checkpoints; or the folder of several fine-tuned runs.
        is_best: of a pretrained run the checkpoint of the lowest validation loss, not the latest.
        is_average: of a pretrained run the average of its weights.

    Returns:
        The folder of a fine-tuned run, or the weights of another; and whether it is fine-tuned.

    Raises:
        UserError: it has no weights, or no average of them where that is asked for.
    """
    config = best_run(place) / CONFIG_NAME
    if config.exists() and "task" in read_json(config):
        if is_average:
            raise UserError(f"--average: {place} is fine-tuned, which leaves none: leave it out")
        return config.parent, True
    weights = require_weights(place, BEST_NAME if is_best else LATEST_NAME)
    if is_average:
        require_average(weights)
    return weights, False


def export_pretrained(place: Path, checkpoint: Path, output_dir: Path, config: ExportConfig) -> str:
    """Exports weights of the run at `place`; returns how they are loaded.

    Raises:
        UserError: it cannot be exported; no folder is left.
    """
    from dist_bert.huggingface.export_pretrained import export
    from dist_bert.huggingface.folder import check_new_folder
    from dist_bert.inference.trained_run import TrainedRun

    check_new_folder(output_dir)
    trained = TrainedRun.load(checkpoint, is_average=config.average)
    num_parameters = sum(parameter.numel() for parameter in trained.model.parameters())
    print(f"exporting  {checkpoint}: {num_parameters / 1e6:.1f} M parameters", flush=True)
    folder = run_folder(place)
    export(
        trained,
        folder,
        output_dir,
        config.sample_text,
        config.allow_differences,
        config.onnx,
        config.sentence_transformers,
        config.normalize,
    )
    return f'load it with AutoModel.from_pretrained("{output_dir}")'


def export_finetuned(run_dir: Path, output_dir: Path, config: ExportConfig) -> str:
    """Exports a fine-tuned run; returns where its use is described.

    Raises:
        UserError: it cannot be exported; no folder is left.
    """
    from dist_bert.finetuning.predict import FineTunedModel
    from dist_bert.huggingface.folder import check_new_folder

    check_new_folder(output_dir)  # before the next, which imports transformers' tokenizers
    from dist_bert.huggingface.export_finetuned import export_finetuned

    model = FineTunedModel.load(run_dir)
    num_parameters = sum(parameter.numel() for parameter in model.head.parameters())
    print(f"exporting  {run_dir}: {num_parameters / 1e6:.1f} M parameters", flush=True)
    export_finetuned(model, output_dir, config.sample_text, config.allow_differences, config.onnx)
    return "its README.md says how it is used"
