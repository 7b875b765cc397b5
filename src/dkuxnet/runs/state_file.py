"""The state of a training in a safetensors file: tensors, and all else as JSON in the header.

A tree of dicts, lists, tuples, tensors and plain values goes in, and the same tree comes out:
types, keys and every bit of a number. Nothing in such a file can name code. Tensors come back
contiguous: a memory format is the reader's own affair.

In the header, `tree` holds the state as JSON: plain values stand for themselves, everything else is
a list whose first entry says what it is: ["tensor", name], ["float", hexadecimal], ["list", ..],
["tuple", ..], ["dict", [key, value], ..].
"""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from dkuxnet.core.documents import parse_json
from dkuxnet.core.regular import check_regular

PLAIN = (str, int, bool, type(None))


def state_bytes(state: Any, version: int) -> bytes:
    """The content of the file. Raises TypeError for what is no part of a state."""
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    names: dict[tuple[object, ...], str] = {}  # a tensor that stands in two places is stored once

    def packed(value: Any, place: str) -> Any:
        if type(value) in PLAIN:
            return value
        if type(value) is float:
            return ["float", value.hex()]  # to the last bit, and infinity too
        if isinstance(value, Tensor):
            return ["tensor", named(value.detach(), place)]
        if type(value) in (list, tuple):
            return [
                type(value).__name__,
                *(packed(each, f"{place}/{i}") for i, each in enumerate(value)),
            ]
        if isinstance(value, dict) and all(type(key) in (str, int) for key in value):
            return ["dict", *([key, packed(each, f"{place}/{key}")] for key, each in value.items())]
        raise TypeError(f"no part of a state: {place}, a {type(value).__name__}")

    def named(tensor: Tensor, place: str) -> str:
        same = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if same not in names:
            names[same] = (
                f"{len(tensors)}{place}"  # the number keeps apart what two keys would call alike
            )
            tensors[names[same]] = tensor.cpu().contiguous().clone()
        return names[same]

    tree = json.dumps(packed(state, ""))
    return save(tensors, {"version": str(version), "tree": tree})


def read_state(path: Path, version: int) -> Any:
    """The state on the CPU.

    The tensors are the file's own memory until they are copied: it must stay as it is so long.

    Raises ValueError where the file is of another version, and any error for a file that is
    damaged.
    """
    from safetensors import safe_open

    check_regular(path)
    with safe_open(str(path), framework="pt", device="cpu") as file:
        header = file.metadata() or {}
        if header.get("version") != str(version):
            raise ValueError(f"not a checkpoint of version {version}, which this program reads")
        tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    return _unpacked(parse_json(header["tree"]), tensors)


def _unpacked(value: Any, tensors: dict[str, Tensor]) -> Any:
    if type(value) in PLAIN:
        return value
    kind, *content = value
    match kind, content:
        case "tensor", [name]:
            return tensors[name]
        case "float", [digits]:
            return float.fromhex(digits)
        case "list" | "tuple", _:
            return (list if kind == "list" else tuple)(_unpacked(each, tensors) for each in content)
        case "dict", _:
            return {key: _unpacked(each, tensors) for key, each in content}
    raise ValueError(f"no part of a state: {kind}")
