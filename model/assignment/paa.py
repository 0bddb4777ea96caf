"""PAA: two Gaussians on the costs of a box's candidates say which of them learn it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.assignment.costs import BLOCK, background_cost, order_key, softplus
from model.assignment.samples import INVALID, NEGATIVE, GroundTruth, Predicted
from model.network.anchors import AnchorGrid, valid_anchors
from model.network.overlaps import aligned_giou, pairwise_iou

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
"""Of the class cost; the paper's, whatever loss the detector learns with."""
ITERATIONS = 50
"""Of EM; a mixture that is done earlier stays as it is. Of 600 random sets of costs, half were done after 7, all after
40."""
TOLERANCE = 1e-3
"""EM is done when the mean log likelihood changes by less, as in the released code."""
LEAST_VARIANCE = 1e-6
"""Added to each variance, so that costs that are equal have a density; as in the released code."""
BITS = 31
"""Of the key of a cost or an IoU, and of a box's number."""


def paa(
    grid: AnchorGrid, padded_sizes: Tensor, truth: GroundTruth, predicted: Predicted, *, top_k: int, iou: float
) -> Tensor:
    """Assign each anchor a box or background by probabilistic anchor assignment (Kim and Lee 2020, Algorithm 1).

    An anchor belongs to the box that it overlaps most, from `iou` on; each box has its best anchors, however low. The
    candidates of a box are those of each level that cost least, where an anchor costs

        focal loss of its class logits + 1 - GIoU of predicted box and box        (Eqs. 2 and 3, lambda = 1).

    Two Gaussians are fitted to the costs of a box's candidates. The box is learnt by the candidates that cost no more
    than the most probable one of the cheaper Gaussian, scheme (c) of the paper's Figure 3, as in the released code;
    all other anchors are background. Candidates of equal cost are treated alike, and all learn where none is of the
    cheaper Gaussian.

    Boxes without area take no part: they fill up batches.

    Args:
        grid: N anchors.
        padded_sizes: [B, 2] each image's own padded (height, width); anchors outside are INVALID.
        truth: M boxes.
        predicted: of the same B images and N anchors, over K classes.
        top_k: candidates of a box on each level.
        iou: of an anchor with its box.

    Returns:
        [B, N] int64: index into `truth` (0 to M-1), or NEGATIVE, INVALID.
    """
    valid = valid_anchors(grid, padded_sizes)
    num_boxes = len(truth.boxes)
    if not num_boxes:
        return torch.full(valid.shape, NEGATIVE, device=valid.device).masked_fill_(~valid, INVALID)
    owner = _owners(grid, valid, truth, iou)
    cost = _costs(predicted, truth, owner)
    places = _candidates(cost, owner, grid, num_boxes, top_k)
    costs, usable = cost.flatten()[places.clamp(min=0)], places >= 0
    learns = usable & (costs <= _highest_cost(costs, usable)[:, None])
    # One place more, for what does not learn.
    assigned = owner.new_full((owner.numel() + 1,), NEGATIVE)
    box = torch.arange(num_boxes, device=owner.device)[:, None].expand_as(places)
    assigned.scatter_(0, torch.where(learns, places, owner.numel()).flatten(), box.flatten())
    return assigned[:-1].view(owner.shape).masked_fill_(~valid, INVALID)


@dataclass(frozen=True, slots=True)
class Mixture:
    """Two Gaussians for each of M boxes; the first one began at the lowest cost."""

    weights: Tensor
    """[M, 2] adding up to 1."""
    means: Tensor
    """[M, 2]."""
    variances: Tensor
    """[M, 2] at least LEAST_VARIANCE."""

    def where(self, chosen: Tensor, other: "Mixture") -> "Mixture":
        """The mixtures of the chosen [M] boxes, for the rest those of another."""
        pairs = ((self.weights, other.weights), (self.means, other.means), (self.variances, other.variances))
        return Mixture(*(torch.where(chosen[:, None], mine, its) for mine, its in pairs))

    def log_densities(self, values: Tensor) -> Tensor:
        """[M, S, 2] the logarithm of weight times density of each Gaussian at values [M, S]."""
        apart = (values[..., None] - self.means[:, None]).square() / self.variances[:, None]
        return (self.weights.log() - 0.5 * (2 * torch.pi * self.variances).log())[:, None] - 0.5 * apart


def fit_mixture(values: Tensor, usable: Tensor) -> Mixture:
    """Fit two Gaussians to each row by EM, from its lowest and highest value, variances of 1 and equal weights.

    Args:
        values: [M, S].
        usable: [M, S] which of them count.

    Returns:
        The mixtures, float64; what a row without values gives means nothing.
    """
    # float64: what a row holds besides must not change what is fitted to it by rounding.
    values = values.double().masked_fill(~usable, 0.0)
    count = usable.sum(dim=1).clamp(min=1)
    lowest = values.masked_fill(~usable, torch.inf).amin(dim=1)
    highest = values.masked_fill(~usable, -torch.inf).amax(dim=1)
    means = torch.stack([lowest, highest], dim=1).masked_fill(~usable.any(dim=1, keepdim=True), 0.0)
    mixture = Mixture(torch.full_like(means, 0.5), means, torch.ones_like(means))
    likelihood = values.new_full((len(values),), -torch.inf)
    goes_on = torch.ones_like(likelihood, dtype=torch.bool)
    for _ in range(ITERATIONS):
        joint = mixture.log_densities(values)
        total = torch.logaddexp(joint[..., 0], joint[..., 1])
        share = (joint - total[..., None]).exp() * usable[..., None]
        mixture = _fit_to_shares(values, share).where(goes_on, mixture)
        before, likelihood = likelihood, (total * usable).sum(dim=1) / count
        # Not a stop, for which the host would have to wait.
        goes_on = goes_on & ((likelihood - before).abs() >= TOLERANCE)
    return mixture


def _fit_to_shares(values: Tensor, share: Tensor) -> Mixture:
    """EM's M-step: the Gaussians of values [M, S] that have this share [M, S, 2] of each."""
    mass = share.sum(dim=1) + 10 * torch.finfo(share.dtype).eps  # above 0 where a Gaussian lost all its values
    means = (share * values[..., None]).sum(dim=1) / mass
    apart = (values[..., None] - means[:, None]).square()
    return Mixture(mass / mass.sum(dim=1, keepdim=True), means, (share * apart).sum(dim=1) / mass + LEAST_VARIANCE)


def _owners(grid: AnchorGrid, valid: Tensor, truth: GroundTruth, least_iou: float) -> Tensor:
    """[B, N] the box that each valid anchor belongs to, or NEGATIVE: max-IoU assignment from `least_iou` on.

    The first box wins on ties of IoU; the later one an anchor that is the best of both.
    """
    has_area = (truth.boxes[:, 2:] > truth.boxes[:, :2]).all(dim=1, keepdim=True)
    nearest, claims = (torch.full(valid.shape, -1, device=valid.device) for _ in range(2))
    # So many boxes at a time that memory does not grow with their number.
    for rows in torch.split(torch.arange(len(truth.boxes), device=valid.device), max(1, BLOCK // len(grid.boxes))):
        image = truth.image_index[rows]
        iou = pairwise_iou(truth.boxes[rows], grid.boxes).masked_fill_(~(valid[image] & has_area[rows]), -1.0)
        earlier = 2**BITS - 1 - rows[:, None]
        key = order_key(iou).bitwise_left_shift_(BITS).add_(earlier).masked_fill_(iou < 0, -1)
        nearest.index_reduce_(0, image, key, "amax")
        is_best = (iou > 0) & (iou == iou.amax(dim=1, keepdim=True))
        claims.index_reduce_(0, image, torch.where(is_best, rows[:, None], -1), "amax")
    reaches = (nearest >> BITS).int().view(torch.float32) >= least_iou  # NaN, which reaches nothing, where no box is
    owner = torch.where(reaches, 2**BITS - 1 - (nearest & (2**BITS - 1)), NEGATIVE)
    return torch.where(claims >= 0, claims, owner)


def _costs(predicted: Predicted, truth: GroundTruth, owner: Tensor) -> Tensor:
    """[B, N] what each anchor costs the box that it belongs to; means nothing where it belongs to none."""
    box = owner.clamp(min=0)
    own = predicted.class_logits.gather(2, truth.labels[box][..., None])[..., 0]
    background = background_cost(predicted.class_logits, _modulated_entropy).sub_(_modulated_entropy(own))
    classes = (1 - FOCAL_ALPHA) * background + FOCAL_ALPHA * _modulated_entropy(-own)
    return classes + (1 - aligned_giou(predicted.boxes, truth.boxes[box]))


def _modulated_entropy(x: Tensor) -> Tensor:
    """p^gamma * -ln(1 - p) of logits."""
    entropy = softplus(x)
    return (x - entropy).mul_(FOCAL_GAMMA).exp_().mul_(entropy)


def _candidates(cost: Tensor, owner: Tensor, grid: AnchorGrid, num_boxes: int, top_k: int) -> Tensor:
    """[M, L * top_k] places in [B*N] of the cheapest anchors of each box and level, the lower on ties; -1 for none."""
    num_levels = len(grid.level_lengths)
    level = torch.cat(
        [torch.full((length,), place, device=cost.device) for place, length in enumerate(grid.level_lengths)]
    )
    group = torch.where(owner >= 0, owner * num_levels + level, num_boxes * num_levels)
    keys, places = (group * 2**BITS + order_key(cost)).flatten().sort(stable=True)
    starts = torch.searchsorted(keys, torch.arange(num_boxes * num_levels + 1, device=cost.device) * 2**BITS)
    cheapest = starts[:-1, None] + torch.arange(top_k, device=cost.device)
    found = places[cheapest.clamp(max=len(places) - 1)]
    return torch.where(cheapest < starts[1:, None], found, -1).view(num_boxes, -1)


def _highest_cost(costs: Tensor, usable: Tensor) -> Tensor:
    """[M] the cost up to which candidates learn their box.

    Args:
        costs: [M, S].
        usable: [M, S] which of them are candidates.
    """
    joint = fit_mixture(costs, usable).log_densities(costs.double())
    cheaper = usable & (joint[..., 0] >= joint[..., 1])
    density = torch.logaddexp(joint[..., 0], joint[..., 1]).masked_fill(~cheaper, -torch.inf)
    most_probable = cheaper & (density == density.amax(dim=1, keepdim=True))
    # Infinite where no candidate is of the cheaper Gaussian.
    return costs.masked_fill(~most_probable, torch.inf).amin(dim=1)
