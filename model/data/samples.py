"""Images with their boxes as the network takes them: one sample, and a padded batch of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.data.coco import CocoData
from model.data.faults import DataError
from model.data.images import flip_boxes, load_image, resize, resize_boxes, resize_shape


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
    image = load_image(data.path(index))
    old: tuple[int, int] = (image.shape[1], image.shape[2])
    if old != (annotated := tuple(data.sizes[index].tolist())):
        raise DataError(f"{data.path(index)}: is {old} (height, width), annotated {annotated}; mend either")
    new = resize_shape(*old, short_edge, long_edge)
    image = resize(image, new)
    boxes = resize_boxes(data.boxes(index), old, new)
    if flip:
        image = image.flip(2)
        boxes = flip_boxes(boxes, new[1])
    return Sample(
        image=image,
        boxes=torch.from_numpy(boxes),
        labels=torch.from_numpy(data.labels(index)),
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
