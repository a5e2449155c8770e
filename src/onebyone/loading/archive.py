"""Exported programs (.pt2) opened without executing anything that the file says.

`torch.export.load` may run code from a file: it unpickles sample inputs and some tensors, evaluates
symbolic sizes with sympy, imports what tree specs name, loads compiled libraries, and writes the
graph's names into Python source. So a file is read here first, refused when any of those ways is
taken, and loaded from a fresh copy that holds exactly the checked records.
"""

from __future__ import annotations

import ast
import io
import json
import logging
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from onebyone.errors import ModelError

OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|torchvision|higher_order)"
    r"\.((?!__)\w+|__(and|or|xor|lshift|rshift)__)(\.(?!_)\w+)?"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|math\.[a-z]\w*|torch\.sym_\w+|torch\._sym_sqrt"
)
# Operators that touch files.
FORBIDDEN = re.compile(r"torch\.ops\.\w+\.(from_file|save|load\w*)\b")
PLAIN = re.compile(r"[\w.:/@+\-]*")
# Names of weights are keys, and stand in quotes where they become source code.
QUOTED = re.compile(r"""[^"'`\\{}\x00-\x1f\x7f\x85\u2028\u2029]*""")
WEIGHT_NAMES = frozenset(["parameter_name", "buffer_name", "tensor_constant_name", "fqn"])
TREES = frozenset(
    [
        None,
        "builtins.tuple",
        "builtins.list",
        "builtins.dict",
        "collections.OrderedDict",
        "torch.fx.immutable_collections.immutable_dict",
        "torch.fx.immutable_collections.immutable_list",
    ]
)
# Needed by nobody here, and some of it is written into source code as comments.
DROPPED = frozenset(["metadata", "guards_code", "treespec_namedtuple_fields"])


def open_program(path: str | Path, *, trust: bool = False) -> ExportedProgram:
    """The exported program in a `.pt2` file.

    Raises `ModelError` on a missing or damaged file, on one of a PyTorch that this one cannot read,
    and, unless `trust`, on one that would run code of its own.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path} does not exist")
    checked = path.read_bytes() if trust else _checked_copy(path)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return torch.export.load(io.BytesIO(checked))
    except Exception as error:
        raise ModelError(
            f"{path} cannot be read as an exported program by PyTorch {torch.__version__}: "
            f"{type(error).__name__}: {error}. Export it again with this version"
        ) from error
    finally:
        logging.disable(before)


class _Unsafe(Exception):
    """What a file would have run."""


def _checked_copy(path: Path) -> bytes:
    """The archive written anew from its checked records, so that none can be read differently."""
    copy = io.BytesIO()
    try:
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as fresh:
            names = archive.namelist()
            if len(set(names)) != len(names):
                raise _Unsafe("two records of one name")
            for name in names:
                fresh.writestr(name, _checked(name, archive.read(name)))
    except _Unsafe as error:
        raise ModelError(
            f"{path} holds {error}, and reading that may run code that the file contains. If you "
            "trust its author, give --trust (trust=True)"
        ) from None
    except Exception as error:  # zip, JSON and torch readers each have their own
        raise ModelError(f"{path} is damaged or no exported program: {error}") from error
    return copy.getvalue()


def _checked(name: str, content: bytes) -> bytes:
    """A record that is safe to hand on; raises `_Unsafe` otherwise."""
    if "aotinductor" in name or "executorch" in name:
        raise _Unsafe("compiled code")
    if name.endswith(".json"):
        record = json.loads(content)
        _check_payloads(record)
        return json.dumps(_check_record(record)).encode()
    if name.endswith(".pt") and content:
        try:
            torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception:  # torch would try again with full unpickling after any failure
            raise _Unsafe(f"more than tensors in its record {name}") from None
    return content


def _check_payloads(record: Any) -> None:
    """Refuse a weights or constants record that says any tensor is pickled."""
    payloads = record.get("config", {}) if isinstance(record, dict) else {}
    for name, payload in payloads.items():
        stored = str(payload.get("path_name", ""))
        if payload.get("use_pickle") or not stored.startswith(("weight_", "tensor_")):
            raise _Unsafe(f"a pickled object ({name})")


def _check_record(value: Any, key: str = "") -> Any:
    """JSON without what is dropped; every string in it must be harmless where it stands."""
    if isinstance(value, dict):
        for name in value:
            _check_text(name, "fqn" if key == "config" else "name")
        empty = {"metadata": {}, "guards_code": [], "treespec_namedtuple_fields": {}}
        return {k: empty[k] if k in DROPPED else _check_record(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_check_record(v, key) for v in value]
    if isinstance(value, str):
        _check_text(value, key)
    return value


def _check_text(text: str, key: str) -> None:
    if key in ("as_string", "as_strings"):  # always quoted
        return
    if key in ("in_spec", "out_spec"):
        safe = not text or _tree_is_plain(json.loads(text))
    elif key in WEIGHT_NAMES:
        safe = bool(QUOTED.fullmatch(text))
    elif key == "expr_str":
        safe = _is_arithmetic(text)
    elif key == "target":
        safe = bool(OPERATOR.fullmatch(text)) and not FORBIDDEN.match(text)
    else:
        safe = bool(PLAIN.fullmatch(text))
    if not safe:
        raise _Unsafe(f"the {key} {text[:80]!r}")


def _tree_is_plain(spec: Any) -> bool:
    """Whether a tree spec names plain containers only; others may import modules."""
    if isinstance(spec, list):
        return all(_tree_is_plain(s) for s in spec)
    if not isinstance(spec, dict):
        return isinstance(spec, int)
    if spec.get("type") not in TREES or "enum" in str(spec.get("context")).lower():
        return False
    return _tree_is_plain(spec.get("children_spec", []))


def _is_arithmetic(text: str) -> bool:
    """Whether a symbolic size is built of numbers, symbols and calls of capitalized functions."""
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError:
        return False
    allowed = (
        ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop,
        ast.boolop, ast.cmpop, ast.Name, ast.Load, ast.Call, ast.keyword, ast.Constant,
    )  # fmt: skip
    for node in ast.walk(tree):
        if not isinstance(node, allowed):
            return False
        if _is_text(node) and not re.fullmatch(r"[a-z]\w*", str(node.value)):  # type: ignore[attr-defined]
            return False
        if isinstance(node, ast.Call):
            if not (isinstance(node.func, ast.Name) and re.fullmatch(r"[A-Z]\w+", node.func.id)):
                return False
            if node.func.id != "Symbol" and any(_is_text(a) for a in node.args):
                return False
    return True


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
