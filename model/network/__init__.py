"""The detector and its checkpoints: anchors, backbone, heads, first weights; begin with `retinanet.py`."""
