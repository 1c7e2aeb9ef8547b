#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "cellvision/manifest.hpp"
#include "tiling.hpp"

namespace cellvision {

/// Working memory of a bundle's graphs, in bytes.
struct NetCosts {
    double per_px = 0.0;  ///< for each px of a window
    double fixed = 0.0;   ///< for each window whatever its size
};

/// What graphs are taken to need until it is measured: more than any net that was measured.
[[nodiscard]] NetCosts assume_net(const Manifest& manifest);

/// What the graphs need, from how the process grows in two runs. @param probe runs them on an image of that edge, px.
[[nodiscard]] NetCosts measure_net(const Manifest& manifest, const std::function<void(int)>& probe);

/// (C, edge, edge) counts 0..255 of the manifest's input_dtype, always the same. Noise, for a net that finds more needs
/// more.
[[nodiscard]] std::vector<std::byte> make_noise(const Manifest& manifest, int edge);

/// What predicting an image costs beside its label image.
[[nodiscard]] Costs compute_costs(const NetCosts& net, const Manifest& manifest);

}  // namespace cellvision
