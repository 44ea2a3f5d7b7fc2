"""Direct optimisation of every image's own perturbation under the losses of the generator (ours)."""

import math
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor

from uge.budget import Budget
from uge.data.loader import batches, epoch_order, fetch
from uge.data.store import PixelStore, Records
from uge.errors import UGEError
from uge.files import EventLog
from uge.methods.uge.generator import Generator, add_perturbation, level_type
from uge.methods.uge.hackers import Losses
from uge.progress import Progress
from uge.runtime import Runtime, seeded, stream


@torch.no_grad()
def start_delta(generator: Generator, store: PixelStore, delta: Records, runtime: Runtime) -> None:
    """Fill ``delta`` with the generator's perturbations in 8-bit levels."""
    generator.eval()
    for batch in batches(store, 500):
        with runtime.autocast():
            bounded = generator(batch.x.to(memory_format=runtime.memory_format), batch.y)
        stored = (add_perturbation(batch.x, bounded) - batch.x) * 255
        delta.write(batch.indices, stored.round())


def refine_pass(
    store: PixelStore,
    before: Records,
    after: Records,
    total: Losses,
    budget: Budget,
    *,
    step: int,
    batch_size: int,
    by_class: bool = False,
    seed: int,
    name: tuple[str | int, ...],
    events: EventLog | None = None,
    progress: Progress | None = None,
) -> None:
    """One sign step on the perturbation of every image.

    Args:
        store: Clean images at the training size.
        before: Perturbations in 8-bit levels; read only, so that an interrupted pass
            can start again and give the same bytes.
        after: Where the moved perturbations go.
        total: The weighted losses.
        budget: Bound on the stored change.
        step: Length of the sign step in 8-bit levels.
        batch_size: Images per step.
        by_class: True for steps of images of one label.
        seed: Root seed.
        name: Names this pass in the random streams.
        events: Gets one ``refine`` event, with the mean losses of the pass.
        progress: Called after each batch with (images done, images, figures).

    Raises:
        UGEError: The loss became NaN or infinite.
    """
    order = epoch_order(len(store), stream(seed, "refine-order", *name))
    steps = class_batches(order, store.labels.cpu(), batch_size) if by_class else torch.split(order, batch_size)
    sums = dict[str, float]()
    done = 0
    for number, indices in enumerate(steps):
        batch = fetch(store, indices)
        delta = before.read(indices)
        x_u = (batch.x + delta / 255).clamp(0, 1).requires_grad_(True)
        if len(indices) > 1:
            with seeded(seed, "refine-layers", *name, number):
                parts = total(batch.x, x_u, batch.y, stream(seed, "refine-snapshot", *name, number))
                (gradient,) = torch.autograd.grad(parts["loss"], x_u)
            if not math.isfinite(parts["loss"].item()):
                raise UGEError(f"the loss of refinement became {parts['loss'].item()}; lower the loss weights")
            delta = move(store.pixels.read(indices), delta, gradient, step, budget)
            for key, value in parts.items():
                sums[key] = sums.get(key, 0.0) + value.item() * len(indices)
        after.write(indices, delta)
        done += len(indices)
        if progress is not None:
            progress(done, len(store), {})
    after.flush()
    if events is not None:
        means = {key: round(value / len(store), 5) for key, value in sums.items()}
        events.write("refine", name="/".join(map(str, name)), levels=step, **means)


def class_batches(order: Tensor, labels: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """Batches of one label each that hold every image once; classes take turns as long as they last.

    Args:
        order: Indices of images, in the order in which they are taken.
        labels: Labels of all images, by index.
        batch_size: Images of a batch at most.
    """
    of_class = [torch.split(order[labels[order] == label], batch_size) for label in sorted({*labels.tolist()})]
    return tuple(batch for turn in zip_longest(*of_class) for batch in turn if batch is not None)


def move(clean: Tensor, delta: Tensor, gradient: Tensor, step: int, budget: Budget) -> Tensor:
    """δ - step · sign(gradient), projected on the budget and on the range of stored pixels (one step of PGD).

    Args:
        clean: uint8 pixels.
        delta: Perturbation in 8-bit levels, same shape; the result has its type.
        gradient: Gradient of the loss in the pixels, same shape.
        step: Length in 8-bit levels.
        budget: Bound on the stored change.
    """
    moved = delta.to(torch.int16) - step * gradient.sign().to(torch.int16)
    return (budget.add(clean, moved).to(torch.int16) - clean.to(torch.int16)).to(delta.dtype)  # type: ignore[no-any-return]


def protected_store(store: PixelStore, delta: Records, budget: Budget) -> PixelStore:
    """The protected pixels of ``store`` as a store of their own."""
    out = store.empty_like()
    for indices in torch.split(torch.arange(len(store)), 1000):
        out.pixels.write(indices, budget.add(store.pixels.read(indices), delta.read(indices)))
    return out


def delta_records(store: PixelStore, budget: Budget, path: Path | None = None) -> Records:
    """Records of perturbations of ``store`` within ``budget``, zeros; the ending of their file is their type."""
    dtype = level_type(budget)
    path = path and path.with_suffix(f".{str(dtype).removeprefix('torch.')}")
    return Records(len(store), store.pixels.shape, dtype, device=store.device, path=path)
