"""Algorithm 1: training of the generator; and direct optimisation of every image's own perturbation (ours)."""

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
from uge.learning.resume import load_checkpoint, save_checkpoint
from uge.methods.uge.generator import Generator, add_perturbation
from uge.methods.uge.hackers import Losses
from uge.methods.uge.settings import GeneratorSettings
from uge.progress import Progress
from uge.runtime import Runtime, seeded, stream

_NO_EVENTS = EventLog(None)


def make_generator(
    settings: GeneratorSettings, store: PixelStore, budget: Budget, *, seed: int, size: int = 0
) -> Generator:
    """An untrained generator for the images of ``store``; its parameters are drawn from ``seed``."""
    with seeded(seed, "generator"):
        return Generator(
            store.channels,
            budget,
            width=settings.width,
            blocks=settings.blocks,
            dropout=settings.dropout,
            skips=settings.skips,
            classes=store.classes if settings.conditional else (),
            size=size,
            output=settings.output,
            stride=settings.stride,
        )


def train_generator(
    generator: Generator,
    store: PixelStore,
    total: Losses | Records,
    settings: GeneratorSettings,
    *,
    seed: int,
    runtime: Runtime,
    checkpoint: Path | None = None,
    checkpoint_every: int = 100,
    events: EventLog = _NO_EVENTS,
    progress: Progress = lambda done, total, figures: None,
) -> int:
    """Minimise the total loss over the generator's parameters (Algorithm 1).

    Every step draws its own named random streams, so a run resumed from ``checkpoint``
    ends with the same bytes as one that was never interrupted.

    Args:
        generator: Trained in place; ends in eval mode.
        store: Clean images at the training size.
        total: The weighted losses; or perturbations of the images in 8-bit levels, for imitation.
        settings: Optimiser, step cap, convergence.
        seed: Root seed.
        runtime: Device and precision.
        checkpoint: File to resume from if it exists, written every ``checkpoint_every`` steps.
        checkpoint_every: Steps between checkpoints.
        events: Gets one ``step`` event per ten steps.
        progress: Called every ten steps with (steps done, cap, figures).

    Returns:
        Steps done.

    Raises:
        UGEError: The loss became NaN or infinite.
    """
    runtime.place(generator)
    parameters = list(generator.parameters())
    optimizer = torch.optim.Adam(parameters, lr=settings.lr)
    step = 0
    windows = list[float]()  # Mean loss of every full window.
    running = 0.0  # Sum of the losses in the window that has begun.
    settled_at = None
    if checkpoint is not None and checkpoint.exists():
        meta = load_checkpoint(checkpoint, {"generator": generator}, optimizer)
        step, windows, settled_at, running = (meta[key] for key in ("step", "windows", "settled_at", "running"))
    size = min(settings.batch_size, len(store))
    per_epoch = len(store) // size
    settle_steps = round(settings.settle * settings.max_steps)
    while step < settings.max_steps:
        if settled_at is None and (step >= settings.max_steps - settle_steps or converged(windows, settings)):
            settled_at = step
        if settled_at is not None and step >= settled_at + settle_steps:
            break
        generator.train(settled_at is None)
        order = epoch_order(len(store), stream(seed, "generator-order", step // per_epoch))
        batch = fetch(store, order[step % per_epoch * size :][:size])
        with seeded(seed, "generator-layers", step):
            with runtime.autocast():
                delta = generator(batch.x.to(memory_format=runtime.memory_format), batch.y)
            if isinstance(total, Records):
                parts = {"loss": imitation(delta, total.read(batch.indices), generator.budget)}
            else:
                x_u = add_perturbation(batch.x, delta)
                parts = total(batch.x, x_u, batch.y, stream(seed, "generator-snapshot", step))
            optimizer.zero_grad()
            # Only these parameters: authorised networks get no gradient.
            parts["loss"].backward(inputs=parameters)  # type: ignore[no-untyped-call]
        optimizer.step()
        step += 1
        loss = parts["loss"].item()
        if not math.isfinite(loss):
            raise UGEError(f"the generator's loss became {loss} at step {step}; lower generator.lr or the loss weights")
        running += loss
        if step % settings.window == 0:
            windows.append(running / settings.window)
            running = 0.0
        if step % 10 == 0 or step == settings.max_steps:
            figures = {name: round(value.item(), 5) for name, value in parts.items()}
            events.write("step", step=step, **figures, mean_abs_delta=round(delta.detach().abs().mean().item(), 6))
            progress(step, settings.max_steps, figures)
        if checkpoint is not None and (step % checkpoint_every == 0 or step == settings.max_steps):
            meta = {"step": step, "windows": windows, "settled_at": settled_at, "running": running}
            save_checkpoint(checkpoint, {"generator": generator}, optimizer, meta)
    generator.eval()
    return step


def imitation(delta: Tensor, target: Tensor, budget: Budget) -> Tensor:
    """Mean squared difference of two perturbations, in units of the budget (ours).

    Args:
        delta: The generator's perturbation, in [0, 1] units.
        target: The perturbation to imitate, in 8-bit levels, same shape.
        budget: Bound on both.
    """
    return ((delta * 255 - target) / budget.levels).square().mean()


def converged(windows: list[float], settings: GeneratorSettings) -> bool:
    """True if two successive window means improved by less than the tolerance, from the fourth window on.

    Args:
        windows: Mean loss of each full window so far.
        settings: ``tolerance`` is a part of the range of ``windows``; 0 switches the test off.
    """
    if settings.tolerance == 0 or len(windows) < 4:
        return False
    needed = settings.tolerance * (max(windows) - min(windows))
    return windows[-3] - windows[-2] < needed and windows[-2] - windows[-1] < needed


@torch.no_grad()
def start_delta(generator: Generator, store: PixelStore, delta: Records, runtime: Runtime) -> None:
    """Fill ``delta`` with the generator's perturbations in 8-bit levels."""
    generator.eval()
    for batch in batches(store, 500):
        with runtime.autocast():
            bounded = generator(batch.x.to(memory_format=runtime.memory_format), batch.y)
        delta.write(batch.indices, ((add_perturbation(batch.x, bounded) - batch.x) * 255).round())


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
    events: EventLog = _NO_EVENTS,
    progress: Progress = lambda done, total, figures: None,
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
        progress(done, len(store), {})
    after.flush()
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
