"""Attacks: their material (a context), their row in the table, and plain functions as attacks."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from uge.data.store import PixelStore
from uge.errors import UsageError
from uge.learning.objectives import Objective, supervised
from uge.learning.recipes import Recipe
from uge.learning.training import History, fit
from uge.progress import Progress
from uge.publishing.manifest import Manifest
from uge.registry import summary_of
from uge.runtime import Runtime, seeded

#: Kind of an attack.
Family = Literal[
    "plain", "preprocess", "augment", "train", "purify", "transfer", "knowledge", "combination", "yardstick"
]
#: Possession beyond the published folder: the trained authorised network and θ0, originals, other images, or a few
#: labelled clean images.
Need = Literal["key", "clean", "public", "few"]
#: Public material that an attack uses where there is some, without needing more than the published folder.
Use = Literal["claims", "public"]

BOTH_TESTS = 1
"""Revision of attacks that change test images, since accuracy is measured on the images as they came, too."""
_BATCH = 500  # Images of 32 pixels or less.


def batched(store: PixelStore, rows: Tensor | None = None) -> Sequence[Tensor]:
    """Rows of a store, all by default, in groups that take as much memory at any size of image."""
    rows = torch.arange(len(store)) if rows is None else rows
    return torch.split(rows, max(1, min(_BATCH, _BATCH * 32**2 // store.size**2)))


def stored(values: Tensor) -> Tensor:
    """Levels from 0 to 255 as pixels."""
    return values.round().clamp(0, 255).to(torch.uint8)


def _refuse(needed: str) -> Any:
    raise UsageError(f"this attack needs {needed}, or leave it out")


@dataclass(frozen=True)
class Claims:
    """Public claims of a copy: how it was made, as its manifest says.

    Attributes:
        method: Name of the method.
        rho: Budget in [0, 1] units; 1.0 where the method bounds something else.
        networks: Architectures of the authorised networks, if there are any.
        details: Public settings of the method (``method_details``).
    """

    method: str
    rho: float
    networks: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """Claims of a manifest."""
        networks = tuple(each.network for each in manifest.authorized)
        return cls(manifest.method, manifest.budget.rho, networks, manifest.model_dump(mode="json")["method_details"])

    def json_dict(self) -> dict[str, Any]:
        """Claims as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Context:
    """Material of one attack: the possessions of a hacker, and nothing of a private folder.

    An attack trains ``network`` in place and returns a :class:`History` (:func:`learn` does both), or it returns a
    changed context (``dataclasses.replace``), on which plain training then follows. Everything random comes from
    ``uge.runtime.stream(context.seed, "some name")``.

    Attributes:
        network: Fresh network with logits for every class; takes pixels in [0, 1], batch × channels × size × size.
        store: The published images at the training size. ``store.pixels.read(rows)`` gives uint8 pixels,
            ``store.labels`` int64 labels, ``store.classes`` their names; see :func:`batched`.
        test: Clean test images, for measuring; an attack may filter them, but never trains on them. Where it does,
            accuracy is measured on ``original_test`` as well, and the larger counts.
        recipe: Optimiser, schedule and augmentation.
        seed: Root of data order, augmentation and of anything else random.
        runtime: Device and precision.
        teacher: Gives the trained authorised network; raises UsageError without a key.
        progress: Called after every epoch with (epochs done, epochs, figures).
        clean: Gives the originals of the published images in the same order; raises UsageError without any.
        theta0: Gives a fresh copy of the authorised network before training; raises UsageError without a key.
        public: Gives labelled images of another data set at the training size; raises UsageError without any.
        claims: Gives what the manifest of the copy says; raises UsageError without one.
        leak_seed: Root of which originals leaked; the same for every attack of one repetition.
        checkpoint: File from which an interrupted training goes on; None for none.
        few: Gives a few labelled clean images, ten a class, in none of the other sets; raises UsageError without any.
        chooses: True where outputs are renamed and the epoch is chosen by ``few``, after every attack. An attack that
            trains on these sets it to False for that training.
        original_test: Test images as they came; by default, and so before any attack, ``test``.
        original_few: Gives the labelled images as they came; by default ``few``.
        figures: Measurements of the attack itself by name, which it adds for the case's file.
    """

    network: nn.Module
    store: PixelStore
    test: PixelStore
    recipe: Recipe
    seed: int
    runtime: Runtime
    teacher: Callable[[], nn.Module]
    progress: Progress | None = None
    clean: Callable[[], PixelStore] = lambda: _refuse("originals of the published images; give --clean SOURCE")
    theta0: Callable[[], nn.Module] = lambda: _refuse("the authorised network's initial parameters; give --key FILE")
    public: Callable[[], PixelStore] = lambda: _refuse("labelled images of another data set; give --public SOURCE")
    claims: Callable[[], Claims] = lambda: _refuse("the manifest that uge protect writes; audit a folder with one")
    leak_seed: int = 0
    checkpoint: Path | None = None
    few: Callable[[], PixelStore] = lambda: _refuse("ten labelled clean images a class; audit with --worst-case")
    chooses: bool = False
    figures: dict[str, float] = field(default_factory=dict)
    original_test: PixelStore = None  # type: ignore[assignment]
    original_few: Callable[[], PixelStore] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.original_test is None:
            object.__setattr__(self, "original_test", self.test)
        if self.original_few is None:
            object.__setattr__(self, "original_few", self.few)


Attack = Callable[[Context], History]  # Trains ``context.network`` and returns the measurements after each epoch.
Preparation = Callable[[Context], Context]  # Changes the material (images, recipe, starting weights) before training.
#: uint8 pixels, batch × channels × size × size, to pixels of the same shape and type.
Transform = Callable[[Tensor], Tensor]


def learn(context: Context, objective: Objective = supervised) -> History:
    """Train ``context.network`` on ``context.store`` by an objective, tested after every epoch.

    Without an objective this is plain training on images and labels as they are ("Normal" in the paper's tables).
    """
    changed = context.original_test is not context.test
    return fit(
        context.network,
        context.store,
        context.recipe,
        seed=context.seed,
        runtime=context.runtime,
        objective=objective,
        test=context.test,
        labelled=context.few() if context.chooses else None,
        original_test=context.original_test if changed else None,
        original_labelled=context.original_few() if changed and context.chooses else None,
        checkpoint=context.checkpoint,
        progress=context.progress,
    )


@dataclass(frozen=True)
class Entry:
    """One attack and its properties.

    Attributes:
        run: The attack itself.
        family: Kind of the attack.
        about: One line for the report, without a full stop; it continues "a hacker who".
        cost: Time in units of plain training, roughly measured.
        expected: A prior, not a measurement of this audit: points of test accuracy that it wins back over
            plain training, after a public benchmark of seven protections of CIFAR-10.
        needs: Possessions beyond the published folder.
        uses: Public material beside the images: the claims of the manifest, without which the attack is left out, or
            public images, for which embedded photographs stand in.
        same_architecture: True if the hacker's network must be of the authorised network's architecture.
        prepare: The part before training, where any other attack may follow; see :func:`combination`.
        revision: Raised when the attack is changed, so that cases of the earlier form are run again.
    """

    run: Attack
    family: Family
    about: str
    cost: float = 1.0
    expected: float = 10.0
    needs: frozenset[Need] = frozenset()
    uses: frozenset[Use] = frozenset()
    same_architecture: bool = False
    prepare: Preparation | None = None
    revision: int = 0


def prepared(prepare: Preparation, family: Family, about: str, **properties: Any) -> Entry:
    """An attack that changes its material and then trains plainly; ``properties`` are further fields of the entry."""
    return Entry(lambda context: learn(prepare(context)), family, about, prepare=prepare, **properties)


def with_recipe(**changes: Any) -> Preparation:
    """Train with some fields of the recipe changed."""
    return lambda context: replace(context, recipe=context.recipe.model_copy(update=changes))


def with_images(context: Context, store: PixelStore, others: Callable[[PixelStore], PixelStore]) -> Context:
    """The context with ``store`` as published images, and every other image of the hacker changed by ``others``."""
    return replace(
        context,
        store=store,
        test=others(context.test),
        few=lambda: others(context.few()),
        clean=lambda: others(context.clean()),
        public=lambda: others(context.public()),
    )


def transformed(store: PixelStore, change: Transform) -> PixelStore:
    """A store with every image changed, batch by batch."""
    result = store.empty_like()
    for rows in batched(store):
        result.pixels.write(rows, change(store.pixels.read(rows)))
    return result


def changing(transform: Callable[[Context], Transform]) -> Preparation:
    """A transform of every image that the hacker has, of the test set too."""

    def prepare(context: Context) -> Context:
        change = transform(context)
        return with_images(context, transformed(context.store, change), lambda store: transformed(store, change))

    return prepare


def entry_from(
    name: str,
    function: Any,
    *,
    about: str = "",
    family: Family | None = None,
    needs: Sequence[Need] = (),
    train_only: bool = False,
    **properties: Any,
) -> Entry:
    """Row of the table for an attack of another package; for the arguments see :func:`uge.attack`.

    Raises:
        UsageError: ``function`` is no function of (context) or of (images, labels), or a property is wrong.
    """
    if isinstance(function, Entry):
        return function
    unknown = [*set(needs) - set(get_args(Need)), *({family} - {None, *get_args(Family)})]
    if unknown:
        raise UsageError(
            f"the attack '{name}' must have needs and a family of {', '.join([*get_args(Need), *get_args(Family)])}, "
            f"got {unknown[0]!r}"
        )
    properties |= {"about": summary_of(function, about), "needs": frozenset(needs)}
    match _required_arguments(function):
        case 2:
            properties["revision"] = properties.get("revision", 0) + (0 if train_only else BOTH_TESTS)
            return prepared(_on_images(name, function, train_only), family or "preprocess", **properties)
        case 1 if "Context" in str(getattr(function, "__annotations__", {}).get("return")):
            return prepared(function, family or "purify", **properties)
        case 1:
            return Entry(_finished(name, function), family or "train", **properties)
    raise UsageError(f"the attack '{name}' must be a function of (context) or of (images, labels), got {function!r}")


def _required_arguments(function: Any) -> int:
    if not callable(function):
        return 0
    return sum(
        each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD) and each.default is each.empty
        for each in inspect.signature(function).parameters.values()
    )


def _finished(name: str, function: Callable[[Context], Any]) -> Attack:
    def run(context: Context) -> History:
        result = function(context)
        result = learn(result) if isinstance(result, Context) else result
        if not isinstance(result, History):
            raise UsageError(f"the attack '{name}' must return a History or a Context, got {type(result).__name__}")
        return result

    return run


def _on_images(name: str, function: Callable[[Tensor, Tensor], Any], train_only: bool) -> Preparation:
    """Change images by a function of (images, labels); labels that a hacker does not know are -1."""

    def changed(store: PixelStore, labels: Tensor, seed: int) -> PixelStore:
        result = store.empty_like()
        with seeded(seed, "attack", name):
            for rows in batched(store):
                pixels = store.pixels.read(rows)
                images = function(pixels.clone(), labels[rows.to(labels.device)])
                if not isinstance(images, Tensor) or (images.shape, images.dtype) != (pixels.shape, torch.uint8):
                    came = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images)
                    raise UsageError(
                        f"the attack '{name}' must return a uint8 tensor of the images' shape {tuple(pixels.shape)}, "
                        f"got {came}; convert its result"
                    )
                result.pixels.write(rows, images)
        return result

    def prepare(context: Context) -> Context:
        store = changed(context.store, context.store.labels, context.seed)
        if train_only:
            return replace(context, store=store)
        return with_images(
            context, store, lambda other: changed(other, torch.full_like(other.labels, -1), context.seed)
        )

    return prepare


def combination(first: Entry, second: Entry) -> Entry:
    """One attack after another; the order does not matter where only one of them prepares.

    Args:
        first: Changes images, recipe or starting weights (its ``prepare``).
        second: Any attack.

    Raises:
        UsageError: Both replace the training itself, so that neither can go before the other.
    """
    if first.prepare is None:
        first, second = second, first
    prepare = first.prepare
    also = second.prepare
    if prepare is None:
        raise UsageError(
            f"a combination needs one attack that only prepares images, recipe or weights, but one '{first.about}' "
            f"and the other '{second.about}'; replace one by a preprocessing attack"
        )
    return Entry(
        lambda context: second.run(prepare(context)),
        "combination",
        f"{first.about}, and {second.about}",
        cost=first.cost * second.cost,
        expected=max(first.expected, second.expected),
        needs=first.needs | second.needs,
        uses=first.uses | second.uses,
        same_architecture=first.same_architecture or second.same_architecture,
        prepare=None if also is None else lambda context: also(prepare(context)),
        revision=first.revision + second.revision,
    )
