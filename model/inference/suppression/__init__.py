"""Which of overlapping boxes stay: greedy NMS on the CPU and on CUDA, and its successors."""
