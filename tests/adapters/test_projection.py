"""The two mechanisms by themselves: rows, the stand-in model, the mode."""

import numpy as np
import pytest
import torch
from torch import nn

from sip_plugin.adapters.projection import (
    BatchProjection,
    IterateProjection,
    ProjectedModel,
    RowSelections,
    UnknownRowsError,
    WatchedTensor,
    watched,
    watched_array,
)


@pytest.fixture
def projection(images, salience):
    return BatchProjection(images, salience)


def test_as_many_rows_as_images_are_in_the_images_order_however_far_they_are(projection, images, salience):
    queries = images.flip(0)
    assert torch.equal(projection(queries), torch.where(salience, images, queries))


@pytest.mark.parametrize("rows", [[4], [5, 0, 2], [3, 1]])
def test_other_numbers_of_rows_are_the_images_that_were_selected_however_far_they_are(rows, images, salience):
    selections = RowSelections(images)
    selections.record(images, torch.tensor(rows), images[rows])
    queries = torch.rand(len(rows), 3, 16, 16)
    projected = BatchProjection(images, salience, selections=selections)(queries)
    assert torch.equal(projected, torch.where(salience[rows], images[rows], queries))


def test_other_numbers_of_rows_are_never_guessed(projection, images):
    for rows in ([4], [0, 0, 1, 2, 3, 4, 5, 5], [3] * 50):
        with pytest.raises(UnknownRowsError):
            projection(images[rows])


def test_a_tiled_query_is_the_batch_again_and_again(images, salience):
    queries = torch.rand(18, 3, 16, 16)
    projected = BatchProjection(images, salience, tiled=True)(queries)
    assert torch.equal(projected, torch.where(salience.repeat(3, 1, 1, 1), images.repeat(3, 1, 1, 1), queries))


def test_any_number_of_rows_is_about_a_single_image(images, salience):
    queries = torch.rand(9, 3, 16, 16)
    projected = BatchProjection(images[:1], salience[:1])(queries)
    assert torch.equal(projected, torch.where(salience[:1], images[:1], queries))


def test_a_map_that_marks_nothing_leaves_any_query_as_it_is(images):
    queries = torch.rand(4, 3, 16, 16)
    handed = BatchProjection(images, torch.zeros_like(images, dtype=torch.bool))(queries)
    assert torch.equal(handed, queries)
    assert handed.data_ptr() != queries.data_ptr()  # a network may write into what it is handed


def test_selections_are_seen_of_tensors_and_of_arrays(images):
    seen = RowSelections(images)
    again = watched(images, seen).clone().detach()[torch.tensor([5, 2, 0])].float()
    assert not isinstance(again + 0.1, WatchedTensor)  # what is computed costs what it costs
    _ = again[torch.tensor([False, True, True])]
    assert seen.of(3).tolist() == [5, 2, 0]
    assert seen.of(2).tolist() == [2, 0]
    seen = RowSelections(images)
    array = watched_array(images.numpy(), seen)
    _ = np.clip(array.astype(np.float64) + 0.1, 0, 1)[np.array([False, True, True, False, False, True])][:2]
    assert seen.of(3).tolist() == [1, 2, 5]
    assert seen.of(2).tolist() == [1, 2]


def test_one_map_stands_for_every_image(images):
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    mask[..., :8] = True
    projected = BatchProjection(images, mask)(images * 0.9)
    assert torch.equal(projected[..., :8], images[..., :8])
    assert torch.equal(projected[..., 8:], images[..., 8:] * 0.9)


def test_the_model_sees_projected_queries_and_has_zero_gradients_on_salient_elements(
    projection, network, images, salience
):
    seen = []
    handle = network.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    queries = torch.rand_like(images).requires_grad_()
    ProjectedModel(network, projection)(queries).sum().backward()
    handle.remove()
    assert torch.equal(seen[0], torch.where(salience, images, queries))
    assert (queries.grad[salience] == 0).all()
    assert (queries.grad[~salience] != 0).any()


def test_the_stand_in_model_hands_everything_else_through(projection, network):
    network.note = "mine"
    model = ProjectedModel(network, projection)
    assert model.note == "mine"
    assert not model.training
    assert list(model.parameters()) == list(network.parameters())
    model.train()
    assert network.training
    with pytest.raises(AttributeError, match="no_such"):
        _ = model.no_such


@pytest.mark.parametrize("how", ["attribute", "method", "method with keyword"])
def test_the_mode_projects_a_tensor_that_is_marked_and_masks_its_gradient(how, projection, images, salience):
    point = torch.rand_like(images)
    before = point.clone()
    with IterateProjection(projection):
        if how == "attribute":
            point.requires_grad = True
        elif how == "method":
            point.requires_grad_()
        else:
            point.requires_grad_(requires_grad=True)
        gradient = torch.autograd.grad((point * 2).sum(), point)[0]
    assert torch.equal(point.detach(), torch.where(salience, images, before))
    assert torch.equal(gradient, 2.0 * ~salience)


def test_the_mode_leaves_unmarked_tensors_and_those_of_other_shapes_alone(projection, images):
    off, other, integer = torch.rand_like(images), torch.rand(6, 10), torch.zeros(6, 3, 16, 16, dtype=torch.int64)
    copies = [t.clone() for t in (off, other)]
    with IterateProjection(projection):
        off.requires_grad = False
        off.requires_grad_(False)
        other.requires_grad_()
        integer.requires_grad_(False)
    assert torch.equal(off, copies[0])
    assert torch.equal(other.detach(), copies[1])


def test_the_mode_is_out_of_the_networks_way_and_back_afterwards(projection, images):
    active = []

    class Looks(nn.Module):
        def forward(self, x):
            active.append(torch.overrides._get_current_function_mode())
            return x

    mode = IterateProjection(projection)
    with mode:
        ProjectedModel(Looks(), None, mode)(images)
        assert torch.overrides._get_current_function_mode() is mode
    assert active == [None]


def test_the_mode_returns_also_when_the_network_fails(projection, images):
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("the network failed")

    mode = IterateProjection(projection)
    with mode:
        with pytest.raises(RuntimeError, match="failed"):
            ProjectedModel(Fails(), None, mode)(images)
        assert torch.overrides._get_current_function_mode() is mode
    assert torch.overrides._get_current_function_mode() is None
