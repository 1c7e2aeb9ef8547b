"""Live and dead cells on disk."""

from cellvision.data.livedead.dataset import LiveDeadDataset as LiveDeadDataset
from cellvision.data.livedead.writer import write_livedead_folder as write_livedead_folder
