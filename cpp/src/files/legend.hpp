#pragma once

#include <array>
#include <string>
#include <vector>

#include "cellvision/writers.hpp"

namespace cellvision {

using Colour = std::array<unsigned char, 3>;

/// A text of a legend, and what colour it has.
struct LegendPart {
    std::string text;
    Colour colour;
};

/// The picture with lines below it: on top they would hide cells. Texts stand from left to right, and in further lines
/// where one is not enough; a text too long for a line loses its middle.
[[nodiscard]] Picture add_legend(const Picture& picture, const std::vector<LegendPart>& parts);

}  // namespace cellvision
