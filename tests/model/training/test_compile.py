"""What torch.compile makes of the accelerator's path: whole graphs, and no more of them than batches have shapes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from model.assignment.max_iou import max_iou
from model.assignment.samples import Assignment, loss_normalizer
from model.training.losses import detector_losses
from tests.detectors import small
from tests.fake_cuda import CUDA, detector_on_cuda, imagined_cuda
from tests.model.training.test_step_cuda import HEADS, SETTINGS, SHAPE, said, truth_of

SHAPES_OF_COCO = [
    *((608, side) for side in (608, 800, 832, 896, 928, 1024)),
    *((side, 608) for side in (800, 832, 928, 1024)),
]
"""Ten padded shapes, as most batches of COCO have at 600 x 1000."""


def compiled(function: Callable[..., Any]) -> tuple[Callable[..., Any], CompileCounter]:
    """The function as one graph, or an error that names the line where the graph breaks, and a count of graphs."""
    torch._dynamo.reset()
    counter = CompileCounter()
    return torch.compile(function, backend=counter, fullgraph=True, dynamic=False), counter


@pytest.mark.parametrize("kind", ["plain", "weighted", "edges", "gflv2", "dfine"])
def test_the_network_is_one_graph(kind: str) -> None:
    with imagined_cuda(compiling=True):
        network, counter = compiled(detector_on_cuda(small(**SETTINGS[kind])))
        network(torch.zeros(2, 3, *SHAPE, device=CUDA), None)
    assert counter.frame_count == 1


@pytest.mark.parametrize("kind", SETTINGS)
def test_matching_and_losses_are_one_graph(kind: str) -> None:
    config = small(**SETTINGS[kind])

    def losses(given, grid, predictions) -> Tensor:
        truth = truth_of(given)
        assigned = max_iou(grid, given.sizes, truth, positive_iou=0.5, negative_iou=0.4)
        return detector_losses(predictions, grid, Assignment(assigned), truth, loss_normalizer(assigned), config).total

    with imagined_cuda(compiling=True):
        whole, counter = compiled(losses)
        assert whole(*said(config)).device == CUDA
    assert counter.frame_count == 1


@pytest.mark.slow
def test_there_are_as_many_graphs_as_shapes_however_many_boxes_a_batch_has() -> None:
    """Tensors of the device `meta`, as the imagined GPU's have fixed sizes for the compiler."""
    config = small(confidence=HEADS["weighted"])

    def losses(given, grid, predictions) -> Tensor:
        truth = truth_of(given)
        assigned = max_iou(grid, given.sizes, truth, positive_iou=0.5, negative_iou=0.4)
        return detector_losses(predictions, grid, Assignment(assigned), truth, loss_normalizer(assigned), config).total

    whole, counter = compiled(losses)
    with torch._dynamo.config.patch(recompile_limit=len(SHAPES_OF_COCO)):
        for shape in SHAPES_OF_COCO:
            for num_boxes in (5, 117, 2):
                given, grid, predictions = said(config, "meta", shape, num_boxes)
                for listed in (given.boxes, given.labels, given.image_index):
                    torch._dynamo.mark_dynamic(listed, 0)
                whole(given, grid, predictions)
    assert counter.frame_count == len(SHAPES_OF_COCO)


def test_a_break_in_a_graph_is_an_error() -> None:
    def breaks(given: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return 2 * given

    with imagined_cuda(compiling=True):
        function, _ = compiled(breaks)
        with pytest.raises(torch._dynamo.exc.Unsupported):
            function(torch.zeros(3, device=CUDA))
