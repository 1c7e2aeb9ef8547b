#include "tiles/budget.hpp"

#include <algorithm>
#include <cmath>
#include <random>
#include <type_traits>
#include <utility>

#include "graphs/tensor_pool.hpp"

namespace cellvision {
namespace {

constexpr int small_px = 32;
constexpr int large_px = 256;
constexpr int drawn_px = 192;
constexpr int fewest_cells = 16;  // to tell what one of them takes
constexpr double mib = 1024.0 * 1024.0;

// Working memory of splitting and measuring one window, per px, beside the net's own: mask, labels, padded levels and
// labels, and the flooding queue.
constexpr double split_bytes = 32.0;

// What a cell takes of a net that takes no drawn disc for one: as much as 14 x 14 px of 256 maps some times over.
constexpr double cell_bytes = 1.5 * mib;

// What one step leaves free does not quite fit the next: measured, up to 1.1 times as much per px at 768 px as at 256.
constexpr double gaps = 1.1;

/// An image of the manifest's kind, filled by what gives the level, 0..255, of each pixel in turn.
template <typename Level>
std::vector<std::byte> draw(const Manifest& manifest, int edge, Level level) {
    Image image(static_cast<int>(manifest.channels.size()), edge, edge, manifest.input_dtype);
    const auto fill = [&](auto counts, double scale) {
        for (std::size_t i = 0; i < counts.size(); ++i) {
            counts[i] = static_cast<std::remove_reference_t<decltype(counts[i])>>(scale * level(static_cast<int>(i)));
        }
    };
    for (int channel = 0; channel < image.channels; ++channel) {
        switch (image.dtype) {
            case DType::uint8: fill(image.counts<std::uint8_t>(channel), 1.0); break;
            case DType::uint16: fill(image.counts<std::uint16_t>(channel), 257.0); break;
            case DType::float32: fill(image.counts<float>(channel), 1.0); break;
        }
    }
    return std::move(image.data);
}

/// Always the same, for nets that say something of every px.
std::vector<std::byte> draw_noise(const Manifest& manifest, int edge) {
    std::mt19937 random(0);
    return draw(manifest, edge, [&](int) { return static_cast<double>(random() % 256U); });
}

/// Nothing but ground, for nets that find cells: what these take for each px, without cells.
std::vector<std::byte> draw_ground(const Manifest& manifest, int edge) {
    return draw(manifest, edge, [](int) { return 20.0; });
}

/// Discs of 18 px with soft edges, 24 px apart.
std::vector<std::byte> draw_discs(const Manifest& manifest, int edge, double ground, double cell) {
    return draw(manifest, edge, [=](int at) {
        const double from_middle = std::hypot(at / edge % 24 - 12, at % edge % 24 - 12);
        return ground + (cell - ground) * std::clamp(1.5 - from_middle / 9.0, 0.0, 1.0);
    });
}

/// Bytes for each cell of a graph that makes the masks of all its cells at once, in what its maps before them leave free.
double measure_cell(const Manifest& manifest, const Probe& probe) {
    for (const auto& [ground, cell] : {std::pair(20.0, 200.0), std::pair(200.0, 20.0)}) {
        static_cast<void>(tensor_pool().take_peak());
        const int cells = probe(draw_discs(manifest, drawn_px, ground, cell), drawn_px);
        const auto peak = static_cast<double>(tensor_pool().take_peak());
        if (cells >= fewest_cells) {
            const double side = manifest.detecting->mask_side;
            return std::max(peak / cells, sizeof(float) * side * side);
        }
    }
    return cell_bytes;
}

}  // namespace

NetCosts assume_net(const Manifest& manifest) {
    // Measured at 520 x 704 px: 510 bytes per px of a U-Net, 270 of CenterMask2 in two graphs with the masks that it
    // makes at once; in one graph with 280 cells 1.3 MiB per cell of a lite net, 1.2 with V-39, all maps counted in.
    const bool finds_cells = manifest.kind == "instance";
    return {.per_px = 1024.0,
            .fixed = finds_cells ? 64.0 * mib : 0.0,
            .per_cell = finds_cells && !manifest.is_parted() ? 1.3 * mib : 0.0};
}

NetCosts bound_net(const Manifest& manifest) {
    // The most that was measured is 2550 bytes per px, of a Swin-UNet in fp16.
    const bool makes_masks = manifest.kind == "instance" && !manifest.is_parted();
    return {.per_px = 8192.0, .fixed = 64.0 * mib, .per_cell = makes_masks ? 4.0 * mib : 0.0};
}

NetCosts measure_net(const Manifest& manifest, const Probe& probe) {
    const bool finds_cells = manifest.kind == "instance";
    const bool makes_masks = finds_cells && !manifest.is_parted();
    const auto measure = [&](int edge) {
        static_cast<void>(tensor_pool().take_peak());
        static_cast<void>(probe(finds_cells ? draw_ground(manifest, edge) : draw_noise(manifest, edge), edge));
        return static_cast<double>(tensor_pool().take_peak());
    };
    // Of two graphs, few px show the masks of as many boxes as go through the second at once.
    const double fixed = finds_cells && !makes_masks ? measure(small_px) : 0.0;
    const double all = measure(large_px);
    if (all == 0.0) {
        return assume_net(manifest);  // its memory is not of the pool, but of another processor
    }
    const std::size_t count_bytes = size_of(manifest.input_dtype) + sizeof(float);
    const std::size_t least =
        finds_cells ? manifest.channels.size() * count_bytes : sizeof(float) * (manifest.classes.size() + 1);
    const double per_px = gaps * std::max(all - fixed, 0.0) / (large_px * large_px);
    return {.per_px = std::max(per_px, static_cast<double>(least)),
            .fixed = fixed,
            .per_cell = makes_masks ? gaps * measure_cell(manifest, probe) : 0.0};
}

Costs compute_costs(const NetCosts& net, const Manifest& manifest, int batch) {
    const auto image_bytes = static_cast<double>(manifest.channels.size() * size_of(manifest.input_dtype));
    Costs costs{.per_window_px = net.per_px + image_bytes, .fixed = batch * net.fixed, .windows = batch};
    if (manifest.detecting) {
        costs.per_cell = net.per_cell;
        costs.most_cells = manifest.detecting->max_cells;
        const double side = manifest.detecting->mask_side;
        costs.fixed += batch * sizeof(float) * side * side * manifest.detecting->max_cells;
    } else {
        costs.per_window_px += split_bytes;
    }
    return costs;
}

}  // namespace cellvision
