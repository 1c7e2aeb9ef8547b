"""Generated fields with exact truth: live and dead cells in fluorescence, and crowded cells in any number."""

from cellvision.data.synthetic.cells import SyntheticCells as SyntheticCells
from cellvision.data.synthetic.live_dead import SyntheticLiveDead as SyntheticLiveDead
