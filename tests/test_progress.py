import pytest

from uge.progress import duration


@pytest.mark.parametrize(
    ("seconds", "words"), [(1.4, "1 s"), (90, "90 s"), (119, "119 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
