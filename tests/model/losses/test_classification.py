"""The losses of the class logits; expected numbers are of a hand, autograd on one-hot maps, or code of others."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close
from torchvision.ops import sigmoid_focal_loss

from model.assignment.samples import IGNORED, INVALID, NEGATIVE
from model.config import ClassificationConfig, ModelConfig
from model.losses import classification
from model.losses.classification import classification_loss, focal_loss
from tests.fake_cuda import CUDA, imagined_cuda, watched

KINDS = {
    "focal": ClassificationConfig(),
    "qfl": ClassificationConfig(loss="qfl"),
    "qfl_beta1": ClassificationConfig(loss="qfl", gamma=1.0),
    "qfl_beta0": ClassificationConfig(loss="qfl", gamma=0.0),
    "vfl": ClassificationConfig(loss="vfl"),
    "vfl_unweighted": ClassificationConfig(loss="vfl", vfl_iou_weighted=False, vfl_alpha=0.5, gamma=1.5),
    "ia_bce": ClassificationConfig(loss="ia_bce"),
    "ia_bce_of_iou": ClassificationConfig(loss="ia_bce", ia_bce_alpha=0.0),
    "ia_bce_of_class": ClassificationConfig(loss="ia_bce", ia_bce_alpha=1.0, gamma=1.0),
    "mal": ClassificationConfig(loss="mal"),
    "mal_gamma2": ClassificationConfig(loss="mal", gamma=2.0),
}
EXTREMES = (-100.0, -88.5, -17.0, -1.0, 0.0, 1.0, 17.0, 88.5, 100.0)  # exact in bfloat16


def gamma_of(settings: ClassificationConfig) -> float:
    """By the papers: focal, QFL, VFL and RF-DETR's code 2, DEIM 1.5."""
    return settings.gamma if settings.gamma is not None else {"mal": 1.5}.get(settings.loss, 2.0)


def by_hand(settings: ClassificationConfig, x: float, u: float | None) -> float:
    """The loss of one logit, of the own class of a positive of quality u, or (None) of any other; cannot overflow."""
    ln_p, ln_rest = (-max(0.0, -s * x) - math.log1p(math.exp(-abs(x))) for s in (1, -1))
    p, gamma = math.exp(ln_p), gamma_of(settings)

    def cross_entropy(t: float) -> float:
        return -t * ln_p - (1 - t) * ln_rest

    background = p**gamma * -ln_rest
    if settings.loss == "focal":
        return 0.75 * background if u is None else 0.25 * math.exp(ln_rest) ** gamma * -ln_p
    if settings.loss == "vfl" and (u is None or u == 0):
        return settings.vfl_alpha * background
    if u is None:
        return background
    if settings.loss == "qfl":
        return float(abs(p - u) ** gamma * cross_entropy(u))
    if settings.loss == "vfl":
        return (u if settings.vfl_iou_weighted else 1.0) * cross_entropy(u)
    if settings.loss == "ia_bce":
        return cross_entropy(max(0.01, p**settings.ia_bce_alpha * u ** (1 - settings.ia_bce_alpha)))
    return cross_entropy(u**gamma)


def one_hot_loss(logits: Tensor, labels: Tensor, quality: Tensor, settings: ClassificationConfig) -> Tensor:
    """[R, K] the same for autograd, by maps of targets; weights without gradient where the source has them so."""
    own = functional.one_hot(labels.clamp(min=0), logits.shape[1]).bool() & (labels >= 0)[:, None]
    u = torch.where(own, quality[:, None], 0.0)
    p, gamma = logits.sigmoid(), gamma_of(settings)
    weight = p**gamma
    if settings.loss == "focal":
        target = own.to(logits.dtype)
        weight = torch.where(own, 0.25 * (1 - p) ** gamma, 0.75 * weight)
    elif settings.loss == "qfl":
        target, weight = u, (u - p).abs() ** gamma
    elif settings.loss == "vfl":
        target = u
        weight = torch.where(u > 0, u if settings.vfl_iou_weighted else 1.0, settings.vfl_alpha * weight)
    elif settings.loss == "ia_bce":
        blend = (p**settings.ia_bce_alpha * u ** (1 - settings.ia_bce_alpha)).clamp(min=0.01).detach()
        target, weight = torch.where(own, blend, 0.0), torch.where(own, 1.0, weight)
    else:
        target, weight = torch.where(own, u**gamma, 0.0), torch.where(own, 1.0, weight.detach())
    loss = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return weight * loss * (labels >= NEGATIVE)[:, None]


def rows(num: int, classes: int, seed: int = 0, precision: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Logits, labels of every sort, and qualities, some of them 0 and 1; NaN where nothing may read them."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num, classes, generator=generator, dtype=precision) - 0.5
    labels = torch.randint(INVALID, classes, (num,), generator=generator)
    quality = torch.rand(num, generator=generator, dtype=precision)
    quality[torch.randint(num, (num // 8,), generator=generator)] = 0.0
    quality[torch.randint(num, (num // 8,), generator=generator)] = 1.0
    return logits, labels, quality.where(labels >= 0, torch.nan)


def found(logits: Tensor, labels: Tensor, quality: Tensor | None, **settings: Any) -> tuple[Tensor, Tensor]:
    """The loss and its gradient."""
    given = logits.detach().clone().requires_grad_()
    loss = classification_loss(given, labels, quality, ModelConfig(**settings))
    (gradient,) = torch.autograd.grad(loss, given)
    return loss.detach(), gradient


# p is 0.75 in the own class and 0.5 in the other; the box has the quality 0.5. -ln p and -ln (1-p) of 0.75:
LN_P, LN_REST, LN_2, LN_3 = math.log(4 / 3), math.log(4), math.log(2), math.log(3)
BLEND = 0.75**0.25 * 0.5**0.75


@pytest.mark.parametrize(
    ("kind", "own", "other", "slopes"),
    [
        ("focal", 0.25 * 0.25**2 * LN_P, 0.75 * 0.5**2 * LN_2, None),
        ("qfl", 0.25**2 * (LN_REST - LN_3 / 2), 0.5**2 * LN_2, None),
        ("qfl_beta1", 0.25 * (LN_REST - LN_3 / 2), 0.5 * LN_2, None),
        ("qfl_beta0", LN_REST - LN_3 / 2, LN_2, (0.25, 0.5)),
        ("vfl", 0.5 * (LN_REST - LN_3 / 2), 0.75 * 0.5**2 * LN_2, (0.125, 0.75 * 0.25 * (LN_2 + 0.5))),
        ("vfl_unweighted", LN_REST - LN_3 / 2, 0.5 * 0.5**1.5 * LN_2, None),
        ("ia_bce", LN_REST - BLEND * LN_3, 0.5**2 * LN_2, (0.75 - BLEND, 0.25 * (LN_2 + 0.5))),
        ("ia_bce_of_iou", LN_REST - LN_3 / 2, 0.5**2 * LN_2, (0.25, 0.25 * (LN_2 + 0.5))),
        ("ia_bce_of_class", LN_REST - 0.75 * LN_3, 0.5 * LN_2, (0.0, 0.5 * (0.5 * LN_2 + 0.5))),
        # No gradient comes through the weight of the other class: p^1.5 * p.
        ("mal", LN_REST - 0.5**1.5 * LN_3, 0.5**1.5 * LN_2, (0.75 - 0.5**1.5, 0.5**2.5)),
        ("mal_gamma2", LN_REST - 0.25 * LN_3, 0.5**2 * LN_2, (0.5, 0.5**3)),
    ],
)
def test_each_loss_of_a_positive_matches_the_hand_calculation(
    kind: str, own: float, other: float, slopes: tuple[float, float] | None
) -> None:
    logits, labels, quality = torch.tensor([[0.0, LN_3]]), torch.tensor([1]), torch.tensor([0.5])
    loss, gradient = found(logits, labels, quality, classification=KINDS[kind])
    assert_close(loss, torch.tensor(own + other))
    if slopes is not None:
        assert_close(gradient, torch.tensor([slopes[::-1]]))


PUBLISHED = {
    "ia_bce": (
        9.806146150534243,
        [
            [0.01703111, 0.40624341, -0.01436329],
            [0.21827565, 0.00031487, 0.08710966],
            [0.87382286, 0.97201379, 0.00127558],
            [0.13793700, 0.20805638, 1.10959211],
        ],
    ),
    "mal": (
        10.42607857019671,
        [
            [0.01421392, 0.23696364, 0.02698211],
            [0.41539654, 0.00048982, 0.05829858],
            [0.53268624, 0.98201379, 0.00158492],
            [0.08758089, 0.12683750, 0.92832254],
        ],
    ),
    "mal_gamma2": (
        10.157308738037214,
        [
            [0.00607095, 0.17767162, 0.07079708],
            [0.49995933, 0.00010667, 0.03302095],
            [0.46964075, 0.98201379, 0.00043652],
            [0.05381350, 0.08392613, 0.91461574],
        ],
    ),
}
"""The loss and its gradient for boxes of these qualities, as the code of RF-DETR (loss_labels of 35ac6ab) and of DEIM
(loss_labels_mal of a9aa4ad) gave them in float64; both repositories are Apache-2.0."""


@pytest.mark.parametrize("kind", PUBLISHED)
def test_ia_bce_and_mal_are_those_of_rf_detrs_and_deims_own_code(kind: str) -> None:
    logits = torch.tensor([[-1.5, 0.25, 2.0], [0.5, -3.0, -0.75], [1.25, 4.0, -2.5], [-0.5, -0.25, 3.5]])
    labels, quality = torch.tensor([2, 0, 1, NEGATIVE]), torch.tensor([0.9, 0.35, 0.0, torch.nan], dtype=torch.float64)
    loss, gradient = found(logits.double(), labels, quality, classification=KINDS[kind])
    expected, slopes = PUBLISHED[kind]
    assert_close(loss.item(), expected, rtol=1e-12, atol=0)
    assert_close(gradient, torch.tensor(slopes, dtype=torch.float64), rtol=0, atol=6e-9)


def test_a_quality_below_the_least_target_is_that_target_in_ia_bce_and_background_in_vfl() -> None:
    logits, labels, quality = torch.tensor([[LN_3]]), torch.tensor([0]), torch.tensor([0.0])
    loss, gradient = found(logits, labels, quality, classification=KINDS["ia_bce"])
    assert_close(loss, torch.tensor(LN_REST - 0.01 * LN_3))
    assert_close(gradient, torch.tensor([[0.74]]))
    loss, gradient = found(logits, labels, quality, classification=KINDS["vfl"])
    assert_close(loss, torch.tensor(0.75 * 0.75**2 * LN_REST))
    assert_close(gradient, torch.tensor([[0.75 * 0.75**2 * (0.5 * LN_REST + 0.75)]]))


@pytest.mark.parametrize("classes", [1, 2, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_each_loss_and_its_gradient_are_those_of_autograd_on_one_hot_maps(kind: str, classes: int) -> None:
    logits, labels, quality = rows(200, classes)
    assert {INVALID, IGNORED, NEGATIVE, 0} <= set(labels.tolist())
    assert {0.0, 1.0} <= set(quality.tolist())
    value, gradient = found(logits, labels, quality, classification=KINDS[kind])
    given = logits.clone().requires_grad_()
    expected = one_hot_loss(given, labels, quality.nan_to_num(), KINDS[kind]).sum()
    assert_close(value, expected.detach(), rtol=1e-12, atol=0)
    assert_close(gradient, torch.autograd.grad(expected, given)[0], rtol=1e-10, atol=1e-12)


class _Again(torch.autograd.Function):
    """A loss whose backward pass runs any number of times, as gradcheck wants it."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, quality: Tensor, settings: ClassificationConfig) -> Tensor:
        with torch.enable_grad():
            loss, gradient = found(logits, labels, quality, classification=settings)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.saved_tensors[0] * grads[0], None, None, None


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_small_differences_where_no_weight_or_target_is_held_fixed(kind: str) -> None:
    logits, labels, quality = rows(24, 3)
    if kind.startswith("mal"):  # the weights of its background carry no gradient; positives of a single class have none
        logits, labels, quality = (
            logits[:, :1].contiguous(),
            torch.zeros(24, dtype=torch.int64),
            torch.rand(24).double(),
        )
    if kind in ("ia_bce", "ia_bce_of_class"):  # the target of a positive carries no gradient, so there are none
        labels = labels.clamp(max=NEGATIVE)
    assert torch.autograd.gradcheck(
        lambda given: _Again.apply(given, labels, quality, KINDS[kind]), logits.requires_grad_()
    )


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.4, 1.5), (0.5, 0.0)])
def test_the_focal_loss_and_its_gradient_match_torchvision(alpha: float, gamma: float) -> None:
    logits, labels, _ = rows(200, 5, precision=torch.float32)
    loss, gradient = found(logits, labels, None, focal_alpha=alpha, focal_gamma=gamma)
    given = logits.clone().requires_grad_()
    targets = functional.one_hot(labels.clamp(min=0), 5) * (labels >= 0)[:, None]
    theirs = sigmoid_focal_loss(given, targets.float(), alpha=alpha, gamma=gamma)[labels >= NEGATIVE].sum()
    assert_close(loss, theirs.detach(), rtol=1e-5, atol=0)
    assert_close(gradient, torch.autograd.grad(theirs, given)[0], rtol=1e-4, atol=1e-6)
    same = logits.clone().requires_grad_()
    assert torch.equal(focal_loss(same, labels, alpha=alpha, gamma=gamma), loss)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_losses_of_extreme_logits_match_a_calculation_that_cannot_overflow(kind: str, precision: torch.dtype) -> None:
    settings, cases = KINDS[kind], [(x, u) for x in EXTREMES for u in (None, 0.0, 0.5, 1.0)]
    for x, u in cases:
        labels = torch.tensor([NEGATIVE if u is None else 0])
        quality = torch.tensor([math.nan if u is None else u])
        loss, gradient = found(torch.tensor([[x]], dtype=precision), labels, quality, classification=settings)
        assert (loss.dtype, gradient.dtype) == (torch.float32, precision)
        # The target of IA-BCE is made of p, which float32 rounds where it is near 1.
        rounding = abs(x) * 2**-24 if settings.loss == "ia_bce" and u is not None else 1e-30
        assert loss.item() == pytest.approx(by_hand(settings, x, u), rel=2e-5, abs=rounding), (x, u)
        assert gradient.isfinite().all(), (x, u)
    logits = torch.tensor([[x for x, _ in cases]], dtype=precision).T
    labels = torch.tensor([NEGATIVE if u is None else 0 for _, u in cases])
    quality = torch.tensor([math.nan if u is None else u for _, u in cases], dtype=precision)
    loss, gradient = found(logits, labels, quality, classification=settings)
    assert loss.item() == pytest.approx(sum(by_hand(settings, x, u) for x, u in cases), rel=1e-5)
    exact, expected = found(logits.double(), labels, quality.double(), classification=settings)
    assert_close(loss.double(), exact, rtol=1e-5, atol=0)
    assert_close(gradient.double(), expected, rtol=2**-8 if precision == torch.bfloat16 else 1e-5, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_the_focal_loss_of_extreme_logits_matches_a_calculation_that_cannot_overflow(gamma: float) -> None:
    _, labels, _ = rows(200, 3)
    extremes = torch.tensor((-1000.0, -100.0, -20.0, 0.0, 20.0, 100.0, 1000.0))
    logits = extremes[torch.randint(len(extremes), (200, 3), generator=torch.Generator().manual_seed(5))]
    loss, gradient = found(logits, labels, None, focal_gamma=gamma)
    expected = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        for place, logit in enumerate(row):
            log_p, log_rest = (-max(0.0, x) - math.log1p(math.exp(-abs(x))) for x in (-logit, logit))
            if place == label:
                expected -= 0.25 * math.exp(log_rest) ** gamma * log_p
            elif label >= NEGATIVE:
                expected -= 0.75 * math.exp(log_p) ** gamma * log_rest
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_without_positives_only_the_background_counts_and_ignored_anchors_do_not(kind: str) -> None:
    settings = KINDS[kind]
    logits, labels, quality = rows(50, 4)
    labels = labels.clamp(max=NEGATIVE)
    loss, gradient = found(logits, labels, torch.full_like(quality, math.nan), classification=settings)
    counted = logits[labels == NEGATIVE]
    assert 0 < len(counted) < 50
    assert loss.item() == pytest.approx(sum(by_hand(settings, x, None) for x in counted.flatten().tolist()))
    assert (gradient[labels == NEGATIVE] > 0).all() and (gradient[labels < NEGATIVE] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_of_no_anchor_the_loss_is_0(kind: str) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    loss, gradient = found(torch.zeros(0, 3), none, torch.zeros(0), classification=KINDS[kind])
    assert (loss.item(), gradient.shape) == (0.0, (0, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_how_many_rows_are_taken_at_once_changes_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = rows(101, 5)
    whole = found(*given, classification=KINDS[kind])
    monkeypatch.setattr(classification, "BLOCK", 49)  # 9 rows, of the last block 2
    parts = found(*given, classification=KINDS[kind])
    assert_close(parts[0], whole[0], rtol=1e-14, atol=0)
    assert_close(parts[1], whole[1], rtol=1e-13, atol=1e-15)  # of a few numbers, the vector unit leaves some to scalars


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "focal"])
def test_the_quality_carries_no_gradient(kind: str) -> None:
    logits, labels, quality = rows(20, 3)
    quality.requires_grad_()
    loss = classification_loss(logits.requires_grad_(), labels, quality, ModelConfig(classification=KINDS[kind]))
    loss.backward()
    assert quality.grad is None and logits.grad is not None


def test_a_loss_of_the_quality_is_refused_without_one() -> None:
    logits, labels, _ = rows(4, 3)
    with pytest.raises(ValueError, match=r"^classification\.loss is 'mal', whose target needs the quality of each pos"):
        classification_loss(logits, labels, None, ModelConfig(classification=KINDS["mal"]))


def test_a_gamma_of_qfl_whose_gradient_is_infinite_at_its_target_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^gamma is 0\.5 for loss 'qfl', expected 0 or at least 1; in between"):
        ClassificationConfig(loss="qfl", gamma=0.5)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_neither_the_loss_nor_its_gradient_waits_for_anything(kind: str, precision: torch.dtype) -> None:
    with imagined_cuda():
        logits = torch.zeros(12, 3, device=CUDA, dtype=precision, requires_grad=True)
        labels = torch.zeros(12, dtype=torch.int64, device=CUDA)
        quality = torch.zeros(12, device=CUDA)
        with watched():
            loss = classification_loss(logits, labels, quality, ModelConfig(classification=KINDS[kind]))
            loss.backward()
        assert (loss.shape, loss.dtype, loss.device) == ((), torch.float32, CUDA)
        assert logits.grad is not None
        assert (logits.grad.shape, logits.grad.dtype, logits.grad.device) == ((12, 3), precision, CUDA)
