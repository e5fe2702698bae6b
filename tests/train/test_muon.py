"""Muon's direction is orthogonal, and its step is PyTorch's own up to rounding."""

import pytest
import torch

from blockwright.train.muon import Muon, orthogonalise

SHAPES = [(16, 16), (24, 8), (8, 24), (16, 16)]


def _matrix(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_singular_values_come_near_one_and_singular_vectors_stay(rows: int, columns: int) -> None:
    values = torch.linspace(0.05, 1, min(rows, columns))
    left, _, right = torch.linalg.svd(_matrix(rows, columns, 0), full_matrices=False)
    made = orthogonalise((left * values @ right)[None])[0]
    inner = left.T @ made @ right.T
    assert ((inner.diag() > 0.65) & (inner.diag() < 1.25)).all()
    torch.testing.assert_close(inner, inner.diag().diag(), atol=1e-4, rtol=0)


def test_a_stack_is_made_orthogonal_matrix_by_matrix() -> None:
    stack = torch.stack([_matrix(8, 24, seed) for seed in range(3)])
    for one, many in zip(stack, orthogonalise(stack), strict=True):
        torch.testing.assert_close(orthogonalise(one[None])[0], many)


def test_steps_are_those_of_pytorchs_muon() -> None:
    # PyTorch iterates in bf16 and keeps a moving average instead of a sum; the direction is the same.
    mine, theirs = ([torch.nn.Parameter(_matrix(*shape, seed)) for seed, shape in enumerate(SHAPES)] for _ in range(2))
    start = [parameter.detach().clone() for parameter in mine]
    ours = Muon(mine, lr=0.02, momentum=0.9, weight_decay=0.1)
    reference = torch.optim.Muon(
        theirs, lr=0.02, momentum=0.9, weight_decay=0.1, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(5):
        for index, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            a.grad = _matrix(a.shape[0], a.shape[1], 100 * step + index)
            b.grad = _matrix(a.shape[0], a.shape[1], 100 * step + index)
        ours.step()
        reference.step()
    for before, a, b in zip(start, mine, theirs, strict=True):
        assert (a - b).norm() < 0.03 * (b - before).norm()


def test_a_step_leaves_gradients_and_parameters_without_them_alone() -> None:
    moved, unmoved = torch.nn.Parameter(_matrix(4, 4, 0)), torch.nn.Parameter(_matrix(4, 4, 1))
    moved.grad = _matrix(4, 4, 2)
    Muon([moved, unmoved], lr=0.1).step()
    assert torch.equal(moved.grad, _matrix(4, 4, 2))
    assert torch.equal(unmoved, _matrix(4, 4, 1))
    assert not torch.equal(moved, _matrix(4, 4, 0))


def test_the_update_has_the_size_of_an_adamw_update() -> None:
    parameter = torch.nn.Parameter(torch.zeros(64, 32))
    parameter.grad = _matrix(64, 32, 0)
    Muon([parameter], lr=1.0).step()
    assert 0.1 < parameter.square().mean().sqrt().item() < 0.3


def test_a_saved_state_goes_on_exactly() -> None:
    results = []
    for is_interrupted in (False, True):
        parameter = torch.nn.Parameter(_matrix(8, 8, 0))
        optimizer = Muon([parameter], lr=0.1)
        for step in range(4):
            if is_interrupted and step == 2:
                state = optimizer.state_dict()
                optimizer = Muon([parameter], lr=0.1)
                optimizer.load_state_dict(state)
            parameter.grad = _matrix(8, 8, step)
            optimizer.step()
        results.append(parameter.detach())
    assert torch.equal(*results)


def test_a_vector_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        Muon([torch.nn.Parameter(torch.zeros(3))], lr=0.1)
