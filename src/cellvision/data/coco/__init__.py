"""COCO annotations, LIVECell's form included: read strictly, packed for the loader's processes, written."""

from cellvision.data.coco.dataset import CocoDataset as CocoDataset
from cellvision.data.coco.writer import write_coco as write_coco
from cellvision.data.coco.writer import write_coco_folder as write_coco_folder
