"""Everything about data under one name: reading, faults, order, and samples."""

from model.coco import CocoData, read_coco, read_for_scoring, read_for_training
from model.faults import DataError, Fault
from model.order import batch_shape, epoch_batches, flips, training_images
from model.samples import Batch, Sample, collate, load_sample
from model.transforms import load_image, normalize, padded_shape, resize_shape

__all__ = [
    "Batch",
    "CocoData",
    "DataError",
    "Fault",
    "Sample",
    "batch_shape",
    "collate",
    "epoch_batches",
    "flips",
    "load_image",
    "load_sample",
    "normalize",
    "padded_shape",
    "read_coco",
    "read_for_scoring",
    "read_for_training",
    "resize_shape",
    "training_images",
]
