"""A network of the table as one file of plain PyTorch, joined from files of this package.

The file and the weights are enough to train the authorised network without this package. Files of network definitions
import nothing from this package but each other, so that they can stand one below the other without these imports.
"""

import functools
import inspect
import re
from typing import Any

from uge.errors import UsageError
from uge.names import behind_key, is_keyed
from uge.networks import base, keyed, wave_key
from uge.networks.base import ImageClassifier
from uge.networks.table import NETWORKS, Architecture

_DROPPED = re.compile(r"^from (__future__|uge\.\S+) import .*\n\n?", re.MULTILINE)


def has_standalone(name: str) -> bool:
    """True for networks that can be written as one file: those of this package, with a wave key or without."""
    return isinstance(NETWORKS.get(behind_key(name)), Architecture)


def standalone_source(network: ImageClassifier) -> str:
    """Python source that defines the architecture of ``network``; holds no weights and no secret.

    The file has two functions: ``network()`` makes the module, and ``load(path)`` makes it with the weights of a key
    file. It needs torch and safetensors.

    Args:
        network: From :func:`uge.networks.build`.

    Raises:
        UsageError: Its code is not this package's (a plug-in).
    """
    name = network.name
    if not has_standalone(name):
        raise UsageError(
            f"network '{name}' is not of this package, so its definition cannot be written as one file; "
            "hand over the code that defines it"
        )
    row: Any = NETWORKS[behind_key(name)]
    body = functools.partial(row.body)
    options = "".join(f", {option}={value!r}" for option, value in body.keywords.items())
    files = [base, inspect.getmodule(body.func), *((wave_key, keyed) if is_keyed(name) else ())]
    return _FILE.format(
        name=name,
        classes=network.classes,
        channels=network.channels,
        size=network.size,
        definitions="\n\n".join(_DROPPED.sub("", inspect.getsource(file)) for file in files if file is not None),
        base=behind_key(name),
        body=f"{body.func.__name__}({network.channels}{options}), {row.width}",
        result=f'KeyedClassifier(base, WaveKey({network.classes}, seed=0, size={network.size}), "{name}")'
        if is_keyed(name)
        else "base",
    )


_FILE = '''"""The network '{name}' in plain PyTorch: {classes} classes, images {channels} × {size} × {size} in [0, 1].

``load(FILE)`` gives it with the weights of a key file. Joined by uge from its own sources, which are
licensed under Apache-2.0.
"""


from safetensors.torch import load_file

{definitions}

def network() -> ImageClassifier:
    """The architecture, not yet with the weights of the key file; a wave key comes with these weights, too."""
    base = BodyAndHead({body}, name="{base}", classes={classes}, channels={channels}, size={size})
    return {result}


def load(path: str) -> ImageClassifier:
    """The network with the weights of a key file (safetensors), in training mode."""
    made = network()
    made.load_state_dict(load_file(path))
    return made
'''
