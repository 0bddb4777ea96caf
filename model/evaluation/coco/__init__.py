"""COCO's evaluation: the twelve numbers, the matches they are counted from, and both where images are weighted."""
