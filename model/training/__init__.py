"""Training in plain torch.distributed: batches, losses, and the loop; begin with `loop.py`."""
