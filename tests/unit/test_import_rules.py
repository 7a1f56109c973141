"""The rules of imports and sizes, checked on the syntax tree of every module."""

import ast
import graphlib
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import ROOT, run_script

PACKAGES = ("dist_bert", "data_prep", "launch")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_SCRIPT_LINES = 400, 80, 70

# From low to high: a package imports from those above it in this table, and from itself.
LAYERS = (
    "common",
    "distributed",
    "data",
    "tokenizer",
    "model",
    "checkpoint",
    "training",
    "inference",
    "pretraining",
    "finetuning",
    "huggingface",
    "tools",
    "__main__",
)
# What both halves must agree on; the rest of dist_bert is no business of preparation.
SHARED = {"common", "data", "tokenizer"}
# Third party -> the modules that may know it.
HOMES = {
    "accelerate": {"dist_bert.tools.benchmark.peers"},
    "aiohttp": {"dist_bert.data.remote"},
    "deepspeed": {
        "dist_bert.distributed.process_group",
        "dist_bert.training.engine",
        "dist_bert.training.half_precision",
        "dist_bert.checkpoint.fragments",
    },
    "fsspec": {"dist_bert.data.remote"},
    "ftfy": {"data_prep.quality"},
    "matplotlib": {"dist_bert.common.pictures"},
    "mpi4py": {"data_prep.mpi_ranks"},
    "mwparserfromhell": {"data_prep.readers.wiki_markup"},
    "onnx": {"dist_bert.huggingface.onnx_model"},
    "onnxruntime": {"dist_bert.huggingface.onnx_model"},
    "onnxscript": {"dist_bert.huggingface.onnx_model"},
    "sentence_transformers": {"dist_bert.huggingface.sentence_vectors"},
    "plotly": {"dist_bert.tools.report.plots"},
    "pyarrow": {"data_prep.readers.parquet"},
    "sentencepiece": {
        "dist_bert.tokenizer.normalization",
        "dist_bert.tokenizer.sentence_pieces",
        "dist_bert.tokenizer.special_pieces",
        "dist_bert.huggingface.tokenizer",
        "data_prep.benchmark",
    },
    "seqeval": {"dist_bert.finetuning.scores.tags"},
    "sklearn": {"dist_bert.finetuning.scores.labels", "dist_bert.finetuning.baselines"},
    "tensorboard": {"dist_bert.training.board"},
    "tokenizers": {
        "dist_bert.huggingface.tokenizer",
        "dist_bert.tokenizer.byte_pieces",
        "dist_bert.tokenizer.word_pieces",
    },
    "torch.utils.tensorboard": {"dist_bert.training.board"},
    "torchao": {"dist_bert.model.float8"},
    "tqdm": {"dist_bert.training.console"},
    "warcio": {"data_prep.readers.wet"},
    "transformers": {
        "dist_bert.tools.benchmark.peers",
        "dist_bert.tools.benchmark.training",
        "dist_bert.huggingface.folder",
    },
    "webdataset": {"dist_bert.tools.benchmark.loader"},
    "zstandard": {"dist_bert.common.packed"},
}
# Packages that import no torch, and what else comes at once: configuration and every refusal.
TORCHLESS_PACKAGES = {"common", "data", "tokenizer"}
TORCHLESS = {
    "distributed.environment",
    "distributed.interrupts",
    "distributed.rendezvous",
    "model.config",
    "model.flops",
    "model.published_config",
    "checkpoint.run_dir",
    "checkpoint.weight_source",
    "training.config",
    "training.console",
    "training.deepspeed_config",
    "training.deepspeed_flags",
    "pretraining.job",
    "inference.embed_config",
    "inference.run_flags",
    "finetuning.baselines",
    "finetuning.compare_baselines",
    "finetuning.config",
    "finetuning.job",
    "finetuning.results",
    "huggingface.config",
    "huggingface.export_run",
    "tools.benchmark.flags",
    "tools.benchmark.modes",
    "tools.doctor.doctor",
    "tools.plan.assumptions",
    "tools.plan.flags",
    "tools.plan.text",
    "tools.quickstart.steps",
    "tools.report.page",
    "tools.speedrun.record",
    "tools.speedrun.track",
}
# argparse's methods are described by argparse.
INHERITED = {
    f"dist_bert.common.cli.Parser.{name}"
    for name in ("parse_args", "parse_known_args", "print_help", "error")
}
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


def imported_packages(imports: set[str], root: str) -> set[str]:
    """Packages of `root` among imports: the second part of their names."""
    names = {name.split(".")[1] for name in imports if name.startswith(f"{root}.")}
    return {name for name in names if (ROOT / root / name).is_dir()}


TREES = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}
IMPORTS = {name: imports_of(tree) for name, tree in TREES.items()}


def modules_of(package: str) -> dict[str, set[str]]:
    """Module of a package, without the package's name -> its imports."""
    return {
        name.split(".", 1)[1]: imports
        for name, imports in IMPORTS.items()
        if name.startswith(f"{package}.")
    }


def test_packages_import_downwards() -> None:
    modules = modules_of("dist_bert")
    assert {module.split(".")[0] for module in modules} == set(LAYERS)
    for module, imports in modules.items():
        own = module.split(".")[0]
        for other in imported_packages(imports, "dist_bert") - {own}:
            assert LAYERS.index(other) < LAYERS.index(own), f"{module} imports {other}"


def test_no_module_imports_itself_through_others() -> None:
    graph = {
        module: {name if name in IMPORTS else name.rpartition(".")[0] for name in imports}
        - {module}
        for module, imports in IMPORTS.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, with the cycle


def test_preparation_takes_only_what_both_halves_share() -> None:
    for module, imports in modules_of("data_prep").items():
        assert imported_packages(imports, "dist_bert") <= SHARED, module


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


def test_contributing_names_the_homes_of_third_parties() -> None:
    lines = (ROOT / "CONTRIBUTING.md").read_text().splitlines()
    rows = {line.split("`")[1].rstrip("/"): line for line in lines if line.startswith("| `")}
    for home in sorted(set().union(*HOMES.values())):
        package, *names = home.removeprefix("dist_bert.").split(".")
        told = (f"`{'/'.join(names)}.py`", f"`{names[0]}/`")  # the module, or all of its folder
        assert any(name in rows[package] for name in told), home


def test_preparation_and_configuration_import_no_torch() -> None:
    whole = (name for name in modules_of("dist_bert") if name.split(".")[0] in TORCHLESS_PACKAGES)
    library = tuple(f"dist_bert.{name}" for name in sorted({*whole, *TORCHLESS}))
    preparation = tuple(f"data_prep.{name}" for name in modules_of("data_prep"))
    ended = torch_at_import((*library, *preparation))
    assert ended.returncode == 0, ended.stderr
    assert torch_at_import(("dist_bert.model.bert",)).returncode != 0, "this test can fail"


def file_lengths() -> dict[str, int]:
    return {name_of(path): len(path.read_text().splitlines()) for path in MODULES}


def test_files_stay_readable() -> None:
    too_long = {name: length for name, length in file_lengths().items() if length > MAX_FILE_LINES}
    assert not too_long, "split by a noun"


def test_a_launch_script_is_thin() -> None:
    scripts = {name: n for name, n in file_lengths().items() if name.startswith("launch.")}
    assert len(scripts) > 15
    too_long = {name: length for name, length in scripts.items() if length > MAX_SCRIPT_LINES}
    assert not too_long, "a script parses flags, calls the library and prints"


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
