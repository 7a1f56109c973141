"""Packages `dist_bert` (training) and `data_prep` (offline); the scripts are in launch/."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
# What some corpora need, each for itself: `pip install dist-bert[zstd,mediawiki]`, or all of it.
CORPORA = {
    "zstd": ["zstandard>=0.23"],
    "mediawiki": ["mwparserfromhell>=0.7"],
    "wet": ["warcio>=1.7.5"],
    "parquet": ["pyarrow>=18.0"],
    "repair": ["ftfy>=6.2"],
}
# What draws: matplotlib the pictures (PNG), plotly the report that a browser opens.
PICTURES = ["matplotlib>=3.9", "plotly>=6.0"]
# What launch/export_model.py writes for and checks with.
HUGGINGFACE = ["tokenizers>=0.22", "transformers>=5.0"]
ONNX = ["onnx>=1.19", "onnxruntime>=1.23", "onnxscript>=0.5"]
# Shards by URL: http is among fsspec's own, s3 and gs need s3fs and gcsfs beside it.
REMOTE = ["fsspec>=2025.3", "aiohttp>=3.11"]
# Products of the layers in 8 bits. Not among those of tests: transformers imports it where it is
# installed, which prints warnings on a machine without a GPU.
FLOAT8 = ["torchao>=0.17"]
ALL_CORPORA = [package for packages in CORPORA.values() for package in packages]
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "dist_bert/__init__.py").read_text()).group(1)


class BuildWithScripts(build_py):
    """Puts launch/ and configs/ into the package of a wheel; a checkout has them beside it."""

    def run(self) -> None:  # noqa: D102
        super().run()
        if not self.editable_mode:
            for name in ("launch", "configs"):
                ignored = shutil.ignore_patterns("__pycache__")
                goal = Path(self.build_lib) / "dist_bert" / name
                shutil.copytree(HERE / name, goal, ignore=ignored, dirs_exist_ok=True)


setup(
    name="dist-bert",
    version=VERSION,
    description="Distributed pretraining of BERT-style encoders: MPI shards, DeepSpeed training",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["dist_bert*", "data_prep*"]),
    cmdclass={"build_py": BuildWithScripts},
    entry_points={"console_scripts": ["dist-bert = dist_bert.__main__:main"]},
    python_requires=">=3.11,<3.14",
    classifiers=[
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    # Ranges that should work; constraints.txt has the versions that were tested together.
    install_requires=[
        "torch>=2.11,<2.14",
        # 0.17.6 to 0.18.2 have wrong gradients at ZeRO-2: dist_bert/training/deepspeed_release.py
        "deepspeed>=0.19.8,<0.20",
        "numpy>=2.0",
        "safetensors>=0.5",
        "sentencepiece>=0.2.3",
        "protobuf>=7.36.1",  # of sentencepiece's module for its file format
        "scikit-learn>=1.6",  # scores of fine-tuned models, and of the plain models beside them
        "seqeval>=1.2.2",
        "mpi4py>=4.0",
        "mpich>=5.0",  # an MPI without root; a cluster's own is used when its mpiexec comes first
        "tensorboard>=2.19",
        "tqdm>=4.66",
        "webdataset>=1.0.2",  # reads the shards too: docs/data-format.md
    ],
    extras_require={
        **CORPORA,
        "corpora": ALL_CORPORA,
        "pictures": PICTURES,
        "huggingface": HUGGINGFACE,
        "onnx": ONNX,
        "remote": REMOTE,
        "float8": FLOAT8,
        "test": [
            *("accelerate>=1.0", "hypothesis>=6.100", "psutil>=6.0", "ruff", "mypy"),
            *("pytest>=8.0", "pytest-xdist>=3.6"),
            *ALL_CORPORA,
            *PICTURES,
            *HUGGINGFACE,
            *ONNX,
            *REMOTE,
        ],
    },
)
