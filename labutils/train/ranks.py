"""Ranks: the processes that ``torchrun`` starts, each with its part of every batch.

One process is a group of one; everything else reads the same in both cases. Gradients are averaged
by PyTorch's `DistributedDataParallel`: gloo on CPUs, NCCL where CUDA is there.

BatchNorm is what makes a run over several ranks differ from one in a single process. On CUDA the
statistics of a batch are those of the whole batch (`SyncBatchNorm`). On CPUs PyTorch has no such
layer: every rank normalises with its own part of the batch, and the running statistics are those
of rank 0, which are sent to the others before every step.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from .. import untrusted
from ..errors import ModelFileError, TrainingError, UsageError, counted

# What gloo and NCCL say when a process at the other end is gone.
_THERE = b"\1"  # before what is sent of a file, which may be empty
LOST = re.compile("connection (was )?(closed|reset)|broken pipe|remote process exited", re.I)

_PATIENCE = timedelta(minutes=30)  # while one rank renders the images, the others wait
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Ranks:
    """The process that asks, among all that train together.

    Attributes
    ----------
    rank, size
        Number of this process, from 0, and how many there are.
    device
        Where this process computes: ``"cpu"``, ``"cuda:0"``.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def first(self) -> bool:
        """Whether this is the process that logs and writes files."""
        return self.rank == 0

    def part(self, batch_size: int) -> slice:
        """Return this process's rows of a batch; all parts together are the batch, in order.

        Raises
        ------
        UsageError
            The batch cannot be shared out evenly: the mean over ranks would not be its mean.
        """
        if batch_size % self.size:
            raise UsageError(
                f"A batch of {batch_size} images cannot be shared out evenly among {self.size} "
                "processes. Start a number of processes that divides it, or pass a configuration "
                "with another batch_size (--config)."
            )
        share = batch_size // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def placed(self, model: nn.Module) -> nn.Module:
        """Return a model on this process's device, with BatchNorm as the ranks can have it."""
        if self.size > 1 and self.device != "cpu":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return model.to(self.device)

    def averaging(self, model: nn.Module) -> nn.Module:
        """Return the module to call in training: its backward pass averages over the ranks."""
        if self.size == 1:
            return model
        ids = None if self.device == "cpu" else [self.device]
        return nn.parallel.DistributedDataParallel(model, device_ids=ids)

    def mean(self, value: float) -> float:
        """Return the mean of a figure over all ranks; every rank must ask."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return total.item() / self.size

    def read(self, path: Path) -> dict[str, Any] | None:
        """Return the tensors and texts in a file of rank 0, or None where it has none.

        The others need no file system in common with it. Nothing but tensors is read.

        Raises
        ------
        ModelFileError
            It cannot be read.
        """
        content = self._sent(_THERE + _bytes_of(path) if self.first and path.exists() else b"")
        if not content:
            return None
        try:
            stored = io.BytesIO(content.removeprefix(_THERE))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about pickles that are refused anyway
                return torch.load(stored, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle fails in any of Python's ways
            raise ModelFileError(
                f"{path} is damaged, or is not the state of a run. Remove it to start again."
            ) from error

    def agreed(self, text: str) -> str:
        """Return what rank 0 has for `text`; every rank must ask."""
        return self._sent(text.encode() if self.first else b"").decode()

    def _sent(self, content: bytes) -> bytes:
        """Return the bytes of rank 0, in every rank."""
        if self.size == 1:
            return content
        length = torch.tensor(len(content), device=self.device)
        distributed.broadcast(length, 0)
        sent = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
        if self.first and content:
            sent.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        if length:
            distributed.broadcast(sent, 0)
        return sent.cpu().numpy().tobytes()

    def share_buffers_(self, model: nn.Module) -> None:
        """Give every rank the buffers of rank 0: BatchNorm's statistics are not averaged."""
        if self.size > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, 0)

    def is_lost(self, error: Exception) -> bool:
        """Whether an error says that another process of the run is gone."""
        return self.size > 1 and bool(LOST.search(str(error)))

    @contextlib.contextmanager
    def explaining_losses(self, step: int, advice: str) -> Iterator[None]:
        """Turn the loss of another process into an error that says how to continue.

        Raises
        ------
        TrainingError
            Another process of the run was lost; `advice` is the end of its message.
        """
        try:
            yield
        except RuntimeError as error:
            if not self.is_lost(error):
                raise
            raise TrainingError(
                f"Rank {self.rank} lost another process of the run at step {step} "
                f"({str(error).splitlines()[0]}). {advice}"
            ) from error


RESUMES = "Start the same command again: it resumes from the last state that was saved."
"""What to do after a loss, where a state is saved."""


def local_rank() -> int:
    """Return the number of this process on its machine; 0 where torchrun did not start it."""
    return int(os.environ.get("LOCAL_RANK", 0))


def is_first_process() -> bool:
    """Whether this is the process that talks, before the processes have met."""
    return int(os.environ.get("RANK", 0)) == 0


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that torchrun started with this one; alone, a group of one.

    Within one machine all traffic between ranks stays on the loopback interface.

    Raises
    ------
    UsageError
        More processes were started on this machine than it has GPUs.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ and "MASTER_ADDR" not in os.environ:
        yield Ranks()
        return
    device = "cpu"
    if torch.cuda.is_available():
        if local_rank() >= torch.cuda.device_count():
            raise UsageError(
                f"This machine has {counted(torch.cuda.device_count(), 'GPU')}, and process "
                f"{local_rank()} has none. Start one per GPU: torchrun --nproc-per-node gpu."
            )
        device = f"cuda:{local_rank()}"
        torch.cuda.set_device(device)
    elif os.environ.get("MASTER_ADDR") in _LOOPBACK and Path("/sys/class/net/lo").exists():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group("gloo" if device == "cpu" else "nccl", timeout=_PATIENCE)
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size(), device)
    finally:
        distributed.destroy_process_group()


def _bytes_of(path: Path) -> bytes:
    with untrusted.opened(path, None) as file:
        return file.read()
