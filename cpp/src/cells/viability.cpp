#include "cellvision/viability.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "cellvision/error.hpp"

namespace cellvision {
namespace {

/// z with the share `tail` (in (0, 0.5]) of a normal distribution above it, by Newton's method on erfc.
double find_quantile(double tail) {
    // Above the root the tail is convex, so Newton's steps from below never pass it.
    double z = 0.0;
    for (int step = 0; step < 200; ++step) {
        const double above = 0.5 * std::erfc(z / std::sqrt(2.0));
        const double density = std::exp(-0.5 * z * z) / std::sqrt(2.0 * 3.14159265358979323846);
        const double next = z + (above - tail) / density;
        if (std::abs(next - z) <= 1e-15 * std::max(1.0, z)) {
            return next;
        }
        z = next;
    }
    return z;
}

}  // namespace

Viability compute_viability(std::int64_t live, std::int64_t dead, double confidence) {
    if (!(confidence > 0.0 && confidence < 1.0)) {
        fail(ErrorKind::config, "confidence=" + std::to_string(confidence), "one between 0 and 1", "confidence=0.95");
    }
    if (live < 0 || dead < 0) {
        fail(ErrorKind::data, std::to_string(live) + " live and " + std::to_string(dead) + " dead cells",
             "counts from 0 up", "count the cells again");
    }
    Viability found;
    found.live = live, found.dead = dead, found.confidence = confidence;
    if (live + dead == 0) {
        return found;
    }
    const double z = find_quantile((1.0 - confidence) / 2.0);
    const auto cells = static_cast<double>(live + dead);
    const double share = static_cast<double>(live) / cells;
    const double weight = 1.0 + z * z / cells;
    const double centre = (share + z * z / (2.0 * cells)) / weight;
    const double half = z / weight * std::sqrt(share * (1.0 - share) / cells + z * z / (4.0 * cells * cells));
    found.viability = share;
    // The ends are exactly 0 and 1 there; rounding would put the observed share outside its own interval.
    found.low = live == 0 ? 0.0 : std::max(0.0, centre - half);
    found.high = dead == 0 ? 1.0 : std::min(1.0, centre + half);
    return found;
}

}  // namespace cellvision
