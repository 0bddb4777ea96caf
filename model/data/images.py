"""Image files to batches: decoding, resizing, mirroring, padding, and the normalisation before the network."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from model.data.files.decoding import decode, rgb
from model.data.split import CocoData

# ImageNet's, of RGB from 0 to 255: pretrained backbones were trained with them.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
# Multiples of 128 would make 3 shapes of batches instead of 10 (COCO, 600 x 1000), but 23 % padding, not 16.5 %.
STRIDE = 32
"""Padded sides are multiples of this."""
Boxes = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sample:
    """One image, resized and perhaps mirrored."""

    image: Tensor
    """uint8 RGB [3, h, w]."""
    boxes: Tensor
    """float32 [G, 4], pixels of the resized image; no crowds."""
    labels: Tensor
    """int64 [G], from 0."""
    image_id: int
    size: tuple[int, int]
    """Height and width after resizing."""
    original_size: tuple[int, int]
    """Height and width of the file."""
    flipped: bool


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """Several images under one padded shape."""

    images: Tensor
    """uint8 RGB [B, 3, H, W], zero to the right of and below each image."""
    sizes: Tensor
    """int64 [B, 2], height and width inside the padding."""
    boxes: Tensor
    """float32 [M, 4], the boxes of all images in one list, image after image."""
    labels: Tensor
    """int64 [M]."""
    image_index: Tensor
    """int64 [M], place of the box's image in the batch; rising."""
    image_ids: Tensor
    """int64 [B]."""
    original_sizes: Tensor
    """int64 [B, 2]."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the padded images."""
        return self.images.shape[2], self.images.shape[3]

    def pin_memory(self) -> "Batch":
        """A copy in page-locked memory; a DataLoader with `pin_memory` calls this."""
        return Batch(**{name: getattr(self, name).pin_memory() for name in self.__slots__})

    def to(self, device: torch.device) -> "Batch":
        """A copy on the device, without waiting for it."""
        return Batch(**{name: getattr(self, name).to(device, non_blocking=True) for name in self.__slots__})


def load_sample(data: CocoData, index: int, short_edge: int, long_edge: int, flip: bool) -> Sample:
    """Read, resize and perhaps mirror one image, and its boxes with it."""
    height, width = data.sizes[index].tolist()
    old: tuple[int, int] = (height, width)
    image = load_image(data.path(index), old)
    new = resize_shape(*old, short_edge, long_edge)
    image = resize(image, new)
    truth, labels = data.truth(index)
    boxes = resize_boxes(truth, old, new)
    if flip:
        image = image.flip(2)
        boxes = flip_boxes(boxes, new[1])
    return Sample(
        image=image,
        boxes=torch.from_numpy(boxes),
        labels=torch.from_numpy(labels),
        image_id=int(data.image_ids[index]),
        size=new,
        original_size=old,
        flipped=flip,
    )


def collate(samples: Sequence[Sample], pad_to: tuple[int, int]) -> Batch:
    """Stack samples, padding images to `pad_to` (height, width); their boxes go into one list."""
    images = torch.zeros(len(samples), 3, *pad_to, dtype=torch.uint8)
    for place, sample in enumerate(samples):
        height, width = sample.size
        images[place, :, :height, :width] = sample.image
    num_boxes = torch.tensor([len(sample.labels) for sample in samples], dtype=torch.int64)
    return Batch(
        images=images,
        sizes=torch.tensor([sample.size for sample in samples]).reshape(-1, 2),
        boxes=torch.cat([sample.boxes for sample in samples]),
        labels=torch.cat([sample.labels for sample in samples]),
        image_index=torch.arange(len(samples)).repeat_interleave(num_boxes),
        image_ids=torch.tensor([sample.image_id for sample in samples], dtype=torch.int64),
        original_sizes=torch.tensor([sample.original_size for sample in samples]).reshape(-1, 2),
    )


def normalize(images: Tensor, sizes: Tensor) -> Tensor:
    """Bring grey levels to the scale that pretrained weights expect, and padding to zero.

    Args:
        images: uint8 [B, 3, H, W].
        sizes: [B, 2], height and width of each image inside its padding.

    Returns:
        float32 [B, 3, H, W] on the device of `images`.
    """
    device = images.device
    mean, std = _mean_and_std(device)
    normal = images.to(torch.float32, copy=True).sub_(mean).div_(std)
    if device.type == "cpu":  # where a mask takes four times as long as all the rest
        for image, (height, width) in zip(normal, sizes.tolist(), strict=True):
            image[:, height:] = 0.0
            image[:, :height, width:] = 0.0
        return normal
    sizes = sizes.to(device)
    rows = torch.arange(images.shape[2], device=device) < sizes[:, :1]
    columns = torch.arange(images.shape[3], device=device) < sizes[:, 1:]
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    return normal.masked_fill_(~inside, 0.0)


@cache
def _mean_and_std(device: torch.device) -> tuple[Tensor, Tensor]:
    """[3, 1, 1] each, sent to the device once: a copy to an accelerator makes the host wait."""
    with torch.inference_mode(False):  # trainings use them as well
        mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (MEAN, STD))
    return mean, std


def resize_shape(height: int, width: int, short_edge: int, long_edge: int) -> tuple[int, int]:
    """(height, width) after resizing: the short side as asked, unless the long one would then pass its limit."""
    factor = min(long_edge / max(height, width), short_edge / min(height, width))
    # The released code's rounding: halves go up, where Python's round() takes them to the even neighbour.
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def padded_shape(height: int, width: int) -> tuple[int, int]:
    """The next multiples of 32."""
    return -(-height // STRIDE) * STRIDE, -(-width // STRIDE) * STRIDE


def load_image(path: Path, size: tuple[int, int] | None = None) -> Tensor:
    """Decode a file of a data set to uint8 RGB [3, h, w], of the annotated size (height, width) if one is given.

    Raises:
        DataError: it does not decode, or has another size; `model.data.files.decoding.decode` says which pixels count.
    """
    # torchvision.io would take 2.12 ms an image instead of 2.45 ms, but it reads no CMYK.
    return rgb_pixels(decode(path, size))


def rgb_pixels(image: Image.Image) -> Tensor:
    """uint8 RGB [3, h, w] of an image of any mode."""
    return torch.from_numpy(np.array(rgb(image))).permute(2, 0, 1)


def resize(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """Bilinear, on grey levels and without antialiasing: uint8 [3, h, w] -> uint8 [3, *shape]."""
    if image.shape[1:] == shape:
        return image.contiguous()
    resized = interpolate(image[None], size=shape, mode="bilinear", align_corners=False, antialias=False)
    return resized[0].contiguous()


def resize_boxes(boxes: Boxes, old: tuple[int, int], new: tuple[int, int]) -> Boxes:
    """Scale xyxy boxes [G, 4] from an image of size `old` (height, width) to one of size `new`, and clip them to it."""
    # Of each side by itself: both were rounded to whole pixels, so that they differ a little.
    scale = np.array([new[1] / old[1], new[0] / old[0]] * 2, dtype=np.float32)
    limit = np.array([new[1], new[0]] * 2, dtype=np.float32)
    clipped: Boxes = np.clip(boxes * scale, np.float32(0), limit)
    return clipped


def flip_boxes(boxes: Boxes, width: int) -> Boxes:
    """Mirror xyxy boxes [G, 4] left to right in an image of this width: x -> width - x."""
    flipped = boxes.copy()
    # Coordinates are continuous: no -1, as pixel indices would have it.
    flipped[:, [0, 2]] = width - boxes[:, [2, 0]]
    return flipped
