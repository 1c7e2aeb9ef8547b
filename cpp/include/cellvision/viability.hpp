#pragma once

#include <cstdint>
#include <optional>

namespace cellvision {

/// Counts of one field (or of several pooled) with the share of live cells.
struct Viability {
    std::int64_t live = 0;
    std::int64_t dead = 0;
    std::optional<double> viability;  ///< live / (live + dead) in 0..1; nothing where no cell was counted
    std::optional<double> low;        ///< ends of the interval in 0..1; nothing where `viability` is nothing
    std::optional<double> high;
    double confidence = 0.95;         ///< nominal coverage of the interval, in (0, 1)
};

/// Share of live cells with its Wilson score interval. Counts are 0 or more, confidence lies in (0, 1); else Error.
[[nodiscard]] Viability compute_viability(std::int64_t live, std::int64_t dead, double confidence = 0.95);

}  // namespace cellvision
