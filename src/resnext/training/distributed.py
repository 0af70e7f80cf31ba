"""The processes of one run: started by torchrun, each with its part of every batch, all with the same weights.

Gradients are averaged by torch's DistributedDataParallel; what is here is how the processes agree on everything else.
The first process plans, writes and tells; the others do what it does and write nothing. Short exchanges end after two
minutes with an error instead of waiting for a process that hangs; what one process does alone, such as reading a data
set for the first time, the others wait for without a limit, as torchrun ends them should that process die.

Departures and readings: buckets of gradients keep the order in which they are made (`find_unused_parameters`), since
sums over three or more processes would otherwise be added in another order after a restart, to other bits.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from resnext.errors import UserError

TIMEOUT = timedelta(minutes=2)
PAUSE = 0.05
FAILED = "!"
"""What the first process puts in place of what it should have made."""

OF_THE_NETWORK = ("gloo", "NCCL", "Connection", "onnection reset", "imed out", "store", "Broken pipe")
"""Words by which torch's errors of a lost process are told from others: all are RuntimeErrors."""


class Told(UserError):
    """An error of the first process, as the others learn of it: without words, as the first one says them."""


class Group:
    """A run's processes as one of them sees them; alone, with `size` 1, everything is given back as it came."""

    rank, size, local_size = 0, 1, 1

    @property
    def leads(self) -> bool:
        """Whether this process plans, writes and tells."""
        return self.rank == 0

    def sums(self, values: Sequence[float]) -> list[float]:
        """Return the sums of each of these numbers over all processes."""
        return list(values)

    def agree(self, make: Callable[[], bytes]) -> bytes:
        """Return what the first process makes, however long that takes; its UserError is raised in all of them."""
        return make()

    def gather(self, data: bytes) -> list[bytes]:
        """Return what every process gives, in their order."""
        return [data]

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Set these tensors, of one shape everywhere, to the first process's values, in place."""

    def parallel(self, module: nn.Module) -> nn.Module:
        """Return a module whose backward pass leaves the mean of all processes' gradients."""
        return module

    def without_exchange(self, module: nn.Module) -> AbstractContextManager[None]:
        """Leave gradients of a backward pass within this block to this process, to be summed with later ones."""
        return nullcontext()

    def workers(self, cores: int) -> int:
        """Return this process's share of a machine's cores."""
        return max(1, cores // self.local_size)


class Processes(Group):
    """The processes that torchrun started, joined."""

    def __init__(self, store: Any, device: str) -> None:
        from torch import distributed
        from torch.distributed.distributed_c10d import PrefixStore

        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self._store, self._agreed = PrefixStore("resnext", store), 0
        self._distributed = distributed
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
            store=PrefixStore("group", store),
            rank=self.rank,
            world_size=self.size,
            timeout=TIMEOUT,
        )

    def sums(self, values: Sequence[float]) -> list[float]:
        """Return the sums of each of these numbers over all processes, added in float64."""
        totals = torch.tensor(values, dtype=torch.float64)
        self._distributed.all_reduce(totals)
        return [float(total) for total in totals]

    def agree(self, make: Callable[[], bytes]) -> bytes:
        """Return what the first process makes, however long that takes; its UserError is raised in all of them."""
        key = f"agreed-{self._agreed}"
        self._agreed += 1
        if not self.leads:
            while not self._store.check([key]):  # without a limit, but such that signals are heard
                time.sleep(PAUSE)
            told = self._store.get(key)
            if told == FAILED.encode():
                raise Told
            return self._from_first(b"", int(told))
        try:
            data = make()
        except UserError:
            self._store.set(key, FAILED)
            raise
        self._store.set(key, str(len(data)))
        return self._from_first(data, len(data))

    def _from_first(self, data: bytes, length: int) -> bytes:
        if not length:
            return b""
        buffer = torch.frombuffer(bytearray(data or length), dtype=torch.uint8)
        self._distributed.broadcast(buffer, 0)
        return buffer.numpy().tobytes()

    def gather(self, data: bytes) -> list[bytes]:
        """Return what every process gives, in their order."""
        lengths = [int(length) for length in self.sums([len(data) * (rank == self.rank) for rank in range(self.size)])]
        padded = torch.zeros(max(1, *lengths), dtype=torch.uint8)
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else padded[:0]
        everyone = [torch.empty_like(padded) for _ in range(self.size)]
        self._distributed.all_gather(everyone, padded)
        return [each[:length].numpy().tobytes() for each, length in zip(everyone, lengths, strict=True)]

    @torch.no_grad()
    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Set these tensors, of one shape everywhere, to the first process's values, in place."""
        for tensor in tensors:
            plain = tensor.contiguous()  # processes may hold a tensor in other layouts
            self._distributed.broadcast(plain, 0)
            if plain is not tensor:
                tensor.copy_(plain)

    def parallel(self, module: nn.Module) -> nn.Module:
        """Return a module whose backward pass leaves the mean of all processes' gradients."""
        return nn.parallel.DistributedDataParallel(module, find_unused_parameters=True)

    def without_exchange(self, module: nn.Module) -> AbstractContextManager[None]:
        """Leave gradients of a backward pass within this block to this process, to be summed with later ones."""
        assert isinstance(module, nn.parallel.DistributedDataParallel)
        return module.no_sync()


ALONE = Group()


def wanted() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ and "MASTER_ADDR" in os.environ


def restarted() -> bool:
    """Whether a scheduler started this run again, after a failure (torchrun) or from its queue (Slurm)."""
    counts = (os.environ.get(name, "0") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    return any(count not in ("", "0") for count in counts)


@contextmanager
def joined(device: str) -> Iterator[Group]:
    """Join the processes that torchrun started, within this block; alone where it did not.

    `device` is a recipe's ("auto", "cpu", "cuda", "mps"). With CUDA each process takes the GPU of its local number; on
    a CPU its share of the cores, where torchrun chose one thread for each. Raises UserError where the others are lost.
    """
    if not wanted():
        yield ALONE
        return
    from torch import distributed
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % max(1, torch.cuda.device_count()))
    _share_threads()
    with _losses_said():
        try:
            store, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            yield Processes(PrefixStore(f"attempt-{attempt}", store), "cuda" if on_gpu else "cpu")
        finally:
            if distributed.is_initialized():
                distributed.destroy_process_group()


def _share_threads() -> None:
    """Take this process's share of the cores where torchrun, not the user, chose one thread for each process."""
    from resnext import machine

    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        torch.set_num_threads(max(1, machine.cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


@contextmanager
def _losses_said() -> Iterator[None]:
    """Say it in words where torch tells that another process is gone or does not answer."""
    try:
        yield
    except UserError:
        raise
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        if not any(word in reason for word in OF_THE_NETWORK):
            raise
        raise UserError(
            f"Process {os.environ['RANK']} on {socket.gethostname()} lost the others of this run ({reason[:120]}).\n"
            "The last checkpoint is intact: torchrun starts all of them again with --max-restarts, or do so yourself "
            "with --auto-resume."
        ) from error
