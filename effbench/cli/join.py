"""`effbench join`: lend this machine to a run that another one orchestrates."""

from typing import Annotated

import typer


def join(
    endpoint: Annotated[str, typer.Argument(metavar="HOST:PORT", help="The run's --rdzv-endpoint.")],
) -> None:
    """Lend this machine to a run of several; ends when the run does. Both need the same effbench, plugins and EFFBENCH_SECRET.

    Examples: on the first machine `effbench run my.toml --launcher torchrun --nnodes 2 --rdzv-endpoint 10.0.0.1:29400`, on the
    second `effbench join 10.0.0.1:29400`
    """
    from effbench.launch import nodes

    nodes.join(nodes.Endpoint.parse(endpoint))
