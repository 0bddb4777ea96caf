"""Edges as distributions: what the head makes of them; expected numbers are worked out by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.testing import assert_close

from model.config import BoxConfig, ClassificationConfig, ConfidenceConfig, ModelConfig, TrainConfig
from model.network.anchors import STRIDES, anchor_grid, decode
from model.network.checkpoint import save_checkpoint
from model.network.layers.edges import Edges, read_distributions
from model.network.retinanet import RetinaNetConf, build_detector, flat, for_inference, load_detector
from tests.detectors import images, small

BINS = 17
EDGES = small(box=BoxConfig(bins=BINS))
QUALITIES = {
    kind: replace(EDGES, classification=ClassificationConfig(edge_quality=kind)) for kind in ("gflv2", "dfine")
}


def detector(config: ModelConfig, spread: float = 0.3) -> RetinaNetConf:
    """Its distributions are anything but flat."""
    made = build_detector(config, num_classes=3, seed=0).eval()
    with torch.no_grad():
        made.head.edge_logits.weight.normal_(std=spread, generator=torch.Generator().manual_seed(1))
    return made


def test_the_mean_and_the_largest_probabilities_are_those_of_the_hand_calculation() -> None:
    logits = torch.tensor([[1.0, 2, 3, 4], [1, 1, 1, 1], [7, 1, 1, 1]]).log()
    mean, top = read_distributions(logits, 2)
    assert_close(mean, torch.tensor([0.2 + 2 * 0.3 + 3 * 0.4, 1.5, 0.6]))
    assert_close(top, torch.tensor([[0.4, 0.3], [0.25, 0.25], [0.7, 0.1]]))
    assert torch.equal(read_distributions(logits, 0)[0], mean)


@pytest.mark.parametrize("num_top", [0, 3, 6])
def test_gradients_of_means_and_largest_probabilities_are_finite_differences(num_top: int) -> None:
    logits = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    assert gradcheck(lambda given: read_distributions(given, num_top), [logits])
    assert gradcheck(lambda given: read_distributions(given, num_top)[0], [logits])
    assert num_top == 0 or gradcheck(lambda given: read_distributions(given, num_top)[1], [logits])


def test_means_of_bfloat16_logits_are_computed_in_float32() -> None:
    logits = torch.randn(50, 17, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        mean, top = read_distributions(logits, 4)
    expected, largest = read_distributions(logits.float(), 4)
    assert torch.equal(mean, expected) and torch.equal(top, largest)


@pytest.mark.parametrize("rule", ["paper", "torchvision"])
def test_the_boxes_reach_as_many_strides_from_the_anchors_centres_as_the_means_say(rule) -> None:
    predictions = detector(replace(EDGES, anchor_rule=rule))(images(2, 3, 64, 96))
    assert predictions.edge_logits is not None
    assert [tuple(level.shape) for level in predictions.edge_logits] == [
        (2, 9 * 4 * BINS, *level.shape[2:]) for level in predictions.box_deltas
    ]
    grid = anchor_grid((64, 96), rule=rule)
    boxes = decode(grid.boxes, flat(predictions.box_deltas, 4))
    probability = flat(predictions.edge_logits, 4 * BINS).unflatten(-1, (4, BINS)).softmax(dim=-1)
    pairs = zip(grid.level_lengths, STRIDES, strict=True)
    strides = torch.cat([torch.full((count,), stride) for count, stride in pairs])
    reach = (probability * torch.arange(BINS)).sum(dim=-1) * strides[:, None]
    assert reach.std() > 10
    centers = (grid.boxes[:, :2] + grid.boxes[:, 2:]) / 2
    assert_close(boxes, torch.cat([centers - reach[..., :2], centers + reach[..., 2:]], dim=-1), atol=1e-3, rtol=1e-4)


def test_boxes_of_a_bfloat16_network_are_computed_in_float32() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        predictions = detector(QUALITIES["gflv2"])(images(1, 3, 64, 64))
    assert predictions.edge_logits is not None
    assert predictions.edge_logits[0].dtype == predictions.class_logits[0].dtype == torch.bfloat16
    assert predictions.box_deltas[0].dtype == torch.float32
    assert predictions.float().edge_logits[0].dtype == torch.float32


def layers(edges: Edges | None) -> tuple[nn.Linear, nn.Linear]:
    """Those of the network that reads the quality."""
    assert edges is not None and edges.quality is not None
    first, _, last = edges.quality
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    return first, last


def joined(kind: str, classes: Tensor, quality: Tensor) -> Tensor:
    """[9, K] class logits [9, K] of a cell after its quality [9]."""
    edges = detector(QUALITIES[kind]).head.edges
    assert edges is not None
    return edges.join(classes.flatten()[None, :, None, None], quality[None, None, None]).view(9, -1)


def test_gflv2_multiplies_probabilities_and_dfine_adds_logits() -> None:
    classes = torch.tensor([[0.6, 0.1, 0.02]]).logit().repeat(9, 1)
    quality = torch.tensor([0.5, 0.9, 0.1, 0.99, 0.01, 0.5, 0.5, 0.5, 0.25])
    product = joined("gflv2", classes, quality.logit()).sigmoid()
    assert_close(product, torch.tensor([[0.6, 0.1, 0.02]]) * quality[:, None])
    odds = joined("dfine", classes, quality.logit()).exp()
    assert_close(odds, torch.tensor([[1.5, 1 / 9, 1 / 49]]) * (quality / (1 - quality))[:, None])


def test_the_product_of_extreme_probabilities_is_finite_and_never_above_either() -> None:
    ends = torch.tensor([-1000.0, -100, -20, -1, 0, 1, 20, 100, 1000])
    found = joined("gflv2", ends.repeat(9, 1), ends)
    assert found.isfinite().all()
    assert (found <= torch.minimum(ends, ends[:, None]) + 1e-3).all()
    assert_close(found[8, :8], ends[:8])  # a quality of 1 changes nothing
    assert_close(found[:8, 8], ends[:8])


@pytest.mark.parametrize("kind", QUALITIES)
def test_the_quality_reads_the_four_largest_probabilities_of_each_edge_and_their_mean(kind: str) -> None:
    made = detector(QUALITIES[kind])
    edges = made.head.edges
    assert edges is not None and edges.quality is not None
    for layer in layers(edges):
        nn.init.normal_(layer.weight)
    logits = torch.randn(9, 4, BINS, generator=torch.Generator().manual_seed(0))
    top = logits.softmax(dim=-1).sort(dim=-1, descending=True).values[..., :4]
    read = torch.cat([top, top.mean(dim=-1, keepdim=True)], dim=-1).flatten(1)  # edge by edge
    assert read.shape == (9, 20)
    assert_close(edges(logits.flatten(), 0)[1], edges.quality(read)[:, 0])


def test_dfines_quality_starts_with_the_class_scores_as_they_are_and_learns() -> None:
    plain, whole = detector(EDGES), build_detector(QUALITIES["dfine"], 3, seed=1).eval()
    left = whole.load_state_dict(plain.state_dict(), strict=False)
    assert set(left.missing_keys) == {f"head.edges.quality.{n}.{part}" for n in (0, 2) for part in ("weight", "bias")}
    given = images(1, 3, 64, 64)
    mine, theirs = whole(given), plain(given)
    assert all(torch.equal(*pair) for pair in zip(mine.class_logits, theirs.class_logits, strict=True))
    sum(level.square().sum() for level in mine.class_logits).backward()
    gradient = layers(whole.head.edges)[1].weight.grad
    assert gradient is not None and gradient.abs().max() > 0


@pytest.mark.parametrize("kind", QUALITIES)
def test_the_gradient_of_the_class_scores_reaches_the_edges(kind: str) -> None:
    made = detector(QUALITIES[kind])
    nn.init.ones_(layers(made.head.edges)[1].weight)
    sum(level.sum() for level in made(images(1, 3, 64, 64)).class_logits).backward()
    gradient = made.head.edge_logits.weight.grad
    assert gradient is not None and gradient.abs().max() > 0


@pytest.mark.parametrize("bins", [2, 3, 33])
@pytest.mark.parametrize("kind", QUALITIES)
def test_any_number_of_bins_will_do(kind: str, bins: int) -> None:
    predictions = detector(replace(QUALITIES[kind], box=BoxConfig(bins=bins)))(images(1, 3, 64, 64))
    for level in [*predictions.class_logits, *predictions.box_deltas]:
        assert level.isfinite().all()


@pytest.mark.parametrize("kind", QUALITIES)
def test_with_a_quality_all_boxes_are_computed(kind: str) -> None:
    made, given = detector(QUALITIES[kind]), images(2, 3, 64, 96)
    whole, asked = made(given), made(given, torch.tensor([5]))
    for name in ("class_logits", "box_deltas", "edge_logits"):
        assert all(torch.equal(*pair) for pair in zip(getattr(whole, name), getattr(asked, name), strict=True))


@pytest.mark.parametrize("config", [EDGES, *QUALITIES.values()], ids=["edges", *QUALITIES])
def test_a_copy_for_inference_and_a_checkpoint_predict_the_same_bits(config: ModelConfig, tmp_path: Path) -> None:
    made, given = detector(config), images(1, 3, 64, 96)
    save_checkpoint(
        tmp_path / "saved",
        weights=made.state_dict(),
        config=TrainConfig(model=config),
        epoch=1,
        step=1,
        categories=((1, 2, 3), ("a", "b", "c")),
        data_fingerprint="0" * 64,
        optimizer={},
    )
    with torch.inference_mode():
        expected = made(given)
        for other in (for_inference(made, torch.float32), load_detector(tmp_path / "saved")):
            found = other(given)
            for name in ("class_logits", "box_deltas", "confidence_logits", "edge_logits"):
                pairs = zip(getattr(found, name), getattr(expected, name), strict=True)
                assert all(torch.equal(*pair) for pair in pairs), name


def test_edges_start_flat_halfway_through_their_distances() -> None:
    made = build_detector(replace(EDGES, confidence=ConfidenceConfig(tower="box")), num_classes=3, seed=0)
    predictions = made(torch.zeros(1, 3, 64, 64))
    assert predictions.edge_logits is not None and predictions.confidence_logits is not None
    means, _ = read_distributions(flat(predictions.edge_logits, 4 * BINS).unflatten(-1, (4, BINS)), 0)
    assert_close(means, torch.full_like(means, (BINS - 1) / 2), atol=0.2, rtol=0)
    assert_close(predictions.class_logits[0].sigmoid().mean(), torch.tensor(0.01), atol=0.002, rtol=0)
