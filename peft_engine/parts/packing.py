"""Packing: the rows of a batch as one row without padding, each common prefix of tokens once.

Causal models compute a token from the tokens before it alone. So two rows that begin alike, with
the same chat template or the same prompt, have the same hidden states up to where they part, and
these need to be computed only once: the rows of a batch are the branches of a tree of tokens. Every
map that treats tokens one by one (products, norms, activations, and what methods add to them) runs
over the nodes of this tree; attention alone looks them up as the rows that they stand for, so that
no token ever sees another row. The gradient of a shared node is the sum over its rows, as it is
without packing: nothing is approximated.

Source: sharing of prompts in training, Liu et al. 2025, arXiv 2506.05433.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Legend of axes: B rows, T tokens of the longest row, N nodes.


@dataclass(frozen=True)
class Packing:
    """How B padded rows of T tokens share one row of N nodes.

    Attributes:
        input_ids: (1, N) int64, the token of each node.
        positions: (1, N) int64, its place in every row that it stands for.
        nodes: (B · T,) int64, the node of each token of the padded rows; padding names node 0.
        firsts: (N,) int64, a place in the padded rows, flattened, at which each node stands.
        rows: B.
    """

    input_ids: Tensor
    positions: Tensor
    nodes: Tensor
    firsts: Tensor
    rows: int

    def spread(self, values: Tensor) -> Tensor:
        """Values of nodes as values of the padded rows.

        Args:
            values: (N, …).

        Returns:
            (B, T, …); what stands at padding has no meaning.
        """
        return values.index_select(0, self.nodes).view(self.rows, -1, *values.shape[1:])

    def gather(self, values: Tensor) -> Tensor:
        """Values of the padded rows as values of nodes.

        Args:
            values: (B, T, …), alike wherever a node stands.

        Returns:
            (N, …).
        """
        return values.flatten(0, 1).index_select(0, self.firsts)


def pack(rows: Sequence[Sequence[int]], *, share: bool, device: torch.device) -> Packing:
    """Lay rows out as nodes.

    Args:
        rows: Token ids of each row, at least one each.
        share: Whether rows that begin alike share nodes; else only padding is left out.
        device: Where the tensors go.

    Returns:
        The packing. Nodes stand in the order of the rows.
    """
    longest = max(len(row) for row in rows)
    nodes: list[int] = []
    firsts: list[int] = []
    found: dict[tuple[int, int], int] = {}
    for place, row in enumerate(rows):
        parent = -1 if share else -1 - place  # a root of its own for each row
        for offset, token in enumerate(row):
            node = found.setdefault((parent, token), len(firsts))
            if node == len(firsts):
                firsts.append(place * longest + offset)
            nodes.append(node)
            parent = node
        nodes += [0] * (longest - len(row))
    ids = [rows[place // longest][place % longest] for place in firsts]
    return Packing(
        torch.tensor([ids], device=device),
        torch.tensor([[place % longest for place in firsts]], device=device),
        torch.tensor(nodes, device=device),
        torch.tensor(firsts, device=device),
        len(rows),
    )
