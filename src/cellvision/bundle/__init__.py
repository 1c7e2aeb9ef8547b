"""The bundle: a folder with graphs and ``manifest.json``, the only contract between training, Python and C++.

Standard library only: export writes it, the runtime and the C++ runner read it.
"""

from cellvision.bundle.checks import LARGEST_SIZE as LARGEST_SIZE
from cellvision.bundle.checks import PIXEL_SIZES as PIXEL_SIZES
from cellvision.bundle.checks import is_pixel_size as is_pixel_size
from cellvision.bundle.files import FORMAT as FORMAT
from cellvision.bundle.files import MANIFEST_NAME as MANIFEST_NAME
from cellvision.bundle.files import compute_sha256 as compute_sha256
from cellvision.bundle.files import load_manifest as load_manifest
from cellvision.bundle.files import write_manifest as write_manifest
from cellvision.bundle.manifest import DETECTION_OUTPUTS as DETECTION_OUTPUTS
from cellvision.bundle.manifest import DTYPES as DTYPES
from cellvision.bundle.manifest import FIELD_COLUMNS as FIELD_COLUMNS
from cellvision.bundle.manifest import KINDS as KINDS
from cellvision.bundle.manifest import PRECISIONS as PRECISIONS
from cellvision.bundle.manifest import SPLITTING_METHODS as SPLITTING_METHODS
from cellvision.bundle.manifest import Channel as Channel
from cellvision.bundle.manifest import Detecting as Detecting
from cellvision.bundle.manifest import Graph as Graph
from cellvision.bundle.manifest import Manifest as Manifest
from cellvision.bundle.manifest import Splitting as Splitting
from cellvision.bundle.manifest import check_shared as check_shared
