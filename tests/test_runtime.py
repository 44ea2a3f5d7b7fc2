import pytest
import torch

from uge.errors import UsageError
from uge.runtime import Runtime, seeded, stream, stream_seed


def draw(generator: torch.Generator) -> list[float]:
    return torch.rand(4, generator=generator).tolist()


def test_streams_are_named_and_start_fresh() -> None:
    assert draw(stream(0, "order", 3)) == draw(stream(0, "order", 3))
    names = [(0, "order", 3), (0, "order", 4), (0, "augment", 3), (1, "order", 3), (0, "order")]
    assert len({stream_seed(*name) for name in names}) == len(names)
    assert all(0 <= stream_seed(*name) < 2**63 for name in names)


def test_seeded_reaches_layers_and_leaves_the_global_state() -> None:
    before = torch.random.get_rng_state()
    with seeded(7, "layers"):
        first = torch.nn.functional.dropout(torch.ones(50), 0.5)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(1)
    with seeded(7, "layers"):
        assert torch.equal(torch.nn.functional.dropout(torch.ones(50), 0.5), first)


@pytest.mark.parametrize(
    ("device", "precision"), [("cuda:99", "auto"), ("meta", "auto"), ("tpu9000", "auto"), ("", "auto"), ("cpu", "fp8")]
)
def test_refuses_what_is_not_there(device: str, precision: str) -> None:
    with pytest.raises(UsageError, match=r"must be|are here"):
        Runtime.create(device, precision)


@pytest.mark.parametrize("device", ["cuda", "gpu", "mps"])
def test_an_absent_device_names_the_way_out(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UsageError, match="use --device auto"):
        Runtime.create(device)


def test_auto_takes_the_cpu_where_there_is_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    runtime = Runtime.create()
    assert runtime.device == torch.device("cpu")
    assert runtime.precision in ("fp32", "bf16-mixed")


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_autocast_and_layout_follow_the_precision(precision: str, dtype: torch.dtype) -> None:
    runtime = Runtime.create("cpu", precision)
    layer = runtime.place(torch.nn.Conv2d(3, 4, 3))
    with runtime.autocast():
        assert layer(torch.rand(2, 3, 8, 8)).dtype == dtype
    assert layer.weight.dtype == torch.float32
    assert layer.weight.is_contiguous(memory_format=runtime.memory_format)


def test_environment_names_what_a_result_depends_on() -> None:
    environment = Runtime.create("cpu", "fp32").environment()
    assert (environment["device"], environment["precision"], environment["torch"]) == ("cpu", "fp32", torch.__version__)
    assert environment["hardware"]
