"""RetinaNet-Conf in plain PyTorch: the detector, its data, its training and its scoring."""
