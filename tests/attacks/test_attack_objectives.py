"""What attacks minimise: random changes, the worst of several, blends, boxes, adversarial images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from uge.attacks import augment as policies
from uge.attacks.train import fixmatch
from uge.data.augment import cutout
from uge.data.loader import Batch, to_unit
from uge.data.store import PixelStore, Records
from uge.learning.objectives import adversarial, augmented, cutmix, error_maximising, evaluating, mixup, pgd, supervised
from uge.learning.recipes import Recipe
from uge.networks import build

shapes = st.tuples(st.integers(2, 6), st.sampled_from([1, 3]), st.integers(16, 33))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_batch(count: int = 8, channels: int = 3, size: int = 16, seed: int = 0) -> Batch:
    x = torch.rand(count, channels, size, size, generator=generator(seed))
    return Batch(x, torch.arange(count) % 3, torch.arange(count))


class Linear(nn.Module):
    """Logits that are sums of pixels; keeps what it was asked."""

    def __init__(self, channels: int = 3, size: int = 16) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, channels * size * size, generator=generator(9)) / 10)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach())
        return x.flatten(1) @ self.weight.T


def loss(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(network(x), y)


def test_augmentation_comes_before_the_loss() -> None:
    network, batch = Linear(), make_batch()
    found = augmented(lambda x, draw: 1 - x, generator())(network, batch)
    assert found["loss"] == loss(network, 1 - batch.x, batch.y)


class TestWorstOf:
    def test_it_takes_the_change_of_the_largest_loss_of_every_image(self) -> None:
        network, batch = Linear(), make_batch()
        candidates = [torch.rand(batch.x.shape, generator=generator(seed)) for seed in (1, 2, 3)]
        given_in_turn = iter(candidates)
        found = error_maximising(lambda x, draw: next(given_in_turn), generator(), 3)(network, batch)
        losses = torch.stack([F.cross_entropy(network(x), batch.y, reduction="none") for x in candidates])
        assert found["loss"].item() == pytest.approx(losses.amax(0).mean().item())
        assert len(set(losses.argmax(0).tolist())) > 1  # not one candidate for the whole batch

    def test_losses_are_compared_without_touching_statistics(self) -> None:
        network, batch = build("cnn", 3, seed=0, size=16), make_batch()
        error_maximising(policies.ueraser, generator(), 5)(network, batch)["loss"].backward()
        assert network.training
        assert {int(m.num_batches_tracked) for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {1}

    def test_more_copies_are_never_easier(self) -> None:
        network, batch = Linear(), make_batch()
        losses = [
            error_maximising(policies.ueraser, generator(), count)(network, batch)["loss"].item() for count in (1, 2, 5)
        ]
        assert losses == sorted(losses)


@given(seed=st.integers(0, 10**6), count=st.integers(2, 9))
@settings(max_examples=20, deadline=None)
def test_mixup_is_the_formula(seed: int, count: int) -> None:
    network, batch = Linear(), make_batch(count, seed=seed)
    draw = generator(seed)
    share, other = float(torch.rand((), generator=draw)), torch.randperm(count, generator=draw)
    expected = torch.zeros(())
    for i, j in enumerate(other.tolist()):
        logits = network((share * batch.x[i] + (1 - share) * batch.x[j])[None])
        for label, weight in ((batch.y[i], share), (batch.y[j], 1 - share)):
            expected += weight * -logits.log_softmax(1)[0, label].detach() / count
    assert mixup(generator(seed))(network, batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-4)


@given(seed=st.integers(0, 10**6), size=st.integers(16, 21))
@settings(max_examples=20, deadline=None)
def test_cutmix_weighs_labels_by_area(seed: int, size: int) -> None:
    network = Linear(1, size)
    # Image i has the value i / 10 everywhere, so the pasted area can be read off the pixels.
    count = 4
    x = (torch.arange(count) / 10).view(-1, 1, 1, 1).expand(count, 1, size, size)
    batch = Batch(x, torch.tensor([0, 1, 2, 0]), torch.arange(count))
    found = cutmix(generator(seed))(network, batch)
    mixed, expected = network.seen[0], 0.0
    for i in range(count):
        values, areas = mixed[i].unique(return_counts=True)
        assert len(values) <= 2
        for value, area in zip(values.tolist(), areas.tolist(), strict=True):
            label = batch.y[round(value * 10)]
            expected += area / size**2 * F.cross_entropy(network(mixed[i : i + 1]), label[None]).item() / count
    assert found["loss"].item() == pytest.approx(expected, rel=1e-4)


@given(shape=shapes, seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_cutout_covers_one_box_of_at_most_half_the_side(shape: tuple[int, int, int], seed: int) -> None:
    count, channels, size = shape
    x = torch.rand(count, channels, size, size, generator=generator(seed)) / 4
    hole = (cutout(x, generator(seed)) == 0.5).all(1)
    for image in hole:
        rows, columns = image.any(1), image.any(0)
        assert torch.equal(image, rows[:, None] & columns)
        assert size // 5 <= rows.sum() <= size // 2 + 1
        assert (rows.int().diff() > 0).sum() <= 1
    assert torch.equal(cutout(x, generator(seed))[:, 0][~hole], x[:, 0][~hole])


class TestAdversarial:
    @given(seed=st.integers(0, 99), steps=st.integers(0, 5))
    @settings(max_examples=10, deadline=None)
    def test_steps_stay_in_the_ball_and_in_the_range(self, seed: int, steps: int) -> None:
        network, batch = Linear(), make_batch(seed=seed)
        x = pgd(network, batch, generator(seed), 8 / 255, 2 / 255, steps)
        assert (x - batch.x).abs().max() <= 8 / 255 + 1e-6
        assert x.min() >= 0
        assert x.max() <= 1

    def test_ascent_makes_a_linear_network_as_wrong_as_the_ball_allows(self) -> None:
        network, batch = Linear(), make_batch(1)
        batch = replace(batch, x=0.4 + 0.2 * batch.x)
        found = pgd(network, batch, generator(), 8 / 255, 2 / 255, 10)
        assert loss(network, found, batch.y) > loss(network, batch.x, batch.y)
        assert ((found - batch.x).abs() > 7.9 / 255).float().mean() > 0.9

    def test_only_the_final_pass_gives_gradients_and_statistics(self) -> None:
        network, batch = build("cnn", 3, seed=0, size=16), make_batch()
        found = adversarial(generator(), radius=8 / 255, step=2 / 255, steps=3)(network, batch)
        assert all(parameter.grad is None for parameter in network.parameters())
        found["loss"].backward()
        assert {int(m.num_batches_tracked) for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {1}
        assert network.training
        assert found["loss"] > supervised(network, batch)["loss"]


def test_a_network_comes_back_in_its_mode_after_an_error() -> None:
    network = nn.Dropout()
    with pytest.raises(RuntimeError), evaluating(network):
        raise RuntimeError
    assert network.training


class TestPolicies:
    @given(shape=shapes, seed=st.integers(0, 99))
    @settings(max_examples=10, deadline=None)
    def test_everything_stays_an_image(self, shape: tuple[int, int, int], seed: int) -> None:
        count, channels, size = shape
        x = torch.rand(count, channels, size, size, generator=generator(seed))
        before = x.clone()
        for change in (policies.randaugment, policies.trivial, policies.ueraser):
            found = change(x, generator(seed))
            assert found.shape == x.shape
            assert found.isfinite().all()
            assert found.min() >= -1e-6
            assert found.max() <= 1 + 1e-6
            assert torch.equal(found, change(x, generator(seed)))
        assert torch.equal(x, before)

    @pytest.mark.parametrize("name", policies.OPS)
    def test_operations_do_something_unless_their_strength_is_zero(self, name: str) -> None:
        x = 0.2 + 0.5 * make_batch().x
        strength = torch.full((len(x), 1, 1, 1), 0.9)
        still = name in ("identity", "autocontrast", "equalize")  # these know no strength
        changed = not torch.allclose(policies.OPS[name](x, strength), x, atol=1e-3)
        assert changed == (name != "identity")
        if not still:
            # Posterising to eight bits is rounding.
            assert torch.allclose(policies.OPS[name](x, 0 * strength), x, atol=1 / 255 + 1e-5)

    def test_trivial_augment_posterises_harder_than_randaugment(self) -> None:
        x, strength = torch.rand(4, 3, 16, 16, generator=generator()), torch.full((4, 1, 1, 1), 0.9)
        levels = [len(ops["posterize"](x, strength).unique()) for ops in (policies.OPS, policies.WIDE)]
        assert levels == [16, 2]

    def test_plasma_is_smooth_noise_over_the_whole_range(self) -> None:
        found = policies.plasma(torch.Size((5, 3, 33, 33)), generator())
        assert torch.allclose(found.amin((2, 3)), torch.zeros(5, 3))
        assert torch.allclose(found.amax((2, 3)), torch.ones(5, 3))
        assert found.diff(dim=3).abs().mean() < found.std() / 2
        assert found.std(0).mean() > 0.05

    def test_channels_are_shuffled_in_half_of_the_images(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(policies, "plasma", lambda shape, draw: torch.full(shape, 0.5))
        monkeypatch.setattr(policies, "trivial", lambda x, draw: x)
        x = torch.tensor([0.5, 0.52, 0.54]).view(1, 3, 1, 1).expand(2000, 3, 2, 2)
        found = policies.ueraser(x, generator(), share=0.5)[:, :, 0, 0]
        kept = ((found[:, 0] < found[:, 1]) & (found[:, 1] < found[:, 2])).float().mean()
        assert 0.53 < kept < 0.63  # one half, and one sixth of the other
        assert torch.allclose(found.sort(1).values.diff().sign(), torch.ones(2000, 2))

    @pytest.mark.parametrize("share", [0.0, 0.8, 1.0])
    def test_a_share_of_the_images_gets_the_plasma(self, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(policies, "plasma", lambda shape, draw: torch.full(shape, 0.9))
        monkeypatch.setattr(policies, "trivial", lambda x, draw: x)
        found = policies.ueraser(torch.full((2000, 1, 2, 2), 0.5), generator(), share=share)
        # Contrast leaves a middle gray alone, so that only brightness is seen.
        assert (found != 0.5).flatten(1).any(1).float().mean().item() == pytest.approx(share, abs=0.03)

    def test_jpeg_comes_before_the_policy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x = make_batch().x
        monkeypatch.setattr(policies, "jpeg", lambda pixels, quality: torch.full_like(pixels, quality))
        monkeypatch.setattr(policies, "ueraser", lambda x, draw, share: x)
        draw = generator()
        qualities = {round(float(policies.ueraser_jpeg(x, draw).unique()) * 255) for _ in range(200)}
        assert (min(qualities), max(qualities)) == (10, 95)
        assert len(qualities) > 60

    def test_strong_augmentation_moves_pictures_and_keeps_their_shape(self) -> None:
        x = make_batch().x
        found = policies.strong(x, generator())
        assert found.shape == x.shape
        assert not torch.equal(found, x)
        assert torch.equal(found, policies.strong(x, generator()))
        flat = policies.strong(torch.full((8, 3, 16, 16), 0.5), generator())
        inside = flat[:, :, 7:9, 7:9]
        assert 0.39 < inside.min() < inside.max() < 0.61, "brightness changes by at most a fifth"

    def test_every_image_loses_a_direction_of_its_own(self) -> None:
        x = make_batch().x
        found = policies.random_colour(x, generator())
        directions = policies.chromatic(len(x), generator())
        assert torch.einsum("bchw,bc->bhw", found, directions).abs().max() < 1e-5
        assert directions.std(0).max() > 0.2
        gray = x[:, :1]
        assert policies.random_colour(gray, generator()) is gray


def test_fixmatch_uses_no_label_of_the_batch() -> None:
    records = Records(6, (3, 16, 16), torch.uint8)
    records.write(torch.arange(6), (make_batch(6).x * 255).to(torch.uint8))
    labelled = PixelStore(records, torch.arange(6) % 3, ("a", "b", "c"))
    context = type("Given", (), {"recipe": Recipe(augment="none"), "seed": 0})()
    batch, losses = make_batch(), []
    for labels in (batch.y, 2 - batch.y):
        network = Linear()
        found = fixmatch(context, labelled, torch.tensor([1, 4]))(network, replace(batch, y=labels))
        losses.append(found["loss"].item())
        known = network.seen[-1][: len(batch.y)]
        allowed = to_unit(records.read(torch.tensor([1, 4])))
        assert all(any(torch.equal(image, one) for one in allowed) for image in known)
    assert losses[0] == losses[1]
