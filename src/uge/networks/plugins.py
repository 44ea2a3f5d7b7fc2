"""Foreign modules as networks: functions of other packages, and models of timm."""

import contextlib
import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from uge import extras
from uge.errors import UsageError
from uge.networks.base import MEAN, STD, ImageClassifier

TIMM = "timm:"  # Prefix of a model of timm.


def is_plugin(name: str) -> bool:
    """True for the names ``package.module:function`` and ``timm:name``, which import code; they contain a colon."""
    return ":" in name


def build_plugin(name: str, classes: int, channels: int, size: int) -> ImageClassifier:
    """Make a network from ``"package.module:function"`` or ``"timm:name"``.

    Raises:
        MissingExtraError: timm is asked for and not installed.
        UsageError: Module or function do not exist, or the result is no classifier of this shape.
    """
    shape = {"classes": classes, "channels": channels, "size": size}
    if name.startswith(TIMM):
        return Wrapped(_from_timm(name, **shape), name=name, **shape, mean=MEAN, std=STD)
    place, _, attribute = name.partition(":")
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(place), attribute)
    except (Exception, SystemExit) as error:  # The module may do anything.
        raise UsageError(
            f"network '{name}' must name an importable 'package.module:function' ({error}); "
            "is its folder on PYTHONPATH?"
        ) from error
    return Wrapped(made_by(function, name, **shape), name=name, **shape)


def made_by(function: Any, name: str, classes: int, channels: int, size: int) -> nn.Module:
    """The module that a function of (classes, channels, size) makes.

    Raises:
        UsageError: It is no function, or returns no module.
    """
    if not callable(function):
        raise UsageError(f"network '{name}' must name a function(classes, channels, size), got {function!r}")
    try:
        module = function(classes, channels, size)
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"the function of the network '{name}' failed for {classes} classes, {channels} channels and {size} px "
            f"({type(error).__name__}: {error}); mend it"
        ) from error
    if not isinstance(module, nn.Module):
        raise UsageError(f"network '{name}' must return a torch.nn.Module, got {type(module).__name__}")
    return module


class Wrapped(ImageClassifier):
    """A foreign module as an ``ImageClassifier``.

    Its features are the input of the ``Linear`` or 1×1 convolution that runs last in one trial pass.
    Features with a height and a width are averaged over them.

    Raises:
        UsageError: The trial pass fails, its result is not (B, classes), or no such layer runs.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        name: str,
        classes: int,
        channels: int,
        size: int,
        mean: float = 0.0,
        std: float = 1.0,
    ) -> None:
        super().__init__(name=name, classes=classes, channels=channels, size=size, mean=mean, std=std)
        self.module = module
        self.last_layer = self._find_last_layer()

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes); see the base class."""
        out: Tensor = self.module(self.normalise(x))
        return out

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features (B, D); see the base class."""
        seen: list[Tensor] = []
        layer = self.module.get_submodule(self.last_layer)
        with layer.register_forward_pre_hook(lambda _, args: seen.append(args[0])):
            self.forward(x)
        return seen[-1].mean((2, 3)) if seen[-1].dim() == 4 else seen[-1].flatten(1)

    def _find_last_layer(self) -> str:
        """Name of the last layer to run, from one pass that changes neither weights nor modes."""
        ran: list[str] = []
        modes = {module: module.training for module in self.modules()}
        with contextlib.ExitStack() as stack, torch.no_grad():
            for name, layer in self.module.named_modules():
                if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)):
                    stack.enter_context(layer.register_forward_pre_hook(lambda _, __, name=name: ran.append(name)))
            self.eval()
            try:
                out = self.forward(torch.zeros(2, self.channels, self.size, self.size))
            except Exception as error:
                raise UsageError(
                    f"network '{self.name}' failed on a trial batch of 2×{self.channels}×{self.size}×{self.size}: "
                    f"{error}"
                ) from error
            finally:
                for module, training in modes.items():
                    module.training = training
        if not isinstance(out, Tensor) or tuple(out.shape) != (2, self.classes):
            came = f"a tensor of shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
            raise UsageError(f"network '{self.name}' must return logits (B, {self.classes}); for B=2 it gave {came}")
        if not ran:
            raise UsageError(f"network '{self.name}' must end in a Linear layer or a 1×1 convolution; it runs neither")
        return ran[-1]


def _from_timm(name: str, classes: int, channels: int, size: int) -> nn.Module:
    timm = extras.load("timm", "timm", f"network '{name}'")
    model = name.removeprefix(TIMM)
    make: Callable[..., nn.Module] = functools.partial(
        timm.create_model, model, pretrained=False, num_classes=classes, in_chans=channels
    )
    try:
        try:  # Vision transformers need the image size; most convolutional networks refuse the argument.
            return make(img_size=size)
        except TypeError:
            return make()
    except Exception as error:
        raise UsageError(f"timm cannot make the model '{model}' for {size} px: {error}") from error
