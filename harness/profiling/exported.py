"""Networks of `torch.export` files, with the modules that they were exported from."""

from torch import Tensor, nn
from torch.export import ExportedProgram, unflatten


class ExportedNetwork(nn.Module):
    """An exported program that checks its input, with the modules that it was exported from in `network`.

    `network` by itself does not check: in a trace sizes are tensors, which that check cannot compare.
    `declared_input`: the sizes of its image input, None where they are free.
    """

    def __init__(self, program: ExportedProgram):
        super().__init__()
        self.network = unflatten(program)
        self.network.check_input_constraints = False
        self.declared_input = _declared_input(program)

    def forward(self, input_BCHW: Tensor) -> Tensor:
        """Run the program on one batch of images."""
        self.network.check_input_constraints = True
        try:
            output: Tensor = self.network(input_BCHW)
        finally:
            self.network.check_input_constraints = False
        return output


def _declared_input(program: ExportedProgram) -> tuple[int | None, ...] | None:
    """Return batch, channels, height and width of the program's one input; None where it has no such input."""
    names = program.graph_signature.user_inputs
    shapes = [node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        return None
    return tuple(side if isinstance(side, int) else None for side in shapes[0])
