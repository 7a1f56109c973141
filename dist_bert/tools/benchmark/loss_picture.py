"""Held-out loss against time of runs of ours and of transformers' training, in one picture.

Not for: training the peers (`dist_bert.tools.benchmark.peers`), the curves of a run
(`dist_bert.tools.report`).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from dist_bert.common.errors import UserError
from dist_bert.common.pictures import Curve, write_lines
from dist_bert.common.settings import read_json
from dist_bert.tools.report.run_history import RunHistory, column, read_histories

_LOSS = "validation/mlm_loss"


def draw_losses(path: str, curves: Sequence[Curve]) -> None:
    """Draws masked-LM losses over minutes of training, one line each.

    Args:
        path: of the PNG file.
        curves: in the order of the legend.
    """
    write_lines(path, "minutes of training", "held-out masked LM (nats)", curves)


def peer_curve(name: str, rows: Mapping[str, Mapping[str, float]]) -> Curve:
    """The losses of `peers.train_peer`."""
    minutes, losses = ([row[key] for row in rows.values()] for key in ("minutes", "mlm_loss"))
    return Curve(name, minutes, losses)


def earlier_curves(paths: Sequence[str]) -> list[Curve]:
    """The losses of folders of runs, and of JSON files of this benchmark.

    Of a run, the validations that are of the same data as its last one count; the minutes are those
    of its steps, as the peers' clock stands still while they are scored.

    Raises:
        UserError: a path is neither, or a run has no validation.
    """
    run_dirs = [path for path in paths if not path.endswith(".json")]
    histories = dict(zip(run_dirs, read_histories(run_dirs), strict=True))
    curves = []
    for path in paths:
        curves += [_run_curve(histories[path])] if path in histories else _curves_of_json(path)
    return curves


def _run_curve(history: RunHistory) -> Curve:
    losses = column(history.validation, _LOSS)
    is_comparable = column(history.validation, "step") >= history.comparable_since
    shown = is_comparable & ~np.isnan(losses)
    if not shown.any():
        raise UserError(
            f"{history.name}: has no validation to draw; give the run a validation_interval"
        )
    minutes = 60 * history.validation["hours"][shown]
    return Curve(history.name, minutes.tolist(), losses[shown].tolist())


def _curves_of_json(path: str) -> list[Curve]:
    content = read_json(path)
    try:
        return [peer_curve(name, rows) for name, rows in content["figures"].items()]
    except (AttributeError, KeyError, TypeError):
        raise UserError(
            f"{path}: has no losses by minutes; give the --json of an earlier benchmark of peers"
        ) from None
