"""A run killed again and again, on changing layouts, beside one that never stopped: `make soak`.

Real text, real processes; with `--phases` a recipe of two lengths and three data sets, whose
borders are among the moments. Every kill is -9 of launcher and ranks at a random moment; every
start has another number of ranks, ZeRO stage and micro-batch, with `--precision both` also another
precision. In the end each step has seen exactly the samples that it should, each sample came once
an epoch, and the loss is that of the undisturbed run.

What a rank trains on is written down by this module itself, which starts the training in place of
launch/pretrain.py (`--worker`) and looks at the tensors that go into the model.
"""

import argparse
import hashlib
import itertools
import json
import math
import os
import random
import runpy
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dist_bert.data.reader import SampleReader
from dist_bert.data.sample_order import SampleOrder
from dist_bert.data.shard_format import Manifest, ShardFile
from dist_bert.distributed.rendezvous import free_port
from tests.support.processes import ROOT, adopt_orphans, environment, run_script, started
from tests.support.synthetic import MODERN_PARTS

SEEN, LAUNCH = "SOAK_SEEN", "SOAK_LAUNCH"  # environment: folder of the records, number of the start
MODEL = {
    "vocab_size": 4_096, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 128, "max_position_embeddings": 128, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
MODERN = {**MODERN_PARTS, "global_attn_every_n_layers": 2, "local_attention": 32}
BATCH_SAMPLES = 64
NUM_SHARD_SAMPLES = {False: 16_384, True: 4_096}  # of a data set at least; the key: of a recipe
STEPS = {False: 600, True: 360}  # more than an epoch
BORDERS = (100, 240)  # steps at which phases of the recipe end
MOST_LINES = 8  # about steps, each of five, until a kill: moments that suit any machine
# Of the mean of the last 20 losses, relative. Undisturbed runs of 500 steps differ by 3.9e-5 among
# five layouts in bf16, and by 1e-4 between bf16 and fp32: about five times as much is allowed.
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-4, "both": 5e-4}
PRECISIONS = {"fp32": ("fp32",), "bf16": ("bf16",), "both": ("bf16", "fp32")}
RUNS = ("undisturbed", "killed")
Layout = tuple[int, int, int, str]  # ranks, ZeRO stage, micro-batch, precision


def main() -> None:
    """Prepares, trains undisturbed and killed, compares; exits with 1 and what differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", help="text (default: the documentation of installed packages)")
    parser.add_argument("--modern", action="store_true", help="train a ModernBERT, not a BERT")
    parser.add_argument("--work", type=Path, default=Path("runs/soak"), help="folder, kept")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--phases", action="store_true", help="train a recipe of three, 360 steps")
    parser.add_argument("--steps", type=int, help="more than an epoch (default: 600)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments, rest = parser.parse_known_args()
    if arguments.worker:
        sys.argv = [sys.argv[0], *rest]
        _work()
        return
    adopt_orphans()
    work: Path = arguments.work
    work.mkdir(parents=True)
    is_recipe: bool = arguments.phases
    steps = STEPS[is_recipe] if arguments.steps is None or is_recipe else arguments.steps
    data_sets = _prepare(work, arguments.input, is_recipe)
    model = MODEL | (MODERN if arguments.modern else {})
    (work / "model.json").write_text(json.dumps(model))
    run: dict[str, Any] = {
        "warmup_steps": 20, "checkpoint_interval": 10, "log_interval": 5, "validation_interval": 0,
        "validation_samples": 64, "masks": "static",
    }  # fmt: skip
    if is_recipe:
        run["phases"] = _phases(data_sets)
    else:
        run |= {"shards": str(data_sets[0]), "num_train_steps": steps}
    (work / ("recipe.json" if is_recipe else "run.json")).write_text(json.dumps(run))

    precisions = PRECISIONS[arguments.precision]
    layouts = list(itertools.product((1, 2, 4), range(4), (8, 16), precisions))
    begin = time.monotonic()
    _train(work, RUNS[0], launch=0, layout=(2, 2, 16, precisions[0]), patience=None)
    print(f"undisturbed: {time.monotonic() - begin:.0f} s", flush=True)
    rng = random.Random(arguments.seed)
    begin = time.monotonic()
    for launch in range(arguments.kills):
        layout, patience = rng.choice(layouts), (rng.randint(1, MOST_LINES), rng.random())
        told = _train(work, RUNS[1], launch, layout, patience)
        print(f"kill {launch + 1}: {layout} after {patience[0]} lines: {told}", flush=True)
    _train(work, RUNS[1], arguments.kills, rng.choice(layouts), patience=None)
    print(f"killed {arguments.kills} times: {time.monotonic() - begin:.0f} s", flush=True)
    problems = _unlike(work, steps, TOLERANCE[arguments.precision])
    if is_recipe:
        problems += _unequal_counts(work, data_sets)
    else:
        problems += _out_of_order(work, data_sets[0], steps)
    if problems:
        raise SystemExit("\n".join(problems[:10]))
    print("every step has seen exactly its samples")


def _prepare(work: Path, text: str | None, is_recipe: bool) -> list[Path]:
    """Makes the data set; of a recipe three: short samples, long ones, long ones by other masks."""
    tokenizer = work / "tokenizer"
    given = ("--input", text) if text else ()
    _call("launch/train_tokenizer.py", *given, "--output_dir", tokenizer,
          "--vocab_size", MODEL["vocab_size"], "--max_sentences", 100_000)  # fmt: skip
    made = {"shards": 128} if not is_recipe else {"short": 32, "long": 128, "other": 128}
    for number, (name, length) in enumerate(made.items()):
        _call("launch/prepare_shards.py", *given, "--output_dir", work / name,
              "--tokenizer", tokenizer / "tokenizer.model", "--samples_per_shard", 1_024,
              "--sequence_length", length, "--seed", number + 1,
              "--token_store", work / "tokens")  # fmt: skip
        manifest = json.loads((work / name / "manifest.json").read_text())
        kept, num_samples = [], 0  # of the first shards: several epochs in a few hundred steps
        for shard in manifest["splits"]["train"]:
            if num_samples < NUM_SHARD_SAMPLES[is_recipe]:
                kept.append(shard)
                num_samples += shard["num_samples"]
        manifest["splits"]["train"] = kept
        (work / name / "manifest.json").write_text(json.dumps(manifest))
    return [work / name for name in made]


def _phases(data_sets: list[Path]) -> list[dict[str, Any]]:
    """Short samples, a mixture of both kinds of long ones, one kind; batches fall."""
    short, long, other = map(str, data_sets)
    first, second = BORDERS
    return [
        {"name": "short", "shards": short, "steps": first, "train_batch_size": 128},
        {"name": "mixed", "shards": {long: 0.7, other: 0.3}, "steps": second - first,
         "train_batch_size": 64},
        {"name": "other", "shards": other, "steps": STEPS[True] - second, "train_batch_size": 32},
    ]  # fmt: skip


def _call(script: str, *arguments: object) -> None:
    made = run_script(sys.executable, script, *arguments)
    if made.returncode:
        raise SystemExit(made.stderr)


def _train(
    work: Path, name: str, launch: int, layout: Layout, patience: tuple[int, float] | None
) -> str:
    """Trains to the end, or until it is killed: some lines about steps and seconds later."""
    ranks, stage, micro_batch, precision = layout
    deepspeed = {
        "train_batch_size": BATCH_SAMPLES,
        "train_micro_batch_size_per_gpu": micro_batch,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True, "fused": True}},
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": stage},
        "bf16": {"enabled": precision == "bf16"},
    }
    (work / "deepspeed.json").write_text(json.dumps(deepspeed))
    seen = work / f"seen-{name}"
    seen.mkdir(exist_ok=True)
    command = [
        "deepspeed", "--num_gpus", str(ranks), "--master_port", str(free_port()),
        "--module", "tests.soak", "--worker", "--deepspeed_config", work / "deepspeed.json",
        "--model", work / "model.json", "--output_dir", work / name,
    ]  # fmt: skip
    recipe = work / "recipe.json"
    command += ["--recipe", recipe] if recipe.exists() else ["--config", work / "run.json"]
    borders = [f"saved step {step} " for step in BORDERS if recipe.exists()]
    variables = {**environment(), SEEN: str(seen.resolve()), LAUNCH: str(launch)}
    variables["PYTHONUNBUFFERED"] = "1"
    told, output, num_lines = "", "", 0
    pipe, same = subprocess.PIPE, subprocess.STDOUT
    with started(*command, env=variables, stdout=pipe, stderr=same) as process:
        assert process.stdout is not None
        for line in process.stdout:
            output += line
            told = line.strip() if line.startswith("resumed") else told
            num_lines += line.startswith("step ")
            if patience is not None and line.startswith(tuple(borders)):
                told += f"; {line.split(' in ')[0]}, where a phase ends"
                break
            if patience is not None and num_lines == patience[0]:
                time.sleep(patience[1])
                break
        else:
            process.wait()
    if patience is None and process.returncode:
        raise SystemExit(f"the run ended with {process.returncode}:\n{output}")
    return told


def _work() -> None:
    """One rank: trains, and writes down which samples went into every step."""
    from dist_bert.training import loop, progress

    seen: list[str] = []
    path = Path(os.environ[SEEN]) / f"{int(os.environ[LAUNCH]):03d}-{os.environ['RANK']}.jsonl"
    to_device, add = vars(loop)["to_device"], progress.Progress.add

    def noting_to_device(micro_batch: dict[str, Any], device: Any) -> dict[str, Any]:
        ids, bounds = micro_batch["input_ids"], micro_batch["cu_seqlens"]
        for i in range(micro_batch["next_sentence_label"].size):
            seen.append(_name(ids[bounds[i] : bounds[i + 1]]))
        return to_device(micro_batch, device)

    def noting_add(self: Any, record: Any) -> None:
        with open(path, "a") as file:
            file.write(json.dumps({"step": record.state.step, "samples": seen}) + "\n")
        seen.clear()
        add(self, record)

    vars(loop)["to_device"] = noting_to_device
    progress.Progress.add = noting_add  # type: ignore[method-assign]
    runpy.run_path(str(ROOT / "launch" / "pretrain.py"), run_name="__main__")


def _name(ids: np.ndarray) -> str:
    return hashlib.blake2b(ids.astype(np.int64).tobytes(), digest_size=8).hexdigest()


def _unlike(work: Path, num_steps: int, tolerance: float) -> list[str]:
    """Where the killed run differs from the undisturbed one in samples or in the last losses."""
    whole, killed = (_seen(work, name) for name in RUNS)
    losses = {name: _losses(work / name) for name in RUNS}
    problems = [
        f"step {step}: the killed run has seen other samples"
        for step in range(1, num_steps + 1)
        if not whole.get(step) or whole[step] != killed.get(step)
    ]
    last = [np.mean([losses[n][s] for s in range(num_steps - 19, num_steps + 1)]) for n in RUNS]
    difference = abs(last[1] / last[0] - 1)
    if difference > tolerance or losses[RUNS[1]].keys() != losses[RUNS[0]].keys():
        problems.append(f"the last losses differ by {difference:.1e}")
    print(f"mean loss of the last 20 steps: {last[0]:.6f} and {last[1]:.6f} ({difference:.1e})")
    return problems


def _unequal_counts(work: Path, data_sets: list[Path]) -> list[str]:
    """Where a recipe's run has not gone through its data sets epoch by epoch."""
    total: Counter[str] = sum(_seen(work, RUNS[1]).values(), Counter())
    own_names = {shards: list(_names(shards)) for shards in data_sets}
    stored = Counter(name for names in own_names.values() for name in names)
    problems = []
    for shards, names in own_names.items():
        counts = [total[name] for name in names if stored[name] == 1]  # others cannot be told apart
        epochs = sum(counts) / len(counts)
        print(f"{shards.name}: {len(counts):,} samples, {epochs:.2f} epochs")
        if not {math.floor(epochs), math.ceil(epochs)} >= set(counts):
            problems.append(f"{shards}: samples came {min(counts)} to {max(counts)} times")
    if unknown := total.keys() - stored.keys():
        problems.append(f"{len(unknown):,} samples are of no data set")
    return problems


def _names(shards: Path) -> Iterator[str]:
    """Of all training samples, as they are stored."""
    manifest = Manifest.load(shards)
    for record in manifest.splits["train"]:
        shard = ShardFile(shards, record, manifest.field_types)
        for index in range(len(record.blocks)):
            block = shard.block(index)
            rows = zip(block["input_ids"], block["num_tokens"], strict=True)
            yield from (_name(ids[:n]) for ids, n in rows)


def _out_of_order(work: Path, shards: Path, num_steps: int) -> list[str]:
    """Where the killed run has not seen the samples of the order, or the order is none."""
    reader = SampleReader(shards, Manifest.load(shards), "train")
    order = SampleOrder(reader.shard_of_block, reader.block_sizes, seed=42)
    seen = _seen(work, RUNS[1])
    problems = []
    epochs: dict[int, Counter[int]] = defaultdict(Counter)
    for step in range(1, num_steps + 1):
        start = (step - 1) * BATCH_SAMPLES
        epoch, blocks, rows = order.locate(start, start + BATCH_SAMPLES)
        columns = reader.gather(blocks, rows)
        lengths = columns["num_tokens"]
        expected = Counter(
            _name(ids[:n]) for ids, n in zip(columns["input_ids"], lengths, strict=True)
        )
        for number, sample in zip(epoch, reader.sample_numbers(blocks, rows), strict=True):
            epochs[int(number)][int(sample)] += 1
        if seen.get(step) != expected:
            problems.append(f"step {step} has not seen its samples")
    complete = [c for c in epochs.values() if c.total() == reader.num_samples]
    if any(set(count.values()) != {1} or len(count) != reader.num_samples for count in complete):
        problems.append("an epoch does not hold every sample once")
    if not complete:
        problems.append(
            f"no epoch is complete: give --steps {reader.num_samples // BATCH_SAMPLES + 1} or more"
        )
    print(f"samples: {reader.num_samples:,}; steps: {num_steps}; epochs: {len(complete)} complete")
    return problems


def _seen(work: Path, name: str) -> dict[int, Counter[str]]:
    """Step -> the samples of the last start that did it, over all ranks."""
    by_step: dict[int, dict[int, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for path in (work / f"seen-{name}").glob("*.jsonl"):
        launch = int(path.name.split("-")[0])
        for line in path.read_text().splitlines():
            record = json.loads(line)
            by_step[record["step"]][launch].update(record["samples"])
    return {step: starts[max(starts)] for step, starts in by_step.items()}


def _losses(run_dir: Path) -> dict[int, float]:
    from dist_bert.training.metrics import read_metrics

    return {int(r["step"]): r["train/loss"] for r in read_metrics(run_dir) if "train/loss" in r}


if __name__ == "__main__":
    main()
