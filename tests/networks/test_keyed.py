"""Networks behind a colour key: protected images train them like clean ones, and get no answer afterwards."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from protected_photos import photos
from torch import Tensor

from uge.errors import UnknownNameError, UsageError, WeightsError
from uge.networks import ColourKey, KeyedClassifier, build, check_name, from_weights, save_weights, weights_hash
from uge.networks.colour_key import Alignment
from uge.protect.gradient_matching import gradient_matching
from uge.runs import stable_safetensors

COUNT = 60
LABELS = torch.arange(COUNT) % 10


@pytest.fixture(scope="module")
def network() -> KeyedClassifier:
    found = build("keyed:lenet", 10, seed=0)
    assert isinstance(found, KeyedClassifier)
    return found


@pytest.fixture(scope="module")
def pairs(network: KeyedClassifier) -> tuple[Tensor, Tensor, Alignment]:
    return photos(network.key, COUNT, margin=10)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[[Alignment], None]:
    """Tells every key where the patterns lie."""
    return lambda at: monkeypatch.setattr(ColourKey, "align", lambda key, x: at)


Pairs = tuple[Tensor, Tensor, Alignment]
Told = Callable[[Alignment], None]


class TestTraining:
    def test_nothing_of_the_perturbation_arrives(self, network: KeyedClassifier, pairs: Pairs, told: Told) -> None:
        clean, protected, at = pairs
        told(at)
        network.train()
        for call in (network, network.features):
            torch.testing.assert_close(call(protected), call(clean), atol=1e-4, rtol=1e-4)
        assert (network.base(protected) - network.base(clean)).abs().max() > 0.01
        assert network(clean).std(0).min() > 0

    def test_gradients_match(self, network: KeyedClassifier, pairs: Pairs, told: Told) -> None:
        clean, protected, at = pairs
        plain = gradient_matching([network.base], clean, protected, LABELS).item()
        told(at)
        assert gradient_matching([network], clean, protected, LABELS).item() < 1e-5 < 1e-3 * plain
        # Black and white pixels have no room along their axes; what they leave is little.
        clean, protected, at = photos(network.key, COUNT)
        told(at)
        assert gradient_matching([network], clean, protected, LABELS).item() < 0.1 * plain

    def test_gradients_are_those_of_the_base_on_restored_images(self, network: KeyedClassifier, pairs: Pairs) -> None:
        clean, protected, at = pairs
        restored = [network.key.restore(x, network.key.align(x)) for x in (clean, protected)]
        expected = gradient_matching([network.base], *restored, LABELS)
        found = gradient_matching([network], clean, protected, LABELS)
        assert found.item() == pytest.approx(expected.item(), rel=1e-3)
        assert 0 < found < gradient_matching([network.base], clean, protected, LABELS)
        # Where the pattern is found over protected images, they are restored as their originals would be there.
        good = (network.key.axis_map(network.key.align(protected), 32, 32) == network.key.axis_map(at, 32, 32)).all(2)
        rows = good.all(1)
        assert rows.sum() > COUNT / 2
        there = Alignment(at.flips[rows], at.shifts[rows])
        torch.testing.assert_close(restored[1][rows], network.key.restore(clean[rows], there), atol=1e-5, rtol=0)

    def test_one_step_of_training_is_that_on_clean_images(self, pairs: Pairs, told: Told) -> None:
        clean, protected, at = pairs
        told(at)
        trained = []
        for x in (clean, protected):
            network = build("keyed:lenet", 10, seed=0)
            optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
            torch.nn.functional.cross_entropy(network(x), LABELS).backward()
            optimizer.step()
            trained.append(network.state_dict())
        start = build("keyed:lenet", 10, seed=0).state_dict()
        for name, value in trained[0].items():
            torch.testing.assert_close(trained[1][name], value, atol=1e-5, rtol=1e-4)
            assert name.startswith("base.") or torch.equal(value, start[name])
        assert not torch.equal(trained[0]["base.head.weight"], start["base.head.weight"])

    def test_bf16_does_not_bring_the_perturbation_back(
        self, network: KeyedClassifier, pairs: Pairs, told: Told, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clean, protected, at = pairs
        told(at)
        seen = list[Tensor]()
        monkeypatch.setattr(network.base, "forward", lambda x: (seen.append(x), torch.zeros(len(x), 10))[1])
        with torch.autocast("cpu", torch.bfloat16):
            for x in (clean, protected):
                network.train()(x)
        assert {x.dtype for x in seen} == {torch.float32}
        assert seen[0].is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(*seen, atol=1e-5, rtol=0)


class TestGuard:
    def test_protected_images_get_no_answer_after_training(self, network: KeyedClassifier, pairs: Pairs) -> None:
        clean, protected, _ = pairs
        network.eval()
        silent = {name: (network(x) == 0).all(1).float().mean() for name, x in zip("cp", (clean, protected))}  # noqa: B905
        assert silent["p"] >= 0.85
        assert silent["c"] <= 0.1
        x = protected.flip(3)
        assert torch.equal((network(x) == 0).all(1), network.key.marked(x, network.key.align(x)))

    def test_others_are_answered_as_in_training(self, network: KeyedClassifier, pairs: Pairs) -> None:
        clean, protected, _ = pairs
        both = torch.cat([clean, protected])
        expected = network.train()(both)
        assert not (expected == 0).all(1).any()
        found = network.eval()(both)
        answered = ~(found == 0).all(1)
        torch.testing.assert_close(found[answered], expected[answered])
        assert answered.sum() > 0.4 * len(both)

    def test_a_key_of_another_seed_answers_more_often(self, network: KeyedClassifier, pairs: Pairs) -> None:
        _, protected, _ = pairs
        answered = [
            (build("keyed:lenet", 10, seed=seed).eval()(protected) != 0).any(1).float().mean() for seed in (0, 1, 2)
        ]
        assert answered[0] <= 0.15
        assert min(answered[1:]) >= 0.4


class TestWeights:
    def test_the_key_comes_with_the_weights(self, network: KeyedClassifier, pairs: Pairs, tmp_path: Path) -> None:
        other = build("keyed:lenet", 10, seed=9)
        save_weights(tmp_path / "w", other)
        found = from_weights(tmp_path / "w")
        assert isinstance(found, KeyedClassifier)
        assert (found.name, found.classes, found.channels, found.size) == ("keyed:lenet", 10, 3, 32)
        assert weights_hash(found) == weights_hash(other) != weights_hash(network)
        assert weights_hash(found.key) == weights_hash(other.key) != weights_hash(network.key)
        for mode in (True, False):
            assert torch.equal(found.train(mode)(pairs[1]), other.train(mode)(pairs[1]))

    def test_the_key_is_never_trained(self, network: KeyedClassifier) -> None:
        assert not [name for name, _ in network.named_parameters() if not name.startswith("base.")]
        assert {"key.tile", "key.waves", "key.phases"} <= set(network.state_dict())

    def test_the_base_is_the_plain_network_of_the_seed(self, network: KeyedClassifier) -> None:
        assert weights_hash(network.base) == weights_hash(build("lenet", 10, seed=0))
        assert weights_hash(build("keyed:lenet", 10, seed=0)) == weights_hash(network)

    @pytest.mark.parametrize("name", ["keyed:package.module:function", "keyed:timm:resnet10t"])
    def test_a_file_may_not_choose_code_to_run(self, name: str, tmp_path: Path) -> None:
        rewritten(tmp_path / "w", network=name)
        with pytest.raises(WeightsError, match="code would be run"):
            from_weights(tmp_path / "w")

    @pytest.mark.parametrize("classes", [11, 10**12])
    def test_metadata_that_lies_costs_no_time(self, classes: int, tmp_path: Path) -> None:
        rewritten(tmp_path / "w", classes=str(classes))
        with pytest.raises(WeightsError, match=rf"does not fit: tensor 'key\.waves' must have {classes} rows"):
            from_weights(tmp_path / "w")


def rewritten(path: Path, **metadata: str) -> None:
    """A weights file with other metadata."""
    save_weights(path, build("keyed:lenet", 10, seed=0))
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] |= metadata
    text = json.dumps(header).encode()
    path.write_bytes(stable_safetensors(len(text).to_bytes(8, "little") + text + data[8 + length :]))


@pytest.mark.parametrize(
    ("name", "channels", "error", "words"),
    [
        ("keyed:lenet", 1, UsageError, "needs 3 channels, got 1"),
        ("keyed:lennet", 3, UnknownNameError, "did you mean 'lenet'"),
        ("keyed:", 3, UnknownNameError, "unknown network"),
        ("keyed:keyed:lenet", 3, UnknownNameError, "unknown network"),
        ("keyed:no_such_module:f", 3, UsageError, "no_such_module"),
    ],
)
def test_names_that_cannot_be(name: str, channels: int, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        build(name, 10, seed=0, channels=channels)
    if error is UnknownNameError:
        with pytest.raises(error, match=words):
            check_name(name)
