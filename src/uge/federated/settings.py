"""Settings of a federation. Needs no torch."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Federation(BaseModel):
    """Division of the images among servers, and trainings on the published parts.

    Recipe, root seed and global network are those of the protection settings.

    Attributes:
        servers: Number of servers, which are the clients of federated averaging too.
        split: How images are divided among the servers.
        alpha: Concentration of the Dirichlet split; smaller is more uneven.
        networks: Architectures of the hackers, separated by commas.
        seeds: Repetitions of every training run of Table 9.
        rounds: Rounds of federated averaging; 0 leaves it out.
        local_epochs: Epochs that a client trains in one round.
        control: True runs federated averaging on the clean parts too, to tell its cost from the protection's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    servers: Annotated[int, Field(description="Servers, each with a part of its own.", ge=2, le=10)] = 2
    split: Annotated[
        Literal["classes", "iid", "dirichlet"],
        Field(description="classes: consecutive blocks; iid; dirichlet: uneven by --alpha."),
    ] = "classes"
    alpha: Annotated[float, Field(description="Concentration of the Dirichlet split.", gt=0)] = 0.5
    networks: Annotated[str, Field(description="Architectures of the hackers, separated by commas.")] = "cnn"
    seeds: Annotated[int, Field(description="Repetitions of every training run.", ge=1)] = 1
    rounds: Annotated[int, Field(description="Rounds of federated averaging under Flower; 0 for none.", ge=0)] = 0
    local_epochs: Annotated[int, Field(description="Epochs of a client in one round.", ge=1)] = 1
    control: Annotated[bool, Field(description="Average on the clean parts too, for comparison.")] = False
