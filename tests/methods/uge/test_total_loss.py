import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uge.data.augment import crop_flip
from uge.errors import UnknownNameError, UsageError
from uge.learning.training import History
from uge.learning.trajectory import Trajectory
from uge.methods.uge.feature_distance import class_derangement, feature_distance, least_similar_classes
from uge.methods.uge.losses import Authorized, TotalLoss
from uge.methods.uge.matching import gradient_matching, parameter_matching, value_matching
from uge.methods.uge.settings import LossWeights
from uge.methods.uge.undistill import undistill
from uge.networks import build, weights_hash
from uge.runtime import Runtime, stream

CLASSES = ("a", "b", "c")
WEIGHTS = LossWeights(lambda_gm=2, lambda_fd=3, lambda_ud=0.5, omega=0.7, alpha=0.4)
PARTS = {
    "uge": {"gradient_matching", "feature_distance", "undistill"},
    "uge-no-ud": {"gradient_matching", "feature_distance"},
    "unlearn": {"feature_distance"},
    "undistill": {"undistill"},
}


def network(seed: int, name: str = "cnn") -> nn.Module:
    return build(name, 3, seed=seed, size=16)


def authorized(first: int, name: str = "cnn", snapshots: int = 3) -> Authorized:
    """An authorised network whose snapshots are networks of successive seeds."""
    states = {step: network(first + step, name).state_dict() for step in range(snapshots)}
    return Authorized(network(99, name), Trajectory(list(states), History(), None, states))


@pytest.fixture
def images() -> tuple[Tensor, Tensor, Tensor]:
    draw = stream(0, "images")
    x = torch.rand(6, 3, 16, 16, generator=draw)
    return x, (x + 0.05 * torch.randn(x.shape, generator=draw)).clamp(0, 1), torch.arange(6) % 3


@pytest.fixture
def make(linear_space: Callable[..., Any], runtime: Runtime) -> Callable[..., TotalLoss]:
    def make(method: str, weights: LossWeights = WEIGHTS, **changes: Any) -> TotalLoss:
        options = {"authorized": [authorized(0)], "hacker": network(50), "space": linear_space(768, 3)}
        return TotalLoss(method, weights, **{"classes": CLASSES, "runtime": runtime, **options, **changes})

    return make


def index(seed: int, snapshots: int = 3) -> int:
    return int(torch.randint(0, snapshots - 1, (1,), generator=stream(seed, "draw")))


@pytest.mark.parametrize("method", PARTS)
def test_a_variant_uses_its_losses_with_their_weights(
    method: str, make: Callable[..., TotalLoss], images: tuple[Tensor, Tensor, Tensor]
) -> None:
    x, x_u, y = images
    total = make(method)
    parts = total(x, x_u, y, stream(0, "draw"))
    space, snapshot, teacher = total.space, network(index(0)), network(2).eval()
    text = space.text_features(CLASSES)
    expected = {
        "gradient_matching": 2 * gradient_matching([snapshot], x, x_u, y),
        "feature_distance": 3
        * feature_distance(
            space.image_features(x), space.image_features(x_u), text, y, class_derangement(text)[y], alpha=0.4
        ),
        "undistill": 0.5 * undistill([teacher], network(50).eval(), x_u, y, omega=0.7, temperature=4),
    }
    assert set(parts) == PARTS[method] | {"loss"}
    factors = {"gradient_matching": 2, "feature_distance": 3, "undistill": 0.5}
    for name in PARTS[method]:
        assert parts[name].item() * factors[name] == pytest.approx(expected[name].item(), rel=1e-4)
    assert parts["loss"].item() == pytest.approx(sum(expected[name].item() for name in PARTS[method]), rel=1e-4)


@pytest.mark.parametrize("method", PARTS)
def test_what_is_not_used_need_not_be_there(method: str, make: Callable[..., TotalLoss]) -> None:
    needed = {"authorized": {"gradient_matching", "undistill"}, "space": {"feature_distance"}, "hacker": {"undistill"}}
    absent: dict[str, Any] = {"authorized": [], "space": None, "hacker": None}
    for thing, parts in needed.items():
        if parts & PARTS[method]:
            with pytest.raises(UsageError, match=f"method '{method}' needs"):
                make(method, **{thing: absent[thing]})
        else:
            make(method, **{thing: absent[thing]})


def test_unknown_method(make: Callable[..., TotalLoss]) -> None:
    with pytest.raises(UnknownNameError, match="uge-no-ud"):
        make("ugly")


def test_targets_per_image(make: Callable[..., TotalLoss], images: tuple[Tensor, Tensor, Tensor]) -> None:
    x, x_u, y = images
    total = make("unlearn", LossWeights(targets="image"))
    features, text = total.space.image_features(x), total.space.text_features(CLASSES)
    targets = least_similar_classes(features, text, y)
    assert targets.tolist() != class_derangement(text)[y].tolist()
    expected = feature_distance(features, total.space.image_features(x_u), text, y, targets)
    assert total(x, x_u, y, stream(0, "draw"))["loss"].item() == pytest.approx(expected.item())


def test_every_snapshot_but_the_last_is_matched(
    make: Callable[..., TotalLoss], images: tuple[Tensor, Tensor, Tensor]
) -> None:
    x, x_u, y = images
    total = make("uge-no-ud", authorized=[authorized(0, snapshots=4)])
    values = {round(total(x, x_u, y, stream(seed, "draw"))["gradient_matching"].item(), 4) for seed in range(20)}
    expected = [round(gradient_matching([network(step)], x, x_u, y).item(), 4) for step in range(4)]
    assert len(set(expected)) == 4
    assert values == set(expected[:3])


@pytest.mark.parametrize("shared", [False, True])
def test_several_networks_share_nothing(
    shared: bool, make: Callable[..., TotalLoss], images: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Also where both entries hold the same module, or networks of two architectures."""
    x, x_u, y = images
    x_u.requires_grad_(True)
    first, second = authorized(0), authorized(20, "cnn" if shared else "resnet8")
    if shared:
        second.network = first.network
    draw = stream(3, "draw")
    here_at, there_at = (int(torch.randint(0, 2, (1,), generator=draw)) for _ in range(2))
    parts = make("uge", authorized=[first, second])(x, x_u, y, stream(3, "draw"))
    networks = [network(here_at), network(20 + there_at, second.network.name)]
    teachers = [network(2).eval(), network(22, second.network.name).eval()]
    expected = {
        "gradient_matching": gradient_matching(networks, x, x_u, y),
        "undistill": undistill(teachers, network(50).eval(), x_u, y, omega=0.7, temperature=4),
    }
    for name, value in expected.items():
        assert parts[name].item() == pytest.approx(value.item(), rel=1e-4)
        (here,) = torch.autograd.grad(parts[name], x_u, retain_graph=True)
        (there,) = torch.autograd.grad(value, x_u)
        torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed"])
def test_nothing_but_the_images_gets_a_gradient(
    precision: str, make: Callable[..., TotalLoss], images: tuple[Tensor, Tensor, Tensor]
) -> None:
    x, x_u, y = images
    path = authorized(0)
    before, states = weights_hash(path.network), copy.deepcopy(path.trajectory._states)
    total = make("uge", authorized=[path], runtime=Runtime.create("cpu", precision))
    teachers = [weights_hash(teacher) for teacher in total._teachers]
    total(x, x_u.requires_grad_(True), y, stream(0, "draw"))["loss"].backward()
    assert x_u.grad.abs().sum() > 0
    assert x_u.grad.isfinite().all()
    assert weights_hash(path.network) == before
    assert [weights_hash(teacher) for teacher in total._teachers] == teachers
    for step, state in path.trajectory._states.items():
        assert weights_hash(state) == weights_hash(states[step])
    for module in (*total._teachers, *total._students, total._hacker):
        assert not module.training
        assert all(p.grad is None and not p.requires_grad for p in module.parameters())


def test_similarity_is_compared_in_full_precision(
    make: Callable[..., TotalLoss], images: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Two classes whose features differ by less than bf16 resolves are told apart all the same."""
    x = images[0]
    total = make("unlearn", LossWeights(targets="image"), runtime=Runtime.create("cpu", "bf16-mixed"))
    with torch.autocast("cpu", torch.bfloat16):
        feature = total.space.image_features(x)
    sideways = torch.linalg.svd(feature[:1]).Vh[1]
    total._text = nn.functional.normalize(torch.stack([-feature[0] + 0.03 * sideways, -feature[0], feature[0]]), dim=1)
    label, own = torch.tensor([2]), feature[:1]
    seen = [feature_distance(own, own, total._text, label, torch.tensor([c]), alpha=0.1).item() for c in (0, 1)]
    loss = total(x[:1], x[:1], torch.tensor([2]), stream(0, "draw"))["feature_distance"].item()
    assert seen[0] != seen[1]
    assert loss == seen[1]


def test_teachers_are_taken_again_from_new_trajectories(
    make: Callable[..., TotalLoss], images: tuple[Tensor, Tensor, Tensor]
) -> None:
    x, x_u, y = images
    path = authorized(0)
    total = make("undistill", authorized=[path])
    old = total(x, x_u, y, stream(0, "draw"))["loss"].item()
    path.trajectory = authorized(30).trajectory
    assert total(x, x_u, y, stream(0, "draw"))["loss"].item() == old
    total.follow([path])
    expected = undistill([network(32).eval()], network(50).eval(), x_u, y, omega=0.7, temperature=4)
    assert total(x, x_u, y, stream(0, "draw"))["undistill"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_more_matching_where_it_is_wanted(
    make: Callable[..., TotalLoss], images: tuple[Tensor, Tensor, Tensor]
) -> None:
    x, x_u, y = images
    weights = WEIGHTS.model_copy(update={"lambda_vm": 2.0, "lambda_pm": 0.3, "horizon": 2, "horizon_lr": 0.1})
    plain = make("uge-no-ud")(x, x_u, y, stream(0, "draw"))
    parts = make("uge-no-ud", weights)(x, x_u, y, stream(0, "draw"))
    at = [network(index(0))]
    expected = {
        "value_matching": value_matching(at, x, x_u).item(),
        "parameter_matching": parameter_matching(at, x, x_u, y, steps=2, lr=0.1).item(),
    }
    for name, value in expected.items():
        assert name not in plain
        assert parts[name].item() == pytest.approx(value, rel=1e-4)
    added = 2 * expected["value_matching"] + 0.3 * expected["parameter_matching"]
    assert parts["loss"].item() == pytest.approx(plain["loss"].item() + added, rel=1e-4)
    assert set(make("unlearn", weights)(x, x_u, y, stream(0, "draw"))) == {"feature_distance", "loss"}


def test_pairs_are_cropped_and_flipped_alike(
    make: Callable[..., TotalLoss], images: tuple[Tensor, Tensor, Tensor]
) -> None:
    x, x_u, y = images
    total = make("uge", WEIGHTS.model_copy(update={"augment": True}))
    parts = total(x, x_u, y, stream(0, "draw"))
    draw = stream(0, "draw")
    moved, moved_u = crop_flip(torch.cat([x, x_u], 1), draw).split(3, 1)
    snapshot = network(int(torch.randint(0, 2, (1,), generator=draw)))
    assert parts["gradient_matching"].item() == pytest.approx(
        gradient_matching([snapshot], moved, moved_u, y).item(), rel=1e-4
    )
    assert total(x, x, y, stream(1, "draw"))["gradient_matching"].item() == pytest.approx(0, abs=1e-5)
    whole = undistill([network(2).eval()], network(50).eval(), x_u, y, omega=0.7, temperature=4)
    assert parts["undistill"].item() == pytest.approx(whole.item(), rel=1e-5)


def test_other_readings_of_undistill(make: Callable[..., TotalLoss], images: tuple[Tensor, Tensor, Tensor]) -> None:
    x, x_u, y = images
    weights = WEIGHTS.model_copy(update={"teacher": "path", "fresh_hacker": True, "squared": False})
    total = make("undistill", weights, fresh_hacker=lambda seed: network(seed % 1000))
    draw = stream(0, "draw")
    teacher = network(int(torch.randint(0, 2, (1,), generator=draw))).eval()
    hacker = network(int(torch.randint(2**31, (1,), generator=draw)) % 1000).eval()
    expected = undistill([teacher], hacker, x_u, y, omega=0.7, temperature=4, squared=False)
    assert total(x, x_u, y, stream(0, "draw"))["undistill"].item() == pytest.approx(expected.item(), rel=1e-5)
    values = {round(total(x, x_u, y, stream(seed, "draw"))["undistill"].item(), 5) for seed in range(4)}
    assert len(values) == 4
