"""CPC v2, cell by cell: masked convolutions, directions and the InfoNCE loss without tensors of grids."""

from collections.abc import Mapping

import torch
from torch import Tensor


def info_nce(prediction: Tensor, target: Tensor, picture: int, patch: int) -> Tensor:
    """Eq. 2 for one prediction: all patches (N, P, D) are candidates."""
    scores = [torch.exp(torch.dot(prediction, one)) for own in target for one in own]
    return -torch.log(scores[picture * target.shape[1] + patch] / sum(scores))


def where(direction: str, side: int, ahead: int, aside: int) -> tuple[int, int]:
    """The cell (row, column) that is `ahead` in a direction, and which of its line it is, from the walker's left."""
    last = side - 1
    return {
        "down": (ahead, aside),
        "right": (last - aside, ahead),
        "up": (last - ahead, last - aside),
        "left": (aside, last - ahead),
    }[direction]


def block(state: dict[str, Tensor], cells: dict[tuple[int, int], Tensor], side: int) -> dict[tuple[int, int], Tensor]:
    """One masked block from its weights; a cell is (ahead, aside)."""

    def narrow(x: Tensor) -> Tensor:
        x = (x - x.mean()) / torch.sqrt(((x - x.mean()) ** 2).mean() + 1e-5)
        x = x * state["narrow.0.weight"] + state["narrow.0.bias"]
        return torch.relu(state["narrow.1.weight"] @ x + state["narrow.1.bias"])

    inner = {cell: narrow(x) for cell, x in cells.items()}
    across = {}
    for ahead, aside in cells:
        total = state["across.bias"]
        for tap in range(3):
            if 0 <= aside + tap - 1 < side:
                total = total + state["across.weight"][:, :, 0, tap] @ inner[ahead, aside + tap - 1]
        across[ahead, aside] = total
    found = {}
    for ahead, aside in cells:
        total = state["down.bias"] + state["down.weight"][:, :, 1, 0] @ across[ahead, aside]
        if ahead > 0:
            total = total + state["down.weight"][:, :, 0, 0] @ across[ahead - 1, aside]
        found[ahead, aside] = cells[ahead, aside] + state["widen.weight"] @ torch.relu(total) + state["widen.bias"]
    return found


def under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def cpc(h: Tensor, state: Mapping[str, Tensor], directions, steps, blocks: int, scale: float) -> Tensor:
    """The mean over directions, steps, pictures and cells; `state` holds the objective's parameters by name."""
    side = round(h.shape[1] ** 0.5)
    target = h @ state["projection.weight"].T + state["projection.bias"]
    tasks = []
    for direction in directions:
        of_direction = under(state, f"contexts.{direction}.")
        contexts = []
        for own in h:
            cells = {}
            for ahead in range(side):
                for aside in range(side):
                    row, column = where(direction, side, ahead, aside)
                    cells[ahead, aside] = own[row * side + column]
            for number in range(blocks):
                cells = block(under(of_direction, f"{number}."), cells, side)
            contexts.append({cell: torch.relu(x) for cell, x in cells.items()})
        for number, step in enumerate(steps):
            head = under(state, f"predictors.{direction}.{number}.")
            errors = []
            for picture, context in enumerate(contexts):
                for ahead in range(side - step):
                    for aside in range(side):
                        prediction = scale * (head["weight"] @ context[ahead, aside] + head["bias"])
                        row, column = where(direction, side, ahead + step, aside)
                        errors.append(info_nce(prediction, target, picture, row * side + column))
            tasks.append(torch.stack(errors).mean())
    return torch.stack(tasks).mean()
