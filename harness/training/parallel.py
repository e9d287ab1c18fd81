"""One training in several processes, such as torchrun starts: each restores an equal part of every batch.

Batches, routing noise, losses and gradients are those of the whole batch, so the result is that of one process, but for
the order in which numbers are summed; weights, averages and the optimizer's state stay the same in all processes.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Generator, Tensor
from torch import distributed as dist

from harness.core.errors import OutageError, UserError, describe_error
from harness.data import CropBatch
from harness.models import AnyGenerator, PartGenerator

_PATIENCE = timedelta(days=1)  # for processes that are at work elsewhere; one that has died is noticed at once
_T = TypeVar("_T")


@dataclass(frozen=True)
class Group:
    """The processes that train one network: which of them this one is, of all and of those on its machine.

    The first is the leader: it alone reads and writes files. What a method gives is the same in all processes, which
    call it in the same order. `OutageError` where one of them is gone.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that reads and writes files."""
        return self.rank == 0

    def join(self, device: str) -> None:
        """Wait for the other processes, and be one of them from here on; MASTER_ADDR and MASTER_PORT say where.

        Tensors on the CPU travel by gloo, those on a GPU by NCCL. `UserError` where there is no such place.
        """
        if self.size == 1:
            return
        backend = "gloo"
        if torch.device(device).type == "cuda":
            torch.cuda.set_device(device)
            backend = "cpu:gloo,cuda:nccl"
        try:
            dist.init_process_group(backend, rank=self.rank, world_size=self.size, timeout=_PATIENCE)
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"process {self.rank} of {self.size} finds no others ({describe_error(error)}); expected the "
                "environment that torchrun gives; start all processes by one torchrun"
            ) from None

    def leave(self) -> None:
        """Let go of the others, which nobody waits for from here on."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def check_batch_size(self, batch_size: int) -> None:
        """Raise `UserError` where a batch has no equal parts."""
        if batch_size % self.size:
            below = batch_size - batch_size % self.size
            raise UserError(
                f"training.batch_size {batch_size} cannot be divided among {self.size} processes; expected a multiple "
                f"of {self.size}; set {f'{below} or ' if below else ''}{below + self.size}, or start another number of "
                "processes"
            )

    def own_part(self, batch: CropBatch) -> CropBatch:
        """Return the rows of a batch that are this process's."""
        rows = len(batch.low_BCHW) // self.size
        return CropBatch(*(each[rows * self.rank : rows * (self.rank + 1)] for each in batch))

    def own_noise(self, generator: Generator) -> AnyGenerator:
        """Return what draws this process's rows of the noise of a batch."""
        return generator if self.size == 1 else PartGenerator(generator, self.rank, self.size)

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over all processes, whose gradient is, averaged over them, that of the whole batch.

        It is passed to each process's own value as it is: of a function of the mean, a process finds the derivative at
        the mean times its own part's gradient.
        """
        return value if self.size == 1 else _Mean.apply(value, self.size)  # type: ignore[no-untyped-call]

    def average_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Average the gradients of all processes; a parameter that none has a gradient of is left without."""
        if self.size == 1:
            return
        has_gradient = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.float32)
        gradients = [
            (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).flatten()
            for parameter in parameters
        ]
        flat = torch.cat([*gradients, has_gradient.to(gradients[0].device)])
        with _reaching():
            dist.all_reduce(flat)
        sizes = [*(len(gradient) for gradient in gradients), len(parameters)]
        *averages, counts = torch.split(flat / self.size, sizes)
        for parameter, average, count in zip(parameters, averages, counts.tolist(), strict=True):
            parameter.grad = average.view_as(parameter) if count else None

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        if self.size == 1:
            return flag
        flags = torch.tensor(int(flag))
        with _reaching():
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def wait(self) -> None:
        """Wait until all processes have come here."""
        self.any(False)

    def copy(self, tensors: Iterable[Tensor]) -> None:
        """Fill tensors with the leader's."""
        if self.size > 1:
            with _reaching():
                for tensor in tensors:
                    dist.broadcast(tensor, src=0)

    def tell(self, find: Callable[[], _T]) -> _T:
        """Return what the leader finds, or raise the `UserError` that it meets; the others do not look."""
        if self.size == 1:
            return find()
        told: list[Any] = [None, None]
        if self.leads:
            try:
                told[0] = find()
            except UserError as error:
                told[1] = error
        with _reaching():
            dist.broadcast_object_list(told, src=0, device=torch.device("cpu"))
        found, met = told
        if met is not None:
            raise met
        return found  # type: ignore[no-any-return]


ALONE = Group()


class _Mean(torch.autograd.Function):
    """The mean of a tensor over all processes; backward, the gradient goes to this process's own tensor."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, processes: int) -> Tensor:
        total = value.clone()
        with _reaching():
            dist.all_reduce(total)
        return total / processes

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


@contextlib.contextmanager
def _reaching() -> Iterator[None]:
    """Say in our own words that another process is gone."""
    try:
        yield
    except RuntimeError as error:
        raise OutageError(
            f"another process of this training is gone ({describe_error(error)}); start all of them again: training "
            "goes on from its last checkpoint"
        ) from error
