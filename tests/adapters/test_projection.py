"""The two mechanisms by themselves: rows, the stand-in model, the mode."""

import pytest
import torch
from torch import nn

from sip_plugin.adapters.projection import BatchProjection, IterateProjection, ProjectedModel


@pytest.fixture
def projection(images, salience):
    return BatchProjection(images, salience)


def test_as_many_rows_as_images_are_in_the_images_order_however_far_they_are(projection, images, salience):
    queries = images.flip(0)
    assert torch.equal(projection(queries), torch.where(salience, images, queries))


@pytest.mark.parametrize("rows", [[4], [5, 0, 2], [0, 0, 1, 2, 3, 4, 5, 5], [3] * 50])
@pytest.mark.parametrize("autocast", [False, True])
def test_other_numbers_of_rows_take_their_nearest_image(rows, autocast, projection, images, salience):
    queries = (images[rows] + 0.03 * torch.randn(len(rows), 3, 16, 16)).clamp(0, 1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        projected = projection(queries)
    assert torch.equal(projected, torch.where(salience[rows], images[rows], queries))


def test_rows_are_told_apart_even_where_images_are_close(salience):
    base = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    images = base + 1e-3 * torch.arange(6).view(6, 1, 1, 1)
    rows = [5, 2, 3]
    projected = BatchProjection(images, salience)(images[rows] + 1e-4)
    assert torch.equal(projected, torch.where(salience[rows], images[rows], images[rows] + 1e-4))


@pytest.mark.parametrize(("piece", "rows"), [(4, [0, 1, 2, 3]), (4, [4, 5]), (2, [2, 3]), (3, [3, 4, 5])])
def test_a_piece_of_the_batch_is_recognised_as_a_whole(piece, rows, images, salience):
    twins = images.clone()
    twins[rows[-1]] = twins[rows[0]]  # alone, they could not be told apart
    queries = (twins[rows] + 0.1 * torch.randn(len(rows), 3, 16, 16)).clamp(0, 1)
    projected = BatchProjection(twins, salience, piece=piece)(queries)
    assert torch.equal(projected, torch.where(salience[rows], twins[rows], queries))


def test_other_rows_than_a_pieces_go_by_distance(images, salience):
    queries = images[[5, 0, 3]]
    projected = BatchProjection(images, salience, piece=4)(queries)
    assert torch.equal(projected, queries)


def test_a_map_for_every_image_is_not_looked_up_by_row(images):
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    mask[..., :8] = True
    projected = BatchProjection(images, mask)(images[[2, 4]] * 0.9)
    assert torch.equal(projected[..., :8], images[[2, 4]][..., :8])
    assert torch.equal(projected[..., 8:], images[[2, 4]][..., 8:] * 0.9)


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
