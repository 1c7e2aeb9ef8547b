#include "budget.hpp"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <random>
#include <type_traits>
#include <utility>

namespace cellvision {
namespace {

constexpr int warm_up_px = 32;
constexpr int probe_px = 256;

// Working memory of splitting and measuring one window, per px, beside the net's own: mask, labels, padded levels and
// labels, and the flooding queue.
constexpr double split_bytes = 32.0;

/// Memory that the process holds, bytes; 0 where the system does not tell.
double find_resident() {
    std::ifstream stream("/proc/self/statm");
    double total = 0.0;
    double resident = 0.0;
    stream >> total >> resident;
    return resident * static_cast<double>(sysconf(_SC_PAGESIZE));
}

}  // namespace

NetCosts assume_net(const Manifest& manifest) {
    // Measured at 520 x 704 px: 450 bytes per px of a U-Net, 1270 of CenterMask2 with V-39, all it needs counted in.
    constexpr double mib = 1024.0 * 1024.0;
    return {.per_px = 1536.0, .fixed = manifest.kind == "instance" ? 256.0 * mib : 0.0};
}

NetCosts measure_net(const Manifest& manifest, const std::function<void(int)>& probe) {
    const double before = find_resident();
    probe(warm_up_px);
    const double warm = find_resident();
    probe(probe_px);
    const double grown = find_resident() - warm;
    if (before == 0.0) {
        return assume_net(manifest);
    }
    const double per_px = std::max(grown, 0.0) / (probe_px * probe_px);
    if (manifest.kind == "instance") {
        const std::size_t count_bytes = size_of(manifest.input_dtype) + sizeof(float);
        const auto inputs = static_cast<double>(manifest.channels.size() * count_bytes);
        return {.per_px = std::max(per_px, inputs), .fixed = std::max(warm - before, 0.0)};
    }
    const auto outputs = static_cast<double>(sizeof(float) * (manifest.classes.size() + 1));
    return {.per_px = std::max(per_px, outputs), .fixed = 0.0};
}

std::vector<std::byte> make_noise(const Manifest& manifest, int edge) {
    Image image(static_cast<int>(manifest.channels.size()), edge, edge, manifest.input_dtype);
    std::mt19937 random(0);
    const auto fill = [&](auto counts) {
        for (auto& count : counts) {
            count = static_cast<std::remove_reference_t<decltype(count)>>(random() % 256U);
        }
    };
    for (int channel = 0; channel < image.channels; ++channel) {
        switch (image.dtype) {
            case DType::uint8: fill(image.counts<std::uint8_t>(channel)); break;
            case DType::uint16: fill(image.counts<std::uint16_t>(channel)); break;
            case DType::float32: fill(image.counts<float>(channel)); break;
        }
    }
    return std::move(image.data);
}

Costs compute_costs(const NetCosts& net, const Manifest& manifest) {
    const auto image_bytes = static_cast<double>(manifest.channels.size() * size_of(manifest.input_dtype));
    Costs costs{.per_window_px = net.per_px + image_bytes, .fixed = net.fixed};
    if (manifest.detecting) {
        const double side = manifest.detecting->mask_side;
        costs.fixed += sizeof(float) * side * side * manifest.detecting->max_cells;
    } else {
        costs.per_window_px += split_bytes;
    }
    return costs;
}

}  // namespace cellvision
