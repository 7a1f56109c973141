"""The phases of a run as a table, as metrics of a step, and what is unusual about them."""

from dist_bert.common.text_tables import aligned
from dist_bert.data import document_sketch
from dist_bert.data.mixture import Mixture
from dist_bert.pretraining.job import PretrainingJob
from dist_bert.pretraining.timeline import Corpus, PhasePlan, Timeline

# Devlin et al. 2019, section A.2: "approximately 40 epochs".
_MANY_EPOCHS = 40


def phase_values(job: PretrainingJob, step: int) -> dict[str, float]:
    """Metrics of a step that follow from its number; none of a run without phases or ramps."""
    timeline = job.timeline
    phase = timeline.phase_of(step)
    rate = phase.masked_lm_prob(step - phase.first_step)
    values = {"progress/masked_lm_prob": rate} if rate else {}
    if job.run.recipe or len(phase.stages) > 1:
        values["progress/batch_size"] = float(timeline.shape_at(step).global_batch_size)
    if job.run.recipe:
        values["progress/phase"] = float(timeline.phases.index(phase) + 1)
        in_phase = timeline.samples_before(step + 1) - phase.first_sample
        counts = Mixture(phase.weights).counts(in_phase)
        for corpus, before, own in zip(phase.corpora, phase.consumed, counts, strict=True):
            values[f"progress/epochs/{corpus.name}"] = (before + own) / corpus.num_samples
    return values


def timeline_table(timeline: Timeline, peak_lr: float) -> str:
    """All phases, a row each: length, batch, lr and masks from their first to their last step."""
    rows = [_row(timeline, number, peak_lr) for number in range(len(timeline.phases))]
    return aligned([list(rows[0]), *(list(row.values()) for row in rows)])


def _row(timeline: Timeline, number: int, peak_lr: float) -> dict[str, str]:
    phase = timeline.phases[number]
    first, last = phase.first_step + 1, phase.last_step
    sizes = [stage.shape.global_batch_size for stage in phase.stages]
    rates = [phase.masked_lm_prob(1), phase.masked_lm_prob(phase.num_steps)]
    lrs = [peak_lr * timeline.lr_share(step) for step in _turns(timeline, phase)]
    return {
        "phase": phase.settings.name or "1",
        "steps": f"{first:,} to {last:,}",
        "samples": f"{phase.num_samples:,}",
        "tokens": f"{phase.num_samples * phase.tokens_per_sample:,.0f}",
        "longest": f"{phase.sequence_length:,}",
        "batch": _span([f"{size:,}" for size in (sizes[0], sizes[-1])]),
        "lr": _span([f"{lr:.2e}" for lr in lrs]),
        "masked": _span([f"{rate:.1%}" if rate else "stored" for rate in rates]),
        "shares and epochs at its end": ", ".join(
            f"{corpus.name} {weight / sum(phase.weights):.1%} {consumed / corpus.num_samples:.2f}"
            for corpus, weight, consumed in _corpora(phase)
        ),
    }


def _turns(timeline: Timeline, phase: PhasePlan) -> list[int]:
    """The steps between which the learning rate of a phase has a shape of its own."""
    schedule, offset = (timeline.lr, 0) if phase.lr is None else (phase.lr, phase.first_step)
    decay = schedule.num_steps - (schedule.decay_steps or 0)
    turns = {offset + schedule.warmup_steps, offset + decay}
    inner = {step for step in turns if phase.first_step + 1 < step < phase.last_step}
    return sorted({phase.first_step + 1, *inner, phase.last_step})


def _span(values: list[str]) -> str:
    """From the first to the last value; one where all are equal."""
    kept = [value for n, value in enumerate(values) if n == 0 or value != values[n - 1]]
    return " to ".join(kept)


def _corpora(phase: PhasePlan) -> list[tuple[Corpus, float, int]]:
    return list(zip(phase.corpora, phase.weights, phase.consumed_at_end, strict=True))


def warnings_of(timeline: Timeline) -> list[str]:
    """What is unusual: a data set seen very often, or text that two of one mixture share."""
    most: dict[str, tuple[float, str]] = {}
    shared: dict[str, str] = {}
    for phase in timeline.phases:
        for corpus, _, consumed in _corpora(phase):
            most[corpus.name] = consumed / corpus.num_samples, phase.settings.name or "1"
        for names, told in _shared_texts(phase).items():
            shared.setdefault(names, told)
    return [
        f"{name} is seen {epochs:.1f} times until the end of phase {phase}, more than BERT's"
        f" {_MANY_EPOCHS}: give it a lower weight, or fewer steps"
        for name, (epochs, phase) in most.items()
        if epochs > _MANY_EPOCHS
    ] + list(shared.values())


def _shared_texts(phase: PhasePlan) -> dict[str, str]:
    """Pairs of data sets of a mixture that have text in common, and a warning."""
    found = {}
    for number, own in enumerate(phase.corpora):
        for other in phase.corpora[:number]:
            if shared := _shared_inputs(other, own) or _shared_documents(other, own):
                names = f"{other.name} and {own.name}"
                found[names] = (
                    f"{names} of phase {phase.settings.name or 1} have {shared}: their text counts"
                    " twice, and may be in the training samples of one and the held-out ones of"
                    " the other"
                )
    return found


def _shared_inputs(one: Corpus, other: Corpus) -> str:
    """The input files from which both were prepared, in words; "" if there are none."""
    paths = [
        {
            (entry.get("sha256"), entry.get("start")): entry.get("path")
            for entry in c.manifest.inputs
        }
        for c in (one, other)
    ]
    shared = [paths[1][key] for key in paths[1] if key in paths[0]]
    return f"{len(shared):,} input files in common, such as {shared[0]}" if shared else ""


def _shared_documents(one: Corpus, other: Corpus) -> str:
    """About how many documents both have, in words; "" if none are seen."""
    totals = [corpus.manifest.totals for corpus in (one, other)]
    if not all("document_sketch" in values for values in totals):  # written by an earlier version
        return ""
    sketches = [document_sketch.decoded(values["document_sketch"]) for values in totals]
    count = document_sketch.num_in_common(*sketches)
    if not count:
        return ""
    fewest = min((one, other), key=lambda c: c.manifest.totals["documents"])
    share = min(1.0, count / fewest.manifest.totals["documents"])
    return f"about {count:,.0f} documents in common, {share:.1%} of {fewest.name}"
