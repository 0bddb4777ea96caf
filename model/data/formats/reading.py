"""Reads the tables of a split, whatever they are written in."""

from model.data.annotations import Tables, read_tables
from model.data.formats.tables import take_share
from model.data.layouts.files import SplitFiles


def read_split(files: SplitFiles) -> Tables:
    """Read images, annotations and categories of a split.

    Raises:
        DataError: a file is not what its format wants.
    """
    tables = _read(files)
    tables = tables._replace(notes=(*files.notes, *tables.notes))
    if files.share is None:
        return tables
    return take_share(tables, files.share, str(files.where))


def _read(files: SplitFiles) -> Tables:
    # A reader is imported where it is needed: most data are COCO's.
    if files.format == "yolo":
        from model.data.formats.yolo import read_yolo

        return read_yolo(files)
    if files.format == "voc":
        from model.data.formats.voc import read_voc

        return read_voc(files)
    if files.format == "open_images":
        from model.data.formats.open_images import read_open_images

        return read_open_images(files)
    if files.format == "lvis":
        from model.data.formats.lvis import read_lvis

        return read_lvis(files)
    return read_tables(files.annotations[0])
