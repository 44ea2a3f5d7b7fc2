"""θ0 and recipe from key files."""

from pathlib import Path

from pydantic import ValidationError

from uge.data.store import PixelStore
from uge.errors import UsageError, WeightsError
from uge.learning.recipes import Recipe
from uge.names import behind_key
from uge.networks import ImageClassifier, from_weights, load_weights
from uge.networks.plugins import is_plugin


def key_network(path: Path, store: PixelStore, *, plugins: bool = False) -> ImageClassifier:
    """Network with θ0 from a key file, checked against the data that it is to be trained on.

    Args:
        path: The key.
        store: The data.
        plugins: True builds a network that is not in the table, too, which runs the code that the key names.

    Raises:
        WeightsError: The file is missing, damaged, or no key.
        UsageError: It was made for other classes, channels or another size, or for a plug-in that is not allowed.
    """
    name = load_weights(path)[1].get("network", "")
    if is_plugin(behind_key(name)) and not plugins:
        raise UsageError(
            f"the key {path} is for the plug-in network '{name}', whose code would be run; give --trust-plugins if you "
            "trust the key"
        )
    network = from_weights(path, plugins=plugins)
    expected = (len(store.classes), store.channels, store.size)
    made_for = (network.classes, network.channels, network.size)
    if made_for != expected:
        raise UsageError(
            f"the key {path} is for {made_for[0]} classes, {made_for[1]} channels and size {made_for[2]}, but the data "
            f"has {expected[0]}, {expected[1]} and {expected[2]}; give the key that was made with this folder"
        )
    return network


def key_recipe(path: Path) -> Recipe:
    """Recipe of the authorised network from a key file.

    Raises:
        WeightsError: The file is missing or damaged.
    """
    text = load_weights(path)[1].get("recipe")
    try:
        return Recipe.model_validate_json(text) if text else Recipe()
    except ValidationError as error:
        raise WeightsError(f"the recipe in the key {path} cannot be read; name one with --recipe") from error
