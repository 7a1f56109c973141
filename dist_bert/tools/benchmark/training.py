"""Our training step beside what one would take instead: the same samples, in turns, in one process.

- ours: unpadded micro-batches, sorted by length over the global batch, in DeepSpeed's engine
- compiled: ours with compiled layers (GPUs)
- float8: compiled, with products of the layers in 8 bits (GPUs since Ada and Hopper)
- flash_attention_3: ours with FlashAttention 3's kernels (Hopper GPUs)
- plain_torch: the same model and micro-batches without DeepSpeed: what the engine costs (one rank)
- transformers: its `BertForPreTraining`, or `ModernBertForMaskedLM`, in DeepSpeed's engine,
  micro-batches as the samples come, padded to the longest of each, with torch's best attention
- transformers_sorted: the same, given our sorting by length
- transformers_sparse: `ModernBertForMaskedLM` told to score masked positions alone, as ours always
  does; by default it scores all

Letters: G samples of a global batch, M of a micro-batch, S longest sample, P masked positions.
"""

import copy
import ctypes
import dataclasses
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from dist_bert.common.device import has_gpu, run_device
from dist_bert.common.errors import UserError
from dist_bert.common.prefetch import prefetch
from dist_bert.data.batches import NO_LABEL, BatchShape, MicroBatch, StepBatch
from dist_bert.data.masking import MaskingVocabulary
from dist_bert.data.pretraining_batches import FreshMasks, training_batches
from dist_bert.data.reader import SampleReader
from dist_bert.data.sample_order import WINDOW_BLOCKS, SampleOrder
from dist_bert.inference.trained_run import DTYPES
from dist_bert.model.attention import use_flash_attention_3
from dist_bert.model.bert import BertForPreTraining
from dist_bert.model.config import ModelConfig
from dist_bert.model.float8 import use_float8
from dist_bert.model.flops import attention_pairs, matmul_roofline, peak_flops, training_flops
from dist_bert.model.micro_batches import to_device
from dist_bert.model.products import converts
from dist_bert.model.published_config import require_published_form, to_published_config
from dist_bert.tokenizer.tokenizer import PAD_ID
from dist_bert.tools.benchmark.step_profile import shares_of_parts
from dist_bert.training.deepspeed_config import DeepSpeedConfig
from dist_bert.training.engine import build_engine
from dist_bert.training.optimizer import parameter_groups
from dist_bert.training.skipped_steps import gradient_factor

OURS = "ours"
COMPILED, FLOAT8, FLASH_3 = "compiled", "float8", "flash_attention_3"
OURS_OTHERWISE, SPARSE = (COMPILED, FLOAT8, FLASH_3), "transformers_sparse"
NAMES = (OURS, *OURS_OTHERWISE, "plain_torch", "transformers", "transformers_sorted", SPARSE)
MODERN_INPUTS = ("input_ids", "attention_mask", "labels")  # no segments, no pairs of them
_STATUS = Path("/proc/self/status")  # Linux


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way to do an optimizer step on this rank's part of the global batch."""

    step: Callable[[], None]
    engine: Any = None  # DeepSpeed's, where it has one


def compare_steps(
    names: list[str],
    reader: SampleReader,
    model: ModelConfig,
    deepspeed: DeepSpeedConfig,
    *,
    rounds: int,
    device_peak: float,
    report: Callable[[str], None],
) -> dict[str, dict[str, dict[str, float]]]:
    """Measures optimizer steps over one global batch; called by all ranks together.

    Args:
        names: of `NAMES`; ours is always there.
        reader: of the training split.
        model: the architecture, with its dropout, of all contestants.
        deepspeed: batch sizes, optimizer, precision and ZeRO stage of all contestants.
        rounds: in which they take turns; the median counts.
        device_peak: FLOP/s of one device, for MFU.
        report: is told what is being done.

    Returns:
        Two tables. `steps`: contestant -> figures, over all ranks; `ours_is_faster` compares the
        seconds of each round and is their median; `peak_gib` is what a step takes beside weights
        and optimizer state, on this rank. `parts`: shares of the time of our step on this rank.
    """
    batch = first_batch(reader, deepspeed.batch_shape)
    contestants = {}
    for name in (OURS, *(name for name in NAMES if name in names and name != OURS)):
        report(f"making {name}")
        contestants[name] = _make(name, reader, batch, model, deepspeed)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    peaks: dict[str, float] = {}
    for number in range(rounds + 1):  # the first one pays for set-up
        for name, contestant in contestants.items():
            report(f"round {number} of {rounds}: {name}" if number else f"warming up {name}")
            elapsed, peaks[name] = measure(contestant.step)
            if number:
                seconds[name].append(elapsed)
    flops = training_flops(
        model,
        batch.num_tokens,
        int(attention_pairs(model, batch.lengths).sum()),
        batch.num_masked,
        batch.num_samples if reader.has_pairs else 0,
    )
    # A busy machine measures its peak too low: what was reached is possible, too.
    reached = max(flops / min(taken) for taken in seconds.values())
    peak = max(device_peak * dist.get_world_size(), reached)
    steps = {}
    for name, taken in seconds.items():
        median = statistics.median(taken)
        steps[name] = {
            "seconds": median,
            "tokens_per_second": batch.num_tokens / median,
            "samples_per_second": batch.num_samples / median,
            "mfu": flops / median / peak,
            "peak_gib": peaks[name] / 2**30,
            "ours_is_faster": statistics.median(
                other / ours for other, ours in zip(taken, seconds[OURS], strict=True)
            ),
        }
    report("profiling ours")
    ours = contestants[OURS]
    return {"steps": steps, "parts": {OURS: shares_of_parts(ours.step, ours.engine)}}


def peaks(precision: str, measure_roofline: bool) -> dict[str, float]:
    """Peak TFLOP/s of one device, and what matrix products reach on it if that is asked for."""
    device = run_device()
    dtype = torch.float32 if converts(device, DTYPES[precision]) else DTYPES[precision]
    found = {"peak_tflops": peak_flops(device, precision) / 1e12}
    if measure_roofline:
        found["matmul_tflops"] = matmul_roofline(device, dtype) / 1e12
    return found


def measure_loader(
    reader: SampleReader,
    vocabulary: MaskingVocabulary,
    shape: BatchShape,
    samples_per_second: float,
) -> dict[str, float]:
    """How long training would wait for data if each rank took so many samples a second.

    The loop's place is taken by a pause, as when a GPU computes; masks are drawn anew, which is the
    slower kind of epoch.

    Args:
        reader: of the training split.
        vocabulary: of the tokenizer that made the shards.
        shape: how a global batch is cut.
        samples_per_second: of one rank.
    """
    masks = FreshMasks(vocabulary, seed=0)
    start = reader.num_samples  # the second epoch

    def stream() -> Iterator[StepBatch]:
        return training_batches(reader, _order(reader), shape, dist.get_rank(), start, masks)

    rank_samples = shape.global_batch_size // shape.world_size
    window = int(reader.block_sizes[:WINDOW_BLOCKS].sum())
    num_steps = 3 * window // (2 * shape.global_batch_size)  # the border of two windows is in it
    batches = prefetch(stream())
    next(batches)
    waited, begin = 0.0, time.perf_counter()
    for _ in range(num_steps):
        step_begin = time.perf_counter()
        next(batches)
        step_waited = time.perf_counter() - step_begin
        waited += step_waited
        time.sleep(max(0.0, rank_samples / samples_per_second - step_waited))
    share = waited / (time.perf_counter() - begin)
    batches.close()
    unhindered = stream()
    next(unhindered)
    begin = time.perf_counter()
    for _ in range(num_steps):
        next(unhindered)
    rate = num_steps * rank_samples / (time.perf_counter() - begin)
    return {"data_wait_share": share, "samples_per_second_at_most": rate}


def first_batch(reader: SampleReader, shape: BatchShape) -> StepBatch:
    """This rank's part of the first global batch."""
    return next(training_batches(reader, _order(reader), shape, dist.get_rank(), 0))


def _order(reader: SampleReader) -> SampleOrder:
    return SampleOrder(reader.shard_of_block, reader.block_sizes, seed=0)


def _make(
    name: str,
    reader: SampleReader,
    batch: StepBatch,
    model: ModelConfig,
    deepspeed: DeepSpeedConfig,
) -> Contestant:
    torch.manual_seed(0)
    if name in (OURS, *OURS_OTHERWISE):
        bert = BertForPreTraining(model)
        if name == FLOAT8:
            use_float8(bert.encoder.layers)
        if name in (COMPILED, FLOAT8):
            bert.encoder.compile_layers()
        engine = build_engine(bert, deepspeed)
        step = _flash_attention_3_step if name == FLASH_3 else our_step
        return Contestant(lambda: step(engine, batch.micro_batches), engine)
    if name == "plain_torch":
        return Contestant(_plain_torch_step(BertForPreTraining(model), batch, deepspeed))
    if name == SPARSE and model.architecture != "modern":
        raise UserError(f"--against {SPARSE}: is of modern models; leave it out for this one")
    engine = build_engine(transformers_model(model, is_sparse=name == SPARSE), deepspeed)
    is_sorted = name == "transformers_sorted"
    padded = padded_batches(reader, deepspeed.batch_shape, dist.get_rank(), is_sorted)
    if model.architecture == "modern":
        padded = [{name: batch[name] for name in MODERN_INPUTS} for batch in padded]
    return Contestant(lambda: _transformers_step(engine, padded), engine)


def our_step(engine: Any, micro_batches: list[MicroBatch]) -> None:
    """An optimizer step as in `dist_bert.training.loop`."""
    for micro_batch in micro_batches:
        loss, _ = engine(**to_device(micro_batch, engine.device))
        factor = gradient_factor(loss, dist.get_world_size())
        engine.backward(loss * factor, scale_wrt_gas=False)
        engine.step()


def _flash_attention_3_step(engine: Any, micro_batches: list[MicroBatch]) -> None:
    use_flash_attention_3()
    try:
        our_step(engine, micro_batches)
    finally:
        torch.nn.attention.restore_flash_attention_impl()


def _transformers_step(engine: Any, micro_batches: list[MicroBatch]) -> None:
    for micro_batch in micro_batches:
        engine.backward(engine(**to_device(micro_batch, engine.device)).loss)
        engine.step()


def _plain_torch_step(
    model: nn.Module, batch: StepBatch, deepspeed: DeepSpeedConfig
) -> Callable[[], None]:
    """A step without DeepSpeed: weights in its precision, master weights and AdamW in float32."""
    device = run_device()
    master = model.to(device)
    weights = copy.deepcopy(master).to(DTYPES[deepspeed.precision]).train()
    settings = deepspeed.values["optimizer"]["params"]
    optimizer = torch.optim.AdamW(
        parameter_groups(master, deepspeed.weight_decay),
        lr=settings["lr"],
        betas=settings.get("betas", (0.9, 0.999)),
        eps=settings.get("eps", 1e-8),
        fused=True,
    )
    clip = deepspeed.gradient_clipping

    def step() -> None:
        for micro_batch in batch.micro_batches:
            loss, _ = weights(**to_device(micro_batch, device))
            loss.backward()
        for own, used in zip(master.parameters(), weights.parameters(), strict=True):
            own.grad = used.grad.float() if used.grad is not None else None
            used.grad = None
        if clip:
            nn.utils.clip_grad_norm_(master.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for own, used in zip(master.parameters(), weights.parameters(), strict=True):
                used.copy_(own)

    return step


def transformers_model(model: ModelConfig, is_sparse: bool = False) -> nn.Module:
    """The model of transformers that has the same parts, with random weights.

    Args:
        model: what it is made like.
        is_sparse: whether a modern one scores masked positions alone; BERT's scores all.

    Raises:
        UserError: transformers is missing, or has no such model.
    """
    try:
        import transformers
    except ImportError:
        raise UserError(
            "transformers is not installed: pip install -c constraints.txt transformers; a training"
            " benchmark can leave it out with --against plain_torch"
        ) from None
    require_published_form(model)
    if model.architecture == "bert" and model.positions == "rotary":
        raise UserError(
            "transformers has no BERT with rotary positions: give another --model; a training"
            " benchmark can leave it out with --against plain_torch"
        )
    published = to_published_config(model)
    made: nn.Module
    if model.architecture == "modern":
        config = transformers.ModernBertConfig(
            attn_implementation="sdpa",
            pad_token_id=PAD_ID,  # its own would lie behind the end of a smaller vocabulary
            sparse_prediction=is_sparse,
            **published,
        )
        made = transformers.ModernBertForMaskedLM(config)
    else:
        config = transformers.BertConfig(attn_implementation="sdpa", **published)
        made = transformers.BertForPreTraining(config)
    return made


def padded_batches(
    reader: SampleReader, shape: BatchShape, rank: int, is_sorted: bool
) -> list[MicroBatch]:
    """A rank's part of the first global batch as `transformers` takes it."""
    _, blocks, rows = _order(reader).locate(0, shape.global_batch_size)
    if is_sorted:
        lengths = reader.gather(blocks, rows, ("num_tokens",))["num_tokens"].astype(np.int64)
        longest_first = np.argsort(-lengths, kind="stable")
        blocks, rows = blocks[longest_first], rows[longest_first]
    own = slice(rank, None, shape.world_size)
    blocks, rows = blocks[own], rows[own]
    size = shape.micro_batch_size
    return [
        padded_inputs(reader.gather(blocks[begin : begin + size], rows[begin : begin + size]))
        for begin in range(0, blocks.size, size)
    ]


def padded_inputs(columns: dict[str, np.ndarray[Any, Any]]) -> MicroBatch:
    """Samples as the padded arguments of `transformers.BertForPreTraining`, (M, S) each."""
    num_tokens = columns["num_tokens"].astype(np.int64)
    place = np.arange(num_tokens.max())
    is_token = place < num_tokens[:, None]  # (M, S)
    labels = np.full(is_token.shape, NO_LABEL, np.int64)
    is_masked = np.arange(columns["masked_lm_positions"].shape[1]) < columns["num_masked"][:, None]
    sample, prediction = np.nonzero(is_masked)
    positions = columns["masked_lm_positions"][sample, prediction]
    labels[sample, positions] = columns["masked_lm_labels"][sample, prediction]
    return {
        "input_ids": columns["input_ids"][:, : place.size].astype(np.int64),
        "attention_mask": is_token.astype(np.int64),
        "token_type_ids": (is_token & (place >= columns["segment_b_start"][:, None])).astype(int),
        "labels": labels,
        "next_sentence_label": columns["next_sentence_label"].astype(np.int64),
    }


def measure(step: Callable[[], None]) -> tuple[float, float]:
    """Seconds of a step over all ranks, and the bytes that it needs at its peak on this one."""
    _give_back_memory()
    before = _memory_bytes("VmRSS")
    dist.barrier()
    begin = time.perf_counter()
    step()
    if has_gpu():
        torch.cuda.synchronize()
    dist.barrier()
    seconds = time.perf_counter() - begin
    return seconds, max(0.0, _memory_bytes("VmHWM") - before)


def _give_back_memory() -> None:
    """So that the next peak is a step's own."""
    if has_gpu():
        torch.cuda.reset_peak_memory_stats()
    elif _STATUS.exists():
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is the present size again


def _memory_bytes(field: str) -> float:
    """Memory in use (VmRSS) or its peak (VmHWM): of the GPU, or this process; NaN if unknown."""
    if has_gpu():
        is_peak = field == "VmHWM"
        return float(
            torch.cuda.max_memory_allocated() if is_peak else torch.cuda.memory_allocated()
        )
    if not _STATUS.exists():
        return float("nan")
    found = re.search(rf"{field}:\s+(\d+) kB", _STATUS.read_text())
    return int(found[1]) * 1_024.0 if found else float("nan")
