"""Reading a file in a process that may take only so much memory beyond what it has at its start."""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

_PROGRAM = """
import importlib, json, resource, sys
from data_prep.inputs import whole_file
from data_prep.readers import read_documents
from data_prep.readers.source import Source, RecordTally
from dist_bert.common.errors import UserError

path, layout, max_bad_share, extra_bytes = json.loads(sys.argv[1])
needs = {"parquet": "pyarrow.parquet", "wet": "warcio.archiveiterator"}
needs["mediawiki"] = needs["auto"] = "mwparserfromhell"
for package in ("zstandard", needs.get(layout, "zstandard")):
    importlib.import_module(package)
has_bytes = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (has_bytes + extra_bytes,) * 2)
num_documents = num_characters = 0
problem = ""
tally = RecordTally(path, max_bad_share)
try:
    for document in read_documents(Source(whole_file(path), tally), layout):
        num_documents += 1
        num_characters += len(document.text)
except UserError as error:
    problem = str(error)
print(json.dumps([num_documents, num_characters, problem, tally.bad]))
"""


class Read(NamedTuple):
    """What came of a file."""

    num_documents: int
    num_characters: int  # of all documents
    problem: str  # the line of a `UserError`, empty for none
    bad: dict[str, int]


def read_within(path: Path, layout: str, extra_bytes: int, max_bad_share: float = 0.0) -> Read:
    """Reads a file; fails where the reader takes more memory, or raises what is no `UserError`."""
    arguments = json.dumps([str(path), layout, max_bad_share, extra_bytes])
    ended = subprocess.run(
        [sys.executable, "-c", _PROGRAM, arguments], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    return Read(*json.loads(ended.stdout))
