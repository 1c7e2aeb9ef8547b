"""Groups told from names; the errors are tested with FolderDataset and CocoDataset too."""

import pytest

from cellvision.data.groups import find_groups
from cellvision.errors import ConfigError, DataError


def test_a_livecell_well_is_a_group():
    names = ["A172_Phase_A7_1_00d00h00m_1.tif", "A172_Phase_A7_2_01d00h00m_3.tif", "SkBr3_Phase_H3_1_00d00h00m_1.tif"]
    wells = ("A172_Phase_A7", "A172_Phase_A7", "SkBr3_Phase_H3")
    assert find_groups(names, "^(.*?_Phase_[A-Z]+[0-9]+)_") == wells
    assert find_groups(names, None) == tuple(names)


@pytest.mark.parametrize(
    ("pattern", "error", "text"),
    [
        ("(A", ConfigError, r"group_pattern '\(A': .*; need a regular expression"),
        ("A", ConfigError, r"group_pattern 'A' has no group; need one in parentheses; try: \"\(A\)\""),
        ("^(A[0-9])|B", DataError, r"does not match 1 fault: B1; need a match in each file name"),
    ],
)
def test_bad_patterns(pattern, error, text):
    with pytest.raises(error, match=text):
        find_groups(["A1", "B1"], pattern, what="file name")
