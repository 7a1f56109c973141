"""The rules of imports and sizes, checked on the syntax tree of every module."""

import ast
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import ROOT, run_script

PACKAGES = ("dist_bert", "data_prep", "launch")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 80

# From low to high: a module imports only from layers below its own. A new module gets its place.
LAYERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "dist_bert": (
        ("redaction",),
        ("rank_log",),
        ("confidence", "errors", "figures", "files", "hashing", "interrupts", "packed"),
        ("shipped", "spikes", "time_budget"),
        ("deepspeed_release", "device", "rendezvous", "slurm_environment"),
        ("products",),
        ("kernels",),
        ("agreement", "cli", "code_version", "config", "console", "guard", "heartbeat", "masking"),
        (
            "deepspeed_flags",
            "origin",
            "pictures",
            "prefetch",
            "run_dir",
            "stopwatch",
            "stragglers",
            "text_batches",
            "row_files",
        ),
        ("board", "manifest_rules", "run_lock", "watchdog"),
        ("diagnosis", "tokenizer_config", "shard_format", "metrics", "model", "optim", "flops"),
        ("environment",),
        ("model_card", "normalization", "reporting", "weight_source", "word_pieces"),
        ("sentence_pieces", "special_pieces"),
        ("hf_usage", "onnx_file", "sample_rules", "shard_cache"),
        ("tokenizer", "hf_names", "checkpoint_files", "layer_states", "shard_source"),
        ("hf_tokenizer", "stored_weights", "reader"),
        ("hf_folder",),
        ("data",),
        ("deepspeed_config",),
        ("inference", "fragments", "planning"),
        ("tasks",),
        ("job", "finetune_job", "evaluate", "fill_mask", "embed", "checkpoint", "initial_weights"),
        ("hf_equality",),
        ("engine", "assembly", "export", "hf_import", "predict", "predictions", "run_record"),
        ("vector_files",),
        ("hf_answers",),
        ("finetuned_card",),
        ("finetuned_export",),
        ("ranks",),
        ("progress", "benchmarks"),
        ("session", "rehearsal"),
        ("pretrain", "finetune"),
        ("preflight",),
        ("__main__",),
    ),
    "data_prep": (
        ("inputs", "prepare_config", "progress", "punctuation", "workers"),
        ("clauses", "sentences"),
        ("documents",),
        ("chunks",),
        ("balance",),
        ("pairs",),
        ("readers", "samples", "stage_profile"),
        ("limits", "quality", "units", "verify"),
        ("corpus",),
        ("preview", "sampling", "token_store"),
        ("stored_units",),
        ("duplicates",),
        ("dealing",),
        ("data_set",),
        ("prepare",),
        ("benchmark",),
    ),
}
# What both halves must agree on; the rest of dist_bert is no business of preparation.
SHARED = {
    "cli",
    "config",
    "errors",
    "files",
    "hashing",
    "masking",
    "packed",
    "sample_rules",
    "shard_format",
    "shard_source",
    "slurm_environment",
    "tokenizer",
    "tokenizer_config",
}
# Third party -> the modules that may know it.
HOMES = {
    "aiohttp": {"dist_bert.origin"},
    "deepspeed": {"dist_bert.engine", "dist_bert.fragments"},
    "fsspec": {"dist_bert.origin"},
    "ftfy": {"data_prep.quality"},
    "matplotlib": {"dist_bert.pictures"},
    "mpi4py": {"data_prep.workers"},
    "mwparserfromhell": {"data_prep.readers.wiki_markup"},
    "onnx": {"dist_bert.onnx_file"},
    "onnxruntime": {"dist_bert.onnx_file"},
    "onnxscript": {"dist_bert.onnx_file"},
    "plotly": {"dist_bert.reporting.plots"},
    "pyarrow": {"data_prep.readers.parquet"},
    "sentencepiece": {
        "dist_bert.normalization",
        "dist_bert.sentence_pieces",
        "dist_bert.special_pieces",
        "dist_bert.hf_tokenizer",
        "data_prep.benchmark",
    },
    "seqeval": {"dist_bert.tasks.scores.tags"},
    "sklearn": {"dist_bert.tasks.scores.labels", "dist_bert.tasks.baselines"},
    "tensorboard": {"dist_bert.board"},
    "tokenizers": {"dist_bert.hf_tokenizer", "dist_bert.word_pieces"},
    "torch.utils.tensorboard": {"dist_bert.board"},
    "tqdm": {"dist_bert.console"},
    "warcio": {"data_prep.readers.wet"},
    "transformers": {"dist_bert.benchmarks.training", "dist_bert.hf_folder"},
    "webdataset": {"dist_bert.benchmarks.loader"},
    "zstandard": {"dist_bert.packed"},
}
# Not even through what they import: preparation, configuration and every refusal come at once.
TORCHLESS = {
    *SHARED,
    "console",
    "interrupts",
    "rendezvous",
    "environment",
    "data",
    "reader",
    "deepspeed_config",
    "deepspeed_flags",
    "job",
    "run_dir",
    "shipped",
    "weight_source",
    "flops",
    "diagnosis.doctor",
    "reporting.page",
    "planning.text",
    "finetune_job",
    "tasks.baselines",
    "tasks.config",
    "tasks.results",
}
# argparse's methods are described by argparse.
INHERITED = {f"dist_bert.cli.Parser.{name}" for name in ("parse_args", "print_help", "error")}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(tree: ast.Module) -> set[str]:
    """Full names of all that is imported anywhere in a module; of `from a import b`, `a.b`."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "relative imports hide where a name is from"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_modules(imports: set[str], package: str) -> set[str]:
    """Modules of `package` among imports: `config` of `dist_bert.config.ModelConfig`."""
    return {name.split(".")[1] for name in imports if name.startswith(f"{package}.")}


TREES = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}
IMPORTS = {name: imports_of(tree) for name, tree in TREES.items()}


def modules_of(package: str) -> dict[str, set[str]]:
    """Module of a package, without the package's name -> its imports."""
    return {
        name.split(".", 1)[1]: imports
        for name, imports in IMPORTS.items()
        if name.startswith(f"{package}.")
    }


@pytest.mark.parametrize("package", LAYERS)
def test_imports_go_strictly_down(package: str) -> None:
    layer_of = {m: layer for layer, modules in enumerate(LAYERS[package]) for m in modules}
    assert len(layer_of) == sum(map(len, LAYERS[package]))
    modules = modules_of(package)
    assert {m.split(".")[0] for m in modules} == layer_of.keys(), "give new modules their layer"
    for module, imports in modules.items():
        own = module.split(".")[0]
        for other in imported_modules(imports, package) - {own}:
            assert layer_of[other] < layer_of[own], f"{module} imports {other}"


def test_preparation_takes_only_what_both_halves_share() -> None:
    for module, imports in modules_of("data_prep").items():
        assert imported_modules(imports, "dist_bert") <= SHARED, module


@pytest.mark.parametrize("module", IMPORTS)
def test_nobody_imports_upwards(module: str) -> None:
    roots = {name.split(".")[0] for name in IMPORTS[module]}
    assert not roots & {"launch", "tests"}
    if module.startswith("dist_bert"):
        assert "data_prep" not in roots


@pytest.mark.parametrize("party,homes", HOMES.items())
def test_a_third_party_has_one_home(party: str, homes: set[str]) -> None:
    users = {
        module
        for module, imports in IMPORTS.items()
        if any(name == party or name.startswith(f"{party}.") for name in imports)
    }
    if party == "tensorboard":
        assert users <= homes
    else:
        assert users == homes


def torch_at_import(modules: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    program = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    assert not {'torch', 'deepspeed'} & set(sys.modules), name\n"
    )
    return run_script(sys.executable, "-c", program)


def test_preparation_and_configuration_import_no_torch() -> None:
    library = tuple(f"dist_bert.{name}" for name in sorted(TORCHLESS))
    preparation = tuple(f"data_prep.{name}" for name in modules_of("data_prep"))
    ended = torch_at_import((*library, *preparation))
    assert ended.returncode == 0, ended.stderr
    assert torch_at_import(("dist_bert.model",)).returncode != 0, "this test can fail"


def test_files_stay_readable() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in MODULES}
    too_long = {name: length for name, length in lengths.items() if length > MAX_FILE_LINES}
    assert not too_long, "split by a noun"


def definitions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """All functions and classes with their full names, inner functions too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function | ast.ClassDef):
            yield f"{prefix}.{node.name}", node
            yield from definitions(node, f"{prefix}.{node.name}")
        else:
            yield from definitions(node, prefix)


DEFINITIONS = dict(
    itertools.chain.from_iterable(definitions(tree, name) for name, tree in TREES.items())
)


def test_functions_fit_on_a_page() -> None:
    lengths = {
        name: (node.end_lineno or 0) - node.lineno + 1
        for name, node in DEFINITIONS.items()
        if isinstance(node, Function)
    }
    assert len(lengths) > 150
    too_long = {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES}
    assert not too_long


def test_all_that_is_public_has_a_docstring() -> None:
    bare = {name for name, tree in TREES.items() if not ast.get_docstring(tree)}
    assert not bare, "a module says what it is for"
    functions = {name for name, node in DEFINITIONS.items() if isinstance(node, Function)}
    for name, node in DEFINITIONS.items():
        is_inner = name.rsplit(".", 1)[0] in functions
        is_private = any(part.startswith("_") for part in name.split("."))
        if not (is_inner or is_private or name in INHERITED or ast.get_docstring(node)):
            bare.add(name)
    assert not bare
    assert DEFINITIONS.keys() >= INHERITED
