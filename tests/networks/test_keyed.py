"""Networks with a wave key: protected images train them like clean ones, and get no answer afterwards."""

import json
from pathlib import Path

import pytest
import torch
from protected_photos import clipped, photos
from torch import Tensor

from uge.data.augment import crop_flip
from uge.errors import UnknownNameError, UsageError, WeightsError
from uge.files import stable_safetensors
from uge.methods.uge.matching import gradient_matching
from uge.networks import KeyedClassifier, build, check_name, from_weights, save_weights, weights_hash

Pairs = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def network() -> KeyedClassifier:
    built = build("keyed:lenet", 10, seed=0)
    assert isinstance(built, KeyedClassifier)
    return built


def pairs_of(network: KeyedClassifier, *, gray: bool = False) -> Pairs:
    """Clean photographs, protected ones and labels, of those on which the key finds what it should: nearly all."""
    clean, protected, _ = photos(network.key, gray=gray)
    restored = [network.key.restore(x, network.key.match(x)) for x in (clean, protected)]
    right = (restored[1] - restored[0]).abs().flatten(1).amax(1) < 1e-5
    assert right.float().mean() >= 0.9
    return clean[right], protected[right], torch.arange(len(clean))[right] % 10


@pytest.fixture(scope="module")
def pairs(network: KeyedClassifier) -> Pairs:
    return pairs_of(network)


class TestTraining:
    def test_nothing_of_the_perturbation_arrives(self, network: KeyedClassifier, pairs: Pairs) -> None:
        clean, protected, _ = pairs
        network.train()
        for call, base in ((network, network.base), (network.features, network.base.features)):
            torch.testing.assert_close(call(protected), call(clean), atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(call(clean), base(clipped(clean, network.key)), atol=1e-4, rtol=1e-4)
        assert (network.base(protected) - network.base(clean)).abs().max() > 0.01
        assert network(clean).std(0).min() > 0

    def test_gradients_match(self, network: KeyedClassifier, pairs: Pairs) -> None:
        clean, protected, labels = pairs
        network.train()
        plain = gradient_matching([network.base], clean, protected, labels).item()
        assert abs(gradient_matching([network], clean, protected, labels).item()) < 1e-5 < 1e-3 * plain
        # With the few images on which another pattern is found it is still little.
        clean, protected, _ = photos(network.key)
        assert gradient_matching([network], clean, protected, torch.arange(100) % 10).item() < 0.1 * plain

    def test_also_those_of_gray_images(self) -> None:
        network = build("keyed:lenet", 10, seed=0, channels=1)
        assert isinstance(network, KeyedClassifier)
        clean, protected, labels = pairs_of(network, gray=True)
        plain = gradient_matching([network.base], clean, protected, labels).item()
        assert abs(gradient_matching([network], clean, protected, labels).item()) < 1e-5 < 1e-3 * plain

    def test_also_after_crops_and_flips(self, network: KeyedClassifier, pairs: Pairs) -> None:
        clean, protected, labels = pairs
        draw = torch.Generator().manual_seed(1)
        clean, protected = crop_flip(torch.cat([clean, protected], 1), draw).chunk(2, 1)
        plain = gradient_matching([network.base], clean, protected, labels).item()
        assert gradient_matching([network.train()], clean, protected, labels).item() < 0.1 * plain

    def test_a_network_with_another_key_is_led_astray(self, pairs: Pairs) -> None:
        clean, protected, labels = pairs
        other = build("keyed:lenet", 10, seed=1)
        plain = gradient_matching([other.base], clean, protected, labels).item()
        assert gradient_matching([other], clean, protected, labels).item() > 0.3 * plain

    def test_gradients_are_those_of_the_base_on_restored_images(self, network: KeyedClassifier, pairs: Pairs) -> None:
        _, protected, labels = pairs
        gradients = []
        for model, x in (
            (network.train(), protected),
            (network.base, network.key.restore(protected, network.key.match(protected))),
        ):
            loss = torch.nn.functional.cross_entropy(model(x), labels)
            gradients.append(torch.autograd.grad(loss, list(network.base.parameters())))
        for own, other in zip(*gradients, strict=True):
            torch.testing.assert_close(own, other, atol=1e-6, rtol=1e-4)
        assert max(float(own.abs().max()) for own in gradients[0]) > 1e-3

    def test_one_step_of_training_is_that_on_clean_images(self, pairs: Pairs) -> None:
        clean, protected, labels = pairs
        trained = []
        for x in (clean, protected):
            network = build("keyed:lenet", 10, seed=0)
            optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
            torch.nn.functional.cross_entropy(network(x), labels).backward()
            optimizer.step()
            trained.append(network.state_dict())
        start = build("keyed:lenet", 10, seed=0).state_dict()
        for name, value in trained[0].items():
            torch.testing.assert_close(trained[1][name], value, atol=1e-5, rtol=1e-4)
            assert name.startswith("base.") or torch.equal(value, start[name])
        assert not torch.equal(trained[0]["base.head.weight"], start["base.head.weight"])

    def test_images_of_less_precision_are_taken_as_they_are(self, network: KeyedClassifier, pairs: Pairs) -> None:
        rounded = pairs[1][:8].bfloat16()
        assert torch.equal(network.train()(rounded), network(rounded.float()))

    def test_bf16_does_not_bring_the_perturbation_back(
        self, network: KeyedClassifier, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = list[Tensor]()
        monkeypatch.setattr(network.base, "forward", lambda x: (seen.append(x), torch.zeros(len(x), 10))[1])
        with torch.autocast("cpu", torch.bfloat16):
            for x in pairs[:2]:
                network.train()(x)
        assert {x.dtype for x in seen} == {torch.float32}
        assert seen[0].is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(*seen, atol=1e-5, rtol=0)


def silent(logits: Tensor) -> Tensor:
    """Which images got no answer."""
    return (logits == logits[:, :1]).all(1)


class TestGuard:
    @pytest.mark.parametrize("gray", [False, True])
    def test_protected_images_get_no_answer_after_training(self, gray: bool) -> None:
        network = build("keyed:lenet", 10, seed=0, channels=1 if gray else 3).eval()
        assert isinstance(network, KeyedClassifier)
        clean, protected, _ = photos(network.key, gray=gray)
        assert silent(network(protected)).float().mean() >= 0.95
        assert silent(network(clean)).float().mean() <= 0.03
        x = protected.flip(3)
        assert torch.equal(silent(network(x)), network.key.marked(network.key.match(x)))

    def test_others_are_answered_as_in_training(self, network: KeyedClassifier, pairs: Pairs) -> None:
        both = torch.cat(pairs[:2])
        expected = network.train()(both)
        assert not silent(expected).any()
        logits = network.eval()(both)
        answered = ~silent(logits)
        torch.testing.assert_close(logits[answered], expected[answered])
        assert answered.sum() > 0.4 * len(both)

    def test_a_key_of_another_seed_answers_more_often(self, network: KeyedClassifier, pairs: Pairs) -> None:
        answered = [
            (~silent(build("keyed:lenet", 10, seed=seed).eval()(pairs[1]))).float().mean() for seed in (0, 1, 2)
        ]
        assert answered[0] <= 0.05
        assert min(answered[1:]) >= 0.4


class TestWeights:
    def test_the_key_comes_with_the_weights(self, network: KeyedClassifier, pairs: Pairs, tmp_path: Path) -> None:
        other = build("keyed:lenet", 10, seed=9)
        save_weights(tmp_path / "w", other)
        loaded = from_weights(tmp_path / "w")
        assert isinstance(loaded, KeyedClassifier)
        assert (loaded.name, loaded.classes, loaded.channels, loaded.size) == ("keyed:lenet", 10, 3, 32)
        assert weights_hash(loaded) == weights_hash(other) != weights_hash(network)
        assert weights_hash(loaded.key) == weights_hash(other.key) != weights_hash(network.key)
        for mode in (True, False):
            assert torch.equal(loaded.train(mode)(pairs[1]), other.train(mode)(pairs[1]))

    def test_the_key_is_never_trained(self, network: KeyedClassifier) -> None:
        assert not [name for name, _ in network.named_parameters() if not name.startswith("base.")]
        assert {"key.waves", "key.phases", "key.levels"} <= set(network.state_dict())

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
        ("keyed:lenet", 2, UsageError, "needs images of 1 or 3 channels, got 2"),
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
