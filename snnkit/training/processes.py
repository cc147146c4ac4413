"""One run in several processes: who this process is, and what the processes tell each other.

Started by torchrun (`python -m torch.distributed.run --nproc_per_node 2 -m snnkit.cli train ...`),
every process holds the whole model and a part of each batch. Gradients are averaged in one flat
buffer in the order of the parameters. That order is why it is not DistributedDataParallel, whose
buckets are laid out anew after the first step: a resumed run would add in another order. It also
lets parameters have no gradient.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from snnkit.errors import BackendMissing, TrainingFailed, UsageError
from snnkit.training.schedule import tensors_of

Tensor = Any


@dataclass(frozen=True)
class Processes:
    """rank : number of this process, 0 writes. world : how many. device : where the model is."""

    rank: int
    world: int
    device: Any

    @property
    def writes(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over all processes, in every process."""
        total = values.clone()
        if self.world > 1:
            distributed.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.world == 1:
            return flag
        return bool(self.sum(torch.tensor([float(flag)], device=self.device)).item())

    def gather(self, value: Any) -> list[Any]:
        """`value` of every process by rank, in every process."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        distributed.all_gather_object(found, value)
        return found

    def average_gradients(self, model: Any) -> None:
        """Each gradient becomes the mean over processes."""
        if self.world == 1:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        distributed.all_reduce(flat)
        flat /= self.world
        start = 0
        for g in gradients:
            g.copy_(flat[start : start + g.numel()].view_as(g))
            start += g.numel()

    def share_buffers(self, model: Any) -> None:
        """Buffers (running statistics of BatchNorm) become those of process 0."""
        if self.world > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, 0)

    def agree(self, *models: Any) -> str:
        """The digest of all tensors of the models. Raises TrainingFailed if processes differ."""
        digests = self.gather(digest_of(*models))
        if len(set(digests)) > 1:
            listed = ", ".join(f"process {i}: {d[:12]}" for i, d in enumerate(digests))
            raise TrainingFailed(
                f"the processes hold different weights ({listed}); expected the same in all; does "
                "the model draw its initial weights from another source than torch's seed?"
            )
        return str(digests[0])


def digest_of(*models: Any) -> str:
    """sha256 of names, types, shapes and values of all parameters and buffers."""
    found = hashlib.sha256()
    for model in models:
        for name, tensor in tensors_of(model):
            t = tensor.detach().cpu().contiguous()
            found.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
            found.update(t.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """This process among those that torchrun started; alone without torchrun."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    place = _device(device, int(os.environ.get("LOCAL_RANK", "0")), world)
    if world == 1:
        yield Processes(0, 1, place)
        return
    ours = not distributed.is_initialized()  # a caller may have set them up, and keeps them then
    if ours:
        distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Processes(distributed.get_rank(), world, place)
    finally:
        if ours:
            distributed.destroy_process_group()


def _device(name: str, local: int, world: int) -> Any:
    try:
        place = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device '{name}': torch knows no such device: {error}") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise BackendMissing(
            f"device '{name}': torch {torch.__version__} sees no CUDA device here; set "
            "training.device to cpu, or run: pip install torch with CUDA (pytorch.org)"
        )
    if place.type == "cuda" and world > 1:
        place = torch.device("cuda", local)
        torch.cuda.set_device(place)
    return place
