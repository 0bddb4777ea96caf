"""The box tower at some cells against whole maps, which are the reference."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from model.assignment.max_iou import max_iou
from model.assignment.samples import Assignment, GroundTruth, loss_normalizer, positive_cells
from model.config import BoxConfig, ConfidenceConfig, ModelConfig
from model.network.anchors import anchor_grid
from model.network.layers.convolution import dense_maps, sparse_rows
from model.network.retinanet import Head, build_detector, flat
from model.training.losses import detector_losses

SIZES = [(12, 20), (6, 10), (3, 5), (2, 3), (1, 2)]
NUM_CELLS = 2 * sum(height * width for height, width in SIZES)


def maps(channels: int = 16, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, channels, *size, generator=generator, dtype=torch.float64) for size in SIZES]


def head(**settings: object) -> Head:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Head(ModelConfig(channels=16, tower_depth=2, **settings), num_classes=3)  # type: ignore[arg-type]
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.2)
    return module.double()


def rows_of(levels: list[Tensor]) -> Tensor:
    return torch.cat([level.permute(0, 2, 3, 1).flatten(0, 2) for level in levels])


@pytest.mark.parametrize("bins", [None, 5])
@pytest.mark.parametrize("tower", ["classification", "box"])
@pytest.mark.parametrize(
    "cells",
    [[0], [NUM_CELLS - 1], [19, 20, 239, 240, 480], [250, 480, 540, 599, 600, 629, 630, 643], []],
    ids=["first", "last", "borders", "levels", "none"],
)
def test_outputs_and_gradients_at_the_cells_are_those_of_whole_maps(
    tower: str, cells: list[int], bins: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.network.layers.convolution.MOST", 1.0)
    module = head(confidence=ConfidenceConfig(tower=tower), box=BoxConfig(bins=bins))  # type: ignore[arg-type]
    chosen = torch.tensor(cells, dtype=torch.int64)
    results = []
    for asked in (None, chosen):
        features = [level.requires_grad_() for level in maps()]
        predictions = module(features, asked)
        assert predictions.confidence_logits is not None
        deltas, confidence = rows_of(predictions.box_deltas), rows_of(predictions.confidence_logits)
        assert (predictions.edge_logits is None) == (bins is None)
        edges = rows_of(predictions.edge_logits or predictions.box_deltas)
        if asked is not None:
            elsewhere = torch.ones(NUM_CELLS, dtype=torch.bool).index_fill(0, chosen, False)
            assert not deltas[elsewhere].any() and not edges[elsewhere].any()
        (deltas[chosen].square().sum() + confidence[chosen].sin().sum() + edges[chosen].cos().sum()).backward()
        gradients = [parameter.grad for parameter in module.parameters()]
        outputs = [deltas[chosen], confidence[chosen], edges[chosen]]
        results.append([*outputs, *gradients, *(level.grad for level in features)])
        module.zero_grad()
    for dense, sparse in zip(*results, strict=True):
        if dense is not None and sparse is not None:
            assert_close(sparse, dense)
        else:
            assert not cells or (dense is None and sparse is None)


def test_regions_that_grow_too_large_are_left_to_whole_maps() -> None:
    module = head()
    layers = [layer for layer in module.box_tower if isinstance(layer, nn.Conv2d)]
    few, many = torch.tensor([250]), torch.arange(0, NUM_CELLS, 7)
    assert sparse_rows(layers, [module.box_deltas], maps(), few) is not None
    assert sparse_rows(layers, [module.box_deltas], maps(), many) is None
    predictions = module(maps(), many)
    assert rows_of(predictions.box_deltas).any(dim=1).all()


@pytest.mark.parametrize(
    "settings", [{"tower_norm": "group"}, {"confidence": ConfidenceConfig(tower="box", negative_weight=1e-3)}]
)
def test_whole_maps_are_computed_where_all_of_them_matters(settings: dict[str, object]) -> None:
    whole, asked = (head(**settings)(maps(), cells) for cells in (None, torch.tensor([250])))
    for one, other in zip(whole.box_deltas, asked.box_deltas, strict=True):
        assert torch.equal(one, other)


def test_maps_hold_their_rows_at_the_cells() -> None:
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    levels = dense_maps(rows, torch.tensor([21, 481]), [level.float() for level in maps()])
    assert [tuple(level.shape) for level in levels] == [(2, 2, *size) for size in SIZES]
    assert levels[0][0, :, 1, 1].tolist() == [1, 2]
    assert levels[1][0, :, 0, 1].tolist() == [3, 4]
    assert sum(level.abs().sum() for level in levels) == 10


@pytest.mark.parametrize("box", [BoxConfig(), BoxConfig(loss="giou", bins=9)], ids=["deltas", "edges"])
def test_a_detector_has_the_same_losses_and_gradients_either_way(box: BoxConfig) -> None:
    config = ModelConfig(backbone="resnet18_quarter", channels=16, tower_depth=4, box=box)
    detector = build_detector(config, num_classes=3, seed=0).double()
    grid = anchor_grid((128, 160))
    truth = GroundTruth(
        torch.tensor([[10.0, 20, 50, 70], [80, 10, 110, 40]]), torch.tensor([0, 2]), torch.tensor([0, 1])
    )
    assigned = max_iou(grid, torch.tensor([[128, 160], [128, 128]]), truth, positive_iou=0.5, negative_iou=0.4)
    cells = positive_cells(assigned, grid)
    assert cells is not None and 2 < len(cells) < 100
    images = torch.randn(2, 3, 128, 160, generator=torch.Generator().manual_seed(0)).double()
    results = []
    for asked in (None, cells):
        predictions = detector(images, asked)
        losses = detector_losses(predictions, grid, Assignment(assigned), truth, loss_normalizer(assigned), config)
        losses.total.backward()
        results.append([losses.box, losses.confidence, *(p.grad for p in detector.parameters() if p.requires_grad)])
        detector.zero_grad()
    for dense, sparse in zip(*results, strict=True):
        assert_close(sparse, dense)
    used = (assigned >= 0)[..., None] * flat(predictions.box_deltas, 4)
    assert used.any(dim=2).sum() == (assigned >= 0).sum()
