#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "cellvision/image.hpp"
#include "cellvision/manifest.hpp"
#include "tiles/tiling.hpp"

namespace cellvision {

/// How to turn an image's counts into the graph's input.
struct InputMatch {
    std::vector<int> order;                 ///< for each channel of the graph, the image's channel
    DType dtype = DType::float32;           ///< of the graph's input
    std::optional<double> intensity_scale;  ///< factor from the image's counts to the training counts
};

/// How an image fits a bundle; throws Error, which says why, where it does not.
[[nodiscard]] InputMatch match_input(const Manifest& manifest, const Image& image,
                                     std::optional<double> intensity_scale);

/// What the graph reads of B tiles' windows, which are of one size: (B, C, h, w) counts of the match's dtype. Throws
/// Error on NaN and infinity.
[[nodiscard]] std::vector<std::byte> to_input(const Image& image, const InputMatch& match, std::span<const Tile> tiles);

}  // namespace cellvision
