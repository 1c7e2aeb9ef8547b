#pragma once

#include <span>
#include <vector>

namespace cellvision {

/// Smallest tile that memory may ask for, px.
inline constexpr int smallest_tile_px = 64;

/// Pixels per cell of a dense field, as Python has it: nobody knows before the work how many cells there are.
inline constexpr double dense_cell_px = 32.0 * 32.0;

/// Along one axis: the core that a tile answers for, and the window it looks at; half-open ranges of px.
struct Span {
    int start = 0;
    int stop = 0;
    int window_start = 0;
    int window_stop = 0;

    [[nodiscard]] int size() const noexcept { return stop - start; }
    [[nodiscard]] int window_size() const noexcept { return window_stop - window_start; }
    /// Where the core begins inside the window.
    [[nodiscard]] int offset() const noexcept { return start - window_start; }

    bool operator==(const Span&) const = default;
};

/// One piece of the grid.
struct Tile {
    Span rows;
    Span columns;
};

/// Spans that cover `length` px: cores side by side without gaps, windows with `overlap_px` on both sides.
///
/// All windows begin at multiples of `tile_px`; a length up to one window is one span.
[[nodiscard]] std::vector<Span> plan_spans(int length, int tile_px, int overlap_px);

/// The tiles, which come row by row, in runs of at most `most` of one row with windows of one size.
[[nodiscard]] std::vector<std::span<const Tile>> cut_batches(std::span<const Tile> tiles, int most);

/// Memory that predicting one image takes, in bytes, beside what is already in use.
struct Costs {
    double per_window_px = 0.0;  ///< for each px of a tile's window: the net, and splitting
    double fixed = 0.0;          ///< independent of the tile size
    double per_cell = 0.0;       ///< for each cell in a window, of which there may be one per dense_cell_px
    double most_cells = 0.0;     ///< more are never found in a window
    int windows = 1;             ///< that are worked on at once

    [[nodiscard]] double compute_total(int height, int width, int tile_px, int overlap_px) const;
};

/// Where the search for a tile size begins and ends.
struct TileLimits {
    int largest_px = 0;
    int smallest_px = 0;  ///< equal to largest_px where the caller chose the size
    int stride = 1;       ///< results are multiples of it
    int overlap_px = 0;
};

/// The largest tile up to `largest_px`, by the stride, that keeps an image within `memory_mib`; else Error.
[[nodiscard]] int choose_tile_px(int height, int width, const TileLimits& limits, const Costs& costs, int memory_mib);

/// The smallest multiple of `multiple` that is at least `value` and at least one multiple.
[[nodiscard]] int round_up(int value, int multiple);

}  // namespace cellvision
