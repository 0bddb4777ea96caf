"""Layers that PyTorch lacks: convolutions with what follows them, and edges read off distributions."""
