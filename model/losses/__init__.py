"""The losses of the detector's outputs: of classes, boxes and confidences; training.losses adds them up for a batch."""
