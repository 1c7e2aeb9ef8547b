#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "cells/measure.hpp"
#include "cellvision/image.hpp"
#include "tiles/tiling.hpp"

namespace cellvision {

/// Gives the cells of all tiles provisional numbers, and remembers which numbers are the same cell.
///
/// Every pixel is labelled by the one tile whose core holds it. Two labels of neighbouring tiles are pieces of one cell
/// where they overlap, around the seam, by more than half of the smaller, and do so on the seam itself. Tiles are added
/// row by row, left to right.
class Stitcher {
public:
    /// For an image of `width` px; tiles compare their labels within overlap_px / 2 of a seam.
    Stitcher(int width, int overlap_px);

    /// Numbers the cells of the next tile and writes those of its core into `ids`.
    ///
    /// @param labels (window height, window width), the tile's own labels 1..n; receives the provisional numbers.
    /// @param pieces (n,) of those labels, summed over the tile's core.
    /// @param ids label image of the whole image.
    void add(const Tile& tile, LabelImage& labels, std::vector<CellSums> pieces, LabelImage& ids);

    /// The sums of cells 1..N in raster order of their first pixel; cells below `min_area_px` are dropped.
    ///
    /// @param ids with the provisional numbers of all tiles; receives the final ones.
    [[nodiscard]] std::vector<CellSums> resolve(LabelImage& ids, int min_area_px) const;

private:
    /// Provisional numbers around a seam; `across` lies crosswise to it.
    struct Strip {
        int along = 0;
        int across = 0;
        std::vector<std::int32_t> ids;
    };

    [[nodiscard]] Strip copy_columns(const Tile& tile, const LabelImage& ids, int seam) const;
    [[nodiscard]] Strip copy_rows(const Tile& tile, const LabelImage& ids, int seam) const;
    void compare(const Strip& one, const Strip& other);

    int width_;
    int zone_;
    Strip left_;                 // beside the seam to the right of the last tile
    std::vector<Strip> above_;   // below the last row of tiles, one per tile
    std::vector<Strip> below_;   // below the tiles of the row at work
    std::vector<CellSums> pieces_;
    std::vector<std::pair<std::int32_t, std::int32_t>> links_;
};

}  // namespace cellvision
