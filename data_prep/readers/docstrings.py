"""Reads docstrings of Python modules: a corpus available on every machine with Python.

Sources are parsed, never imported. Not for: finding the modules (`data_prep.inputs`).
"""

import ast
import gc
import inspect
import re
import warnings
from collections.abc import Iterator

from data_prep.readers.source import Document, Source, whole_characters

_MAX_MODULE_BYTES = 4 << 20  # a parsed module takes about a hundred times its text in memory
_DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
# Statements that contain statements, and the fields that hold these.
_NESTING = (*_DEFINITIONS, ast.If, ast.Try, ast.With, ast.For, ast.While, ast.ExceptHandler)
_BODIES = ("body", "handlers", "orelse", "finalbody")
# A line under (or over) a title, or an example session up to its blank line: markup and code, not
# text.
_RULE_LINE = re.compile(r"^[ \t]*([-=~^*#+`.\"'_])\1{2,}[-=~^*#+ \t]*$", re.MULTILINE)
_EXAMPLE = re.compile(r"^[ \t]*>>>.*(?:\n[ \t]*\S.*)*", re.MULTILINE)


def python_docs(source: Source) -> Iterator[Document]:
    """One document per module: its docstrings. Unparsable modules are counted, not bad."""
    with source.open() as file:
        code = file.read(_MAX_MODULE_BYTES + 1)
    if len(code) > _MAX_MODULE_BYTES:
        source.tally.drops["too_long"] += 1
        return
    try:
        docstrings = docstrings_of(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # all mean: not parsable
        source.tally.drops["not_python"] += 1
        return
    if docstrings:
        yield Document(whole_characters("\n\n".join(docstrings)))
    else:
        source.tally.drops["no_docstring"] += 1


def docstrings_of(source: bytes) -> list[str]:
    """Docstrings of a module, its classes and functions, in the order of the source, dedented.

    Underlines of titles and `>>>` examples are skipped. A file without triple quotes is assumed to
    have none: the rare one-line docstring is not worth the cost of parsing.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: the source is not Python of this
            version.
    """
    if b'"""' not in source and b"'''" not in source:
        return []
    docstrings = (_cleaned(text) for text in _raw_docstrings(_parse(source)))
    return [text for text in docstrings if text]


def _parse(source: bytes) -> ast.Module:
    was_enabled = gc.isenabled()
    gc.disable()  # six times as fast: the tree is many small objects without cycles
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            return ast.parse(source)
    finally:
        if was_enabled:
            gc.enable()


def _raw_docstrings(tree: ast.Module) -> list[str]:
    found = []
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, _DEFINITIONS) and (text := ast.get_docstring(node, clean=False)):
            found.append(text)
        for field in reversed(_BODIES):
            body = getattr(node, field, ())
            pending.extend(child for child in reversed(body) if isinstance(child, _NESTING))
    return found


def _cleaned(text: str) -> str:
    text = inspect.cleandoc(text)
    text = _EXAMPLE.sub("", text)
    return _RULE_LINE.sub("", text).strip()
