import pytest
import torch
from reference import memory_reference as reference
from torch import Tensor

from jointembed.objectives.memory import Bank, Queue


def rows(n: int, d: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def as_set(x: Tensor) -> set[tuple[float, ...]]:
    return {tuple(row.tolist()) for row in x}


@pytest.mark.parametrize("sizes", [[2], [2, 2], [3, 3], [5], [2, 8], [0, 1], [13, 4]])
def test_queue_keeps_the_newest_rows(sizes: list[int]) -> None:
    queue = Queue(5, 3).double()
    start = queue.rows.clone()
    batches = [rows(size, seed=number) for number, size in enumerate(sizes)]
    for batch in batches:
        queue.enqueue(batch)
    assert as_set(queue.rows) == reference.queue(start, batches)
    assert int(queue.count) == sum(sizes) and queue.full == (sum(sizes) >= 5)


def test_queue_goes_round() -> None:
    queue = Queue(4, 1)
    for number in range(6):
        queue.enqueue(torch.tensor([[float(number)]]))
    assert queue.rows.flatten().tolist() == [4, 5, 2, 3]


def test_rows_go_in_at_the_commit_and_once() -> None:
    queue = Queue(4, 3).double()
    start = queue.rows.clone()
    queue.hold(rows(2).requires_grad_())
    assert torch.equal(queue.rows, start) and int(queue.count) == 0
    queue.hold(rows(3, seed=2))  # a step that was repeated
    queue.commit()
    queue.commit()
    assert torch.equal(queue.rows, torch.cat([rows(3, seed=2), start[3:]])) and int(queue.count) == 3


def test_both_start_with_equal_unit_rows_and_leave_the_random_state_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = Queue(6, 4).rows, Bank(6, 4).rows
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    second = Queue(6, 4).rows, Bank(6, 4).rows
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one.norm(dim=1), torch.ones(6))
        assert len(as_set(one)) == 6


def test_bank_follows_the_embeddings() -> None:
    bank = Bank(6, 3, momentum=0.3).double()
    start = bank.rows.clone()
    batches = [([4, 1, 4, 0, 4], rows(5)), ([], rows(0)), ([1, 5], rows(2, seed=2))]
    for numbers, batch in batches:
        bank.hold(torch.tensor(numbers, dtype=torch.int64), batch)
        bank.commit()
    torch.testing.assert_close(bank.rows, reference.bank(start, batches, 0.3), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(bank.rows.norm(dim=1), torch.ones(6).double())
    assert torch.equal(bank.rows[2:4], start[2:4]) and int(bank.step) == 3


def test_bank_draws_anew_after_a_commit_alone() -> None:
    bank = Bank(50, 3)
    first = bank.draw(200)
    assert torch.equal(bank.draw(200), first) and torch.equal(Bank(50, 3).draw(200), first)
    assert int(first.min()) >= 0 and int(first.max()) < 50 and len(first.unique()) > 40
    bank.commit()
    assert not torch.equal(bank.draw(200), first)


def test_both_survive_a_checkpoint() -> None:
    queue, bank = Queue(4, 3), Bank(5, 3)
    queue.enqueue(rows(6).float())
    bank.hold(torch.tensor([2]), rows(1).float())
    bank.commit()
    other_queue, other_bank = Queue(4, 3), Bank(5, 3)
    other_queue.load_state_dict(queue.state_dict())
    other_bank.load_state_dict(bank.state_dict())
    for one in (queue, other_queue):
        one.enqueue(rows(3, seed=5).float())
    assert torch.equal(other_queue.rows, queue.rows)
    assert torch.equal(other_bank.rows, bank.rows) and torch.equal(other_bank.draw(9), bank.draw(9))


def test_both_are_made_on_the_meta_device() -> None:
    with torch.device("meta"):
        assert Queue(4, 3).rows.is_meta and Bank(4, 3).rows.is_meta
