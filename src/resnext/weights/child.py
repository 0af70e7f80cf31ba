"""Read a pickle of tensors from stdin, and write them as safetensors to a file descriptor.

`reading.py` starts this file in a process of its own; it imports nothing of this package.
"""

from __future__ import annotations

import os
import re
import resource
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SPARE = 2 << 30
"""Bytes that a child may take besides what its tensors need."""

COPIES = 4  # of the file's size: its bytes, the tensors, the safetensors that are made of them, and some room
WITHIN = ("state_dict", "model", "model_state_dict", "state_dict_ema", "module")
"""Where training scripts put the weights that they save beside other things."""


def main() -> None:
    """Read stdin, a file; write to the descriptor that is the only argument; or say in one line why not."""
    size = os.fstat(0).st_size
    limit = COPIES * size + SPARE
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import torch
    from safetensors.torch import save

    try:
        with os.fdopen(0, "rb") as file:
            found = torch.load(file, map_location="cpu", weights_only=True)
        tensors = dict(_tensors(found))
        content = save(tensors)
    except MemoryError:
        sys.exit("it needs more memory than a file of its size may")
    except Exception as error:  # whatever a hostile file may cause
        sys.exit(_why(error))
    if not tensors:
        sys.exit("it holds no tensors by name")
    with os.fdopen(int(sys.argv[1]), "wb") as target:
        target.write(content)
    os._exit(0)  # without taking torch apart, which takes as long as reading


def _tensors(found: object) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a state dict, which may lie within something larger, without the prefix of DataParallel."""
    import torch

    for place in WITHIN:
        if isinstance(found, Mapping) and isinstance(found.get(place), Mapping):
            found = found[place]
            break
    if not isinstance(found, Mapping):
        return
    seen = set()
    for name, value in found.items():
        if isinstance(name, str) and isinstance(value, torch.Tensor):
            memory = value.untyped_storage()
            alone = value.is_contiguous() and memory.nbytes() == value.nbytes and memory.data_ptr() not in seen
            seen.add(memory.data_ptr())
            # Tensors may share memory, or be a part of a larger one, neither of which safetensors knows.
            copied = value.detach() if alone else value.detach().clone(memory_format=torch.contiguous_format)
            yield name.removeprefix("module."), copied


def _why(error: Exception) -> str:
    """Return what is wrong with a file in one line, without torch's advice to trust it."""
    if type(error).__name__ == "UnpicklingError":
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        return f"it holds more than tensors ({named[1] if named else 'other objects'}), which is never run"
    first = str(error).strip().split("\n")[0][:200]
    return f"it is damaged, or of another kind ({type(error).__name__}: {first})"


if __name__ == "__main__":
    main()
