"""The last linear layer of a network, and everything below it."""

from torch import Tensor, nn

from uge.errors import UsageError


def last_layer(network: nn.Module) -> nn.Linear:
    """The last linear layer of a network.

    Raises:
        UsageError: There is none.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise UsageError(f"expected a network with a linear layer, got {type(network).__name__}; choose another one")
    return layers[-1]


def feature_state(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of everything below the last linear layer.

    Raises:
        UsageError: There is no such layer.
    """
    head = {id(parameter) for parameter in last_layer(network).parameters()}
    return {name: value.detach() for name, value in network.state_dict(keep_vars=True).items() if id(value) not in head}
