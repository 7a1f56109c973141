"""A sampling profiler for the CPU time of a preparation, by stage.

A timer interrupts the program every millisecond; the CPU time since the last interruption counts
for the stage of the innermost function on the stack that has one. So it measures the program
unchanged, at a cost of about 1 % of its time. A long call into C counts for the function that made
it. Not for: several threads, or platforms other than Unix.
"""

import contextlib
import signal
import time
from collections.abc import Iterator
from types import CodeType, FrameType

OTHER = "other"  # start, plan, manifest, and everything without a stage

# Module, or function in it, to its stage; the longest matching name counts. Functions that these
# call count for the same stage unless they have their own.
STAGES = {
    "data_prep.corpus": "read",
    "data_prep.readers": "read",
    "data_prep.sentences": "sentences",
    "data_prep.clauses.cut_texts": "sentences",
    "dist_bert.tokenizer.tokenizer.Tokenizer.encode_batch": "encode",
    "data_prep.token_store.make_unit": "store",
    "data_prep.shard_assignment": "gather",
    "data_prep.token_store.TokenStore.gather": "gather",
    "data_prep.pairs.draw_pairs": "pairs",
    "data_prep.pairs.assemble": "order_and_assemble",
    "data_prep.samples.build_blocks": "order_and_assemble",
    "dist_bert.data.masking": "masks",
    "data_prep.samples.measure": "statistics",
    "dist_bert.data.shard_format.write_shard": "write_shard",
}
_INTERVAL_SECONDS = 0.001


@contextlib.contextmanager
def measured_stages() -> Iterator[dict[str, float]]:
    """Measures the CPU seconds of each stage in the block. Only for the main thread.

    Yields:
        Stage -> seconds, complete after the block; all of `STAGES` and `OTHER`.
    """
    seconds = dict.fromkeys([*STAGES.values(), OTHER], 0.0)
    known: dict[CodeType, str | None] = {}
    last = time.process_time()

    def sample(number: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.process_time()
        seconds[_innermost(frame, known)] += now - last
        last = now

    before = signal.signal(signal.SIGALRM, sample)
    signal.setitimer(signal.ITIMER_REAL, _INTERVAL_SECONDS, _INTERVAL_SECONDS)
    try:
        yield seconds
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
        seconds[OTHER] += time.process_time() - last


def stage_of(function: str) -> str | None:
    """The stage of a function by its full name, such as `data_prep.pairs.assemble`."""
    parts = function.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((STAGES[name] for name in names if name in STAGES), None)


def _innermost(frame: FrameType | None, known: dict[CodeType, str | None]) -> str:
    """The stage of the innermost frame that has one; `known` caches the look-ups."""
    while frame is not None:
        code = frame.f_code
        if code not in known:
            known[code] = stage_of(f"{frame.f_globals.get('__name__')}.{code.co_qualname}")
        if (stage := known[code]) is not None:
            return stage
        frame = frame.f_back
    return OTHER
