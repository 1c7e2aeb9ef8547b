#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "cellvision/manifest.hpp"
#include "tiles/tiling.hpp"

namespace cellvision {

/// Working memory of a bundle's graphs, in bytes.
struct NetCosts {
    double per_px = 0.0;    ///< for each px of a window
    double fixed = 0.0;     ///< for each window whatever its size: candidates, and masks that are made at once
    double per_cell = 0.0;  ///< for each cell of a window; 0 where masks are made for a fixed number at once
};

/// What graphs are taken to need where it cannot be measured, as on another processor than this one.
[[nodiscard]] NetCosts assume_net(const Manifest& manifest);

/// More than graphs need: where an image fits even so, they need not be measured.
[[nodiscard]] NetCosts bound_net(const Manifest& manifest);

/// Runs the graphs on an image, (C, edge, edge) of the manifest's input_dtype; the number of cells found, 0 for maps.
using Probe = std::function<int(const std::vector<std::byte>& image, int edge)>;

/// What the graphs need: the most that their tensors took at once on noise, or on empty ground if they find cells; and of
/// a graph that makes the masks of all cells at once, on drawn ones.
[[nodiscard]] NetCosts measure_net(const Manifest& manifest, const Probe& probe);

/// What predicting an image costs beside its label image, with `batch` windows worked on at once.
[[nodiscard]] Costs compute_costs(const NetCosts& net, const Manifest& manifest, int batch);

}  // namespace cellvision
