"""Boxes, maps and look-ups: closed-form cases and round trips. Views of real crops are in data/test_views.py."""

from __future__ import annotations

import pytest
import torch

from plrc import geometry

BOXES = [(0.0, 0.0, 1.0, 1.0), (0.2, 0.1, 0.7, 0.9), (0.5, 0.0, 0.501, 1.0)]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("box", BOXES)
def test_corners_of_a_view_are_the_corners_of_its_box(box: geometry.Box, flip: bool) -> None:
    maps = torch.tensor([geometry.crop_map(box, flip)])
    corners = geometry.to_image(torch.tensor([[[0.0, 0.0], [1.0, 1.0]]]), maps)[0]
    x0, y0, x1, y1 = box
    expected = [[x1, y0], [x0, y1]] if flip else [[x0, y0], [x1, y1]]
    torch.testing.assert_close(corners, torch.tensor(expected))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("box", BOXES)
def test_to_view_undoes_to_image(box: geometry.Box, flip: bool) -> None:
    maps = torch.tensor([geometry.crop_map(box, flip)], dtype=torch.float64)
    points = torch.rand(1, 50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(geometry.to_view(geometry.to_image(points, maps), maps), points)


def test_inside_includes_the_border_and_nothing_beyond() -> None:
    points = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.5, 1.0001], [-0.0001, 0.5], [2.0, -1.0]])
    assert geometry.inside(points).tolist() == [True, True, False, False, False]


def test_lattice_holds_cell_centers_row_by_row() -> None:
    expected = [[x, y] for y in (0.25, 0.75) for x in (1 / 6, 3 / 6, 5 / 6)]
    torch.testing.assert_close(geometry.cell_centers(2, 3), torch.tensor(expected))


def test_sampling_at_the_lattice_returns_the_features() -> None:
    features = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(1))
    read = geometry.sample(features, geometry.cell_centers(4, 6).expand(2, -1, -1))
    torch.testing.assert_close(read, features.flatten(2).transpose(1, 2))


def test_sampling_is_linear_between_centers_and_constant_beyond_them() -> None:
    features = torch.tensor([[[[1.0, 3.0]]]])
    points = torch.tensor([[[0.5, 0.5], [0.375, 0.5], [0.1, 0.5], [1.0, 0.0]]])
    torch.testing.assert_close(geometry.sample(features, points)[0, :, 0], torch.tensor([2.0, 1.5, 1.0, 3.0]))


def test_sampling_reads_half_precision_in_float32_and_float64_in_float64() -> None:
    points = torch.tensor([[[0.4, 0.6]]])
    for given, got in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)):
        assert geometry.sample(torch.ones(1, 2, 3, 3, dtype=given), points).dtype == got


def test_look_up_returns_the_cell_that_a_point_lies_in() -> None:
    ids = torch.arange(6, dtype=torch.int16).reshape(1, 2, 3)
    points = torch.tensor([[[0.0, 0.0], [0.34, 0.49], [0.99, 0.5], [1.0, 1.0], [-0.1, 1.1]]])
    assert geometry.look_up(ids, points).tolist() == [[0, 1, 5, 5, 3]]


def test_look_up_returns_each_cell_at_its_center() -> None:
    ids = torch.randint(-1, 9, (2, 7, 5), generator=torch.Generator().manual_seed(2))
    assert torch.equal(geometry.look_up(ids, geometry.cell_centers(7, 5).expand(2, -1, -1)), ids.flatten(1))
