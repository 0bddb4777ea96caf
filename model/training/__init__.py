"""Training in plain torch.distributed: batches, matching, losses, and the loop; begin with `loop.py`."""
