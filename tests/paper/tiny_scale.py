"""A scale smaller than smoke, and made-up results."""

from uge.cases.case import Case, Epoch, write_case
from uge.learning.recipes import Recipe
from uge.paper.ledger import PaperLedger, variant
from uge.paper.scale import PHOTOS, Scale
from uge.paper.specs import Images, Unit

NETWORKS = ("cnn", "resnetc20", "resnetc32", "resnet18", "mobilenetv2", "shufflenetv2")
TINY = Scale(
    name="tiny",
    about="For tests.",
    limit=40,
    limit_test=20,
    size=16,
    networks=dict.fromkeys(NETWORKS, "lenet"),
    recipes={"*": Recipe(epochs=1, batch_size=20)},
    protect={
        "hacker": "lenet",
        "snapshots": 2,
        "encoder_recipe": {"epochs": 1, "batch_size": 20},
        "generator": {"width": 4, "blocks": 1, "batch_size": 20, "max_steps": 1},
        "refine": True,
        "refinement": {"passes": 1, "step": 4, "batch_size": 20},
    },
    baselines={"em": {"surrogate": "lenet", "theta_steps": 1, "steps": 1, "batch_size": 20}},
    rhos=("0.04",),
    networks_most=2,
    pictures=2,
    stand_in=PHOTOS,
)


def put_images(kept: PaperLedger, images: Images, digest: str = "d") -> None:
    """Note images as read."""
    kept.keep_images(images.name, {**kept.images(images.name), variant(images): digest})


def put_case(kept: PaperLedger, unit: Unit, *accuracies: float, seconds: float = 1.0) -> Case:
    """Write the case of a run that nobody did, with these accuracies after its epochs."""
    history = [Epoch(epoch=n + 1, test_accuracy=value) for n, value in enumerate(accuracies)]
    best = max(history, key=lambda epoch: epoch.test_accuracy)
    case = Case(
        key=unit.job.key or 0,
        id=unit.id,
        role=unit.job.role,
        network=unit.network,
        start=unit.job.start,
        scheme=unit.scheme,
        data=unit.job.data,
        seed=unit.seed,
        recipe=unit.recipe.json_dict(),
        history=history,
        last=accuracies[-1],
        best=best.test_accuracy,
        best_epoch=best.epoch,
        seconds=seconds,
        environment={"hardware": "abacus", "threads": 1, "precision": "fp32"},
        fingerprint=kept.fingerprint(unit),
    )
    write_case(kept.folder / "cases", case)
    return case
