"""Trials of the method ``robust``: variants, and a few attacks on each that know how it is made.

::

    python benchmarks/robust_search.py data/cifar10 results/robust --variant standard,far --limit 5000
    python benchmarks/robust_search.py data/cifar10 results/robust --table

Every variant is made once, and every attack trains the plain CNN for 5 epochs, on published images that a filter may
have changed. Its outputs are then renamed by the confusion matrix of the test images, one to one and many to one: an
upper bound of what a few labelled images give. Test images are used as they are and changed by the same filter; the
better of both counts. Results are kept attack by attack, so a run that was cut off goes on. The surrogates, which
variants share, are kept in ``--keep``. ``clean`` is no variant: the attacks on the originals.
"""

import argparse
import functools
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from uge.attacks.compression import jpeg
from uge.attacks.preprocess import gaussian_blur, grayscale
from uge.budget import Budget
from uge.data import load_images
from uge.data.loader import batches
from uge.data.store import PixelStore, Records, load_pixels
from uge.files import canonical_json, read_json, write_json
from uge.learning.objectives import Objective, adversarial, augmented, full_precision, supervised
from uge.learning.recipes import Recipe
from uge.learning.training import evaluate, fit
from uge.methods.robust.clusters import clustered
from uge.methods.robust.filters import NUMBERS, filtered
from uge.methods.robust.perturb import Loss, Steps, batch_rows, class_targets, perturb, targeted
from uge.methods.robust.settings import FilterShares, RobustSettings
from uge.methods.robust.surrogates import train_surrogates
from uge.methods.uge.generator import delta_records
from uge.networks import ImageClassifier, build
from uge.publishing.quality import Tally, compare
from uge.runtime import Runtime, stream


@dataclass(frozen=True)
class Variant:
    """One form of the method."""

    about: str
    settings: RobustSettings = field(default_factory=RobustSettings)
    loss: Loss = targeted
    steps_through: FilterShares | None = None
    steps: type[Steps] = Steps

    @property
    def shares(self) -> FilterShares:
        """Filters of the steps; by default those of the surrogates' training."""
        return self.steps_through or self.settings.filters


def softened(network: ImageClassifier, x: Tensor, labels: Tensor, goals: Tensor, own: float) -> Tensor:
    """Cross-entropy with a target that keeps a share of the own class."""
    logits = full_precision(network(x))
    target, kept = (F.cross_entropy(logits, y, reduction="none") for y in (goals, labels))
    return (1 - own) * target + own * kept


def pushed(network: ImageClassifier, x: Tensor, labels: Tensor, goals: Tensor, weight: float) -> Tensor:
    """Cross-entropy with the target, and the probability of the own class as a penalty."""
    logits = full_precision(network(x))
    return (
        F.cross_entropy(logits, goals, reduction="none") + weight * logits.softmax(1).gather(1, labels[:, None])[:, 0]
    )


def margin(network: ImageClassifier, x: Tensor, labels: Tensor, goals: Tensor, most: float) -> Tensor:
    """Logit of the own class less that of the target, no further than ``-most``."""
    logits = full_precision(network(x))
    own, target = (logits.gather(1, y[:, None])[:, 0] for y in (labels, goals))
    return (own - target).clamp_min(-most)


def soft_goals(network: ImageClassifier, x: Tensor, labels: Tensor, goals: Tensor, offsets: Sequence[int]) -> Tensor:
    """Mean cross-entropy with several classes, the same for every image of a class."""
    logits = full_precision(network(x))
    others = [(labels + offset) % logits.shape[1] for offset in offsets]
    return torch.stack([F.cross_entropy(logits, each, reduction="none") for each in others]).mean(0)


class BySurrogate(Steps):
    """A target of its own, three classes on, for the adversarially trained surrogates."""

    others: ClassVar[tuple[int, ...]] = (2,)

    def _gradient(self, levels: Tensor, labels: Tensor, goals: Tensor, numbers: Tensor) -> Tensor:
        other = (labels + 3) % self.surrogates[0].classes
        usual = [number for number in range(len(self.surrogates)) if number not in self.others]
        gradient = torch.zeros_like(levels)
        for places, aims in ((usual, goals), (list(self.others), other)):
            own = replace(self, surrogates=[self.surrogates[place] for place in places])
            gradient += Steps._gradient(own, levels.detach(), labels, aims, numbers[:, places])
        return gradient


class FiveBySurrogate(BySurrogate):
    """The same for five surrogates."""

    others = (2, 4)


class ByView(Steps):
    """A target of its own for coarse views (JPEG, blur, half size): three classes on."""

    def _gradient(self, levels: Tensor, labels: Tensor, goals: Tensor, numbers: Tensor) -> Tensor:
        shares = self.shares.model_dump()
        total = sum(shares.values())
        coarse = {name: share if name in ("jpeg", "blur", "half") else 0.0 for name, share in shares.items()}
        fine = {name: share - coarse[name] for name, share in shares.items()}
        other = (labels + 3) % self.surrogates[0].classes
        gradient = torch.zeros_like(levels)
        for part, aims in ((coarse, other), (fine, goals)):
            own = replace(self, shares=FilterShares(**part))
            gradient += sum(part.values()) / total * Steps._gradient(own, levels.detach(), labels, aims, numbers)
        return gradient


STRONG = FilterShares(none=0.05, jpeg=0.4, gray=0.1, blur=0.18, half=0.15, bits=0.04, colour=0.08)
FIVE = "cnn,resnet8,cnn@4,cnn,resnet8@4"
VARIANTS = {
    "standard": Variant("the defaults"),
    "strong-filters": Variant("fewer images as they are, more JPEG and blur", RobustSettings(filters=STRONG)),
    "strong-steps": Variant("the same in the steps alone", steps_through=STRONG),
    "by-surrogate": Variant("the adversarial surrogate has another target", steps=BySurrogate),
    "by-surrogate-strong": Variant(
        "the adversarial surrogate has another target, fewer images as they are in the steps",
        steps=BySurrogate,
        steps_through=STRONG,
    ),
    "five-by-surrogate": Variant(
        "two more surrogates, another target for the adversarial ones, fewer images as they are in the steps",
        RobustSettings(surrogates=FIVE),
        steps=FiveBySurrogate,
        steps_through=STRONG,
    ),
    "five-48": Variant(
        "two more surrogates, fewer images as they are in the steps, 48 steps",
        RobustSettings(surrogates=FIVE, steps=48),
        steps_through=STRONG,
    ),
    "by-view": Variant("coarse views have another target", steps=ByView),
    "two-goals": Variant("two targets at once", loss=functools.partial(soft_goals, offsets=(1, 3))),
    "far": Variant("targets that surrogates take the class for least", RobustSettings(targets="far")),
    "near": Variant("targets that surrogates take the class for most", RobustSettings(targets="near")),
    "soft-30": Variant("targets keep 30 % of the own class", loss=functools.partial(softened, own=0.3)),
    "push": Variant("the own class's probability as a penalty of weight 3", loss=functools.partial(pushed, weight=3.0)),
    "margin": Variant("margin of logits, up to 5", loss=functools.partial(margin, most=5.0)),
    "radius-8": Variant(
        "the adversarial surrogate trained within 8 levels", RobustSettings(surrogates="cnn,resnet8,cnn@8")
    ),
    "clusters": Variant("ten clusters of features in place of the labels", RobustSettings(clusters=10)),
    "five": Variant("two more surrogates", RobustSettings(surrogates=FIVE)),
    "five-strong-steps": Variant(
        "two more surrogates, fewer images as they are in the steps",
        RobustSettings(surrogates=FIVE),
        steps_through=STRONG,
    ),
}
"""Trials by name."""


def random_filters(x: Tensor, generator: torch.Generator) -> Tensor:
    """Filters of the method itself as a hacker's augmentation."""
    return filtered(x, torch.rand(len(x), NUMBERS, generator=generator), FilterShares())


Transform = Callable[[Tensor], Tensor]
ATTACKS: dict[str, tuple[Transform | None, Callable[[torch.Generator], Objective]]] = {
    "direct": (None, lambda draw: supervised),
    "jpeg10": (functools.partial(jpeg, quality=10), lambda draw: supervised),
    "blur": (functools.partial(gaussian_blur, sigma=1.0), lambda draw: supervised),
    "filters": (None, functools.partial(augmented, random_filters)),
    "adversarial-fast": (None, functools.partial(adversarial, radius=8 / 255, step=10 / 255, steps=1)),
    "gray": (grayscale, lambda draw: supervised),
}
"""Filter of training and test images, and objective."""
SHORT = ("direct", "jpeg10", "blur", "filters", "adversarial-fast")


def confusion(network: nn.Module, store: PixelStore, runtime: Runtime) -> Tensor:
    """Test images by the network's answer (rows) and their class (columns)."""
    count = len(store.classes)
    table = torch.zeros(count, count, dtype=torch.int64)
    network.eval()
    with torch.inference_mode(), runtime.autocast():
        for batch in batches(store, 200):
            answers = network(batch.x.to(memory_format=runtime.memory_format)).argmax(1)
            table += (answers * count + batch.y).bincount(minlength=count**2).view(count, count)
    return table


def accuracies(table: Tensor) -> dict[str, float]:
    """Accuracy in percent as the outputs are, and with outputs renamed one to one and many to one."""
    rows, columns = linear_sum_assignment(-table.numpy())
    right = {
        "plain": int(table.trace()),
        "one_to_one": int(table[rows, columns].sum()),
        "many_to_one": int(table.amax(1).sum()),
    }
    return {name: round(100 * count / int(table.sum()), 2) for name, count in right.items()}


def changed(store: PixelStore, transform: Transform | None) -> PixelStore:
    """Images through a filter."""
    if transform is None:
        return store
    out = store.empty_like()
    for rows in torch.arange(len(store)).split(500):
        out.pixels.write(rows, transform(store.pixels.read(rows)))
    return out


def attack(name: str, store: PixelStore, test: PixelStore, epochs: int, seed: int, runtime: Runtime) -> dict[str, Any]:
    """Accuracies after every epoch, on test images as they are and changed."""
    transform, objective = ATTACKS[name]
    network = build("cnn", len(store.classes), channels=store.channels, size=store.size, seed=seed)
    tests = {"clean": test} | ({} if transform is None else {"changed": changed(test, transform)})
    curve: list[dict[str, dict[str, float]]] = []
    began = time.perf_counter()
    fit(
        network,
        changed(store, transform),
        Recipe(epochs=epochs),
        seed=seed,
        runtime=runtime,
        objective=objective(stream(seed, name)),
        progress=lambda done, total, figures: curve.append(
            {kind: accuracies(confusion(network, images, runtime)) for kind, images in tests.items()}
        ),
    )
    last = max(curve[-1].values(), key=lambda each: each["plain"])
    best = max(each["plain"] for epoch in curve for each in epoch.values())
    worst = max(max(each.values()) for epoch in curve for each in epoch.values())
    seconds = round(time.perf_counter() - began, 1)
    return {"last": last, "best": best, "worst": worst, "curve": curve, "seconds": seconds}


@dataclass
class Trial:
    """Images, means and places of all trials."""

    source: str
    limit: int
    keep: Path
    seed: int
    runtime: Runtime
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.images = load_images(self.source, split="train", limit=self.limit)
        self.store = load_pixels(self.images)
        self.test = load_pixels(load_images(self.source, split="test", limit=2000))

    def surrogates(self, settings: RobustSettings, store: PixelStore) -> list[ImageClassifier]:
        """Surrogates of the classes or clusters of a store; equal ones at the same place are trained once."""
        found = []
        for number, name in enumerate(settings.surrogate_names):
            one = settings.model_copy(update={"surrogates": f"{name.network}@{name.radius}".removesuffix("@0")})
            seed = self.seed + 1000 * number
            key = [seed, self.limit, one.work, one.filters.model_dump(), self.runtime.precision]
            key += [one.clusters] if one.clusters else []
            folder = self.keep / hashlib.sha256(canonical_json(key).encode()).hexdigest()[:12]
            began = time.perf_counter()
            found += train_surrogates(
                store, one, seed=seed, runtime=self.runtime, place=lambda file, at=folder: at / file
            )
            place = folder / "accuracy.json"
            if one.clusters:
                write_json(place, {"seconds": round(time.perf_counter() - began, 1)})
            elif not place.is_file():
                accuracy = {
                    kind: round(evaluate(found[-1], changed(self.test, ATTACKS[attack][0]), self.runtime), 2)
                    for kind, attack in (("clean", "direct"), ("jpeg10", "jpeg10"))
                }
                write_json(place, {**accuracy, "seconds": round(time.perf_counter() - began, 1)})
            self.facts[f"surrogate {number}, {'@'.join(map(str, name))}"] = read_json(place)
        return found

    def classed(self, clusters: int | None) -> PixelStore:
        """Images with their labels, or with clusters of features in place of these."""
        if clusters is None:
            return self.store
        began = time.perf_counter()
        store = clustered(self.store, clusters, self.seed)
        shares = torch.zeros(len(store.classes), len(self.store.classes), dtype=torch.int64)
        shares.index_put_((store.labels, self.store.labels), torch.ones((), dtype=torch.int64), accumulate=True)
        self.facts["clusters"] = {
            "purity": round(100 * int(shares.amax(1).sum()) / len(store), 2),
            "images": shares.sum(1).tolist(),
            "seconds": round(time.perf_counter() - began, 1),
        }
        return store

    def delta(self, name: str, variant: Variant) -> Records:
        """Perturbations of a variant, made once."""
        budget = Budget()
        path = self.keep / f"{name}-{self.limit}-s{self.seed}"
        if not path.with_suffix(".int8").is_file():
            store = self.classed(variant.settings.clusters)
            surrogates = self.surrogates(variant.settings, store)
            goals = class_targets(variant.settings.targets, store, surrogates, self.runtime)
            self.facts["targets"] = goals.tolist()
            work = variant.settings.work
            steps = variant.steps(surrogates, variant.shares, budget, work.steps, self.seed, self.runtime, variant.loss)
            made = delta_records(self.store, budget)
            began = time.perf_counter()
            perturb(store, self.images.ids, goals, steps, made, batch_rows(self.store))
            self.facts["perturbation"] = round(time.perf_counter() - began, 1)
            part = delta_records(self.store, budget, path.with_name("part-" + path.name))
            part.copy(made)
            part.flush()
            path.with_name("part-" + path.name).with_suffix(".int8").rename(path.with_suffix(".int8"))
        return delta_records(self.store, budget, path)

    def protected(self, delta: Records) -> PixelStore:
        """Published images."""
        out = self.store.empty_like()
        for rows in torch.arange(len(self.store)).split(500):
            out.pixels.write(rows, Budget().add(self.store.pixels.read(rows), delta.read(rows)))
        return out

    def quality(self, published: PixelStore) -> dict[str, float]:
        """Mean PSNR and SSIM of the first 1000 images."""
        tally = Tally()
        rows = torch.arange(min(1000, len(self.store)))
        for pair in zip(*(store.pixels.read(rows) for store in (self.store, published)), strict=True):
            tally.add(compare(*(image.permute(1, 2, 0).numpy() for image in pair), with_ssim=True))
        measured = tally.measured()
        return {"psnr_db": round(measured.psnr_db, 2), "ssim": round(measured.ssim, 4)}


def measure(trial: Trial, name: str, attacks: Sequence[str], epochs: int, hacker: int, place: Path) -> None:
    """Make a variant and do the attacks on it that are not done yet."""
    result = read_json(place) if place.is_file() else {}
    if not result:
        published = trial.store
        if name != "clean":
            published = trial.protected(trial.delta(name, VARIANTS[name]))
            variant = VARIANTS[name]
            result = {"about": variant.about, "settings": variant.settings.model_dump(mode="json")}
            result |= {"steps_through": variant.shares.model_dump(mode="json")}
            result |= {"facts": trial.facts, **trial.quality(published)}
        result |= {"variant": name, "images": trial.limit, "epochs": epochs, "seed": trial.seed, "attacks": {}}
        result["environment"] = trial.runtime.environment()
        write_json(place, result)
    missing = [attack for attack in attacks if attack not in result["attacks"]]
    published = trial.store
    if missing and name != "clean":
        published = trial.protected(trial.delta(name, VARIANTS[name]))
    for each in missing:
        result["attacks"][each] = attack(each, published, trial.test, epochs, hacker, trial.runtime)
        write_json(place, result)
        print(name, each, result["attacks"][each]["last"], result["attacks"][each]["worst"], flush=True)


def table(folder: Path) -> str:
    """Results as Markdown: last epoch as it is / one to one / many to one, and the worst of all epochs."""
    results = [read_json(path) for path in sorted(folder.glob("*.json"))]
    lines = ["| variant | images | epochs | PSNR | SSIM | " + " | ".join(ATTACKS) + " | worst |", "|---" * 12 + "|"]
    for result in sorted(results, key=lambda each: (each["images"], each["epochs"], worst_case(each))):
        cells = []
        for name in ATTACKS:
            found = result["attacks"].get(name)
            last = found and found["last"]
            cells.append(f"{last['plain']:.1f} / {last['one_to_one']:.1f} / {last['many_to_one']:.1f}" if last else "–")
        quality = [f"{result[name]:.{digits}f}" if name in result else "–" for name, digits in QUALITY.items()]
        head = [result["variant"], f"{result['images']:,}", str(result["epochs"]), *quality]
        lines.append("| " + " | ".join([*head, *cells, f"{worst_case(result):.1f}"]) + " |")
    return "\n".join(lines)


QUALITY = {"psnr_db": 2, "ssim": 3}


def worst_case(result: dict[str, Any]) -> float:
    """Highest accuracy of any attack, epoch and naming."""
    return max((each["worst"] for each in result["attacks"].values()), default=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder of CIFAR-10, or of anything else with a test split")
    parser.add_argument("results", type=Path, help="folder of one JSON file a variant")
    parser.add_argument("--variant", default="clean,standard", help="names separated by commas: " + ", ".join(VARIANTS))
    parser.add_argument("--attacks", default=",".join(SHORT), help="names separated by commas: " + ", ".join(ATTACKS))
    parser.add_argument("--limit", type=int, default=10000, help="training images")
    parser.add_argument("--epochs", type=int, default=5, help="of every attack")
    parser.add_argument("--seed", type=int, default=0, help="of the method")
    parser.add_argument("--hacker", type=int, default=1, help="seed of the attacks")
    parser.add_argument("--keep", type=Path, default=Path("work/robust-search"), help="surrogates and perturbations")
    parser.add_argument("--table", action="store_true", help="print the results as Markdown, and do nothing else")
    options = parser.parse_args()
    if options.table:
        print(table(options.results))
        return
    torch.set_num_threads(1)
    for name in options.variant.split(","):
        trial = Trial(options.source, options.limit, options.keep, options.seed, Runtime.create())
        place = options.results / f"{name}-{options.limit}-e{options.epochs}-s{options.seed}-h{options.hacker}.json"
        measure(trial, name, options.attacks.split(","), options.epochs, options.hacker, place)


if __name__ == "__main__":
    main()
