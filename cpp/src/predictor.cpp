#include "cellvision/predictor.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <utility>

#include "cells/measure.hpp"
#include "cellvision/error.hpp"
#include "detections/detected_cells.hpp"
#include "detections/detection_net.hpp"
#include "graphs/inputs.hpp"
#include "graphs/ort_library.hpp"
#include "graphs/session.hpp"
#include "maps/map_net.hpp"
#include "maps/split.hpp"
#include "maps/stitching.hpp"
#include "tiles/budget.hpp"
#include "tiles/tiling.hpp"

namespace cellvision {
namespace {

class Clock {
public:
    /// Seconds since it was made, or since the last call.
    double lap() {
        const auto now = std::chrono::steady_clock::now();
        return std::chrono::duration<double>(now - std::exchange(start_, now)).count();
    }

private:
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

void check_options(const Options& options) {
    const auto check = [](const char* name, std::optional<int> value, int least, int most = largest_size) {
        if (value && (*value < least || *value > most)) {
            fail(ErrorKind::config, std::string(name) + "=" + std::to_string(*value),
                 "a whole number from " + std::to_string(least) + " to " + std::to_string(most), "leave it out");
        }
    };
    check("threads", options.threads == 0 ? 1 : options.threads, 1, find_most_threads());
    check("memory_mib", options.memory_mib, 1);
    check("tile_px", options.tile_px, 1);
    check("overlap_px", options.overlap_px, 1);
    check("batch", options.batch, 1);
    if (options.arena != "keep" && options.arena != "shrink" && options.arena != "none") {
        fail(ErrorKind::config, "arena=" + options.arena, "one of: keep, none, shrink", "arena=keep");
    }
}

}  // namespace

int find_most_threads() { return std::max(16, static_cast<int>(std::thread::hardware_concurrency())); }

class Predictor::Impl {
public:
    Impl(const std::filesystem::path& bundle_dir, Options options) : options_(std::move(options)) {
        Clock clock;
        check_options(options_);
        manifest_ = load_manifest(bundle_dir);
        const auto open = [&](const char* role) {
            return open_graph(bundle_dir, manifest_.find_graph(role), options_);
        };
        if (manifest_.kind != "instance") {
            maps_.emplace(manifest_, open("whole"));
        } else if (manifest_.is_parted()) {
            detections_.emplace(manifest_, open("trunk"), open("masks"));
        } else {
            detections_.emplace(manifest_, open("whole"), nullptr);
        }
        version_ = find_ort_version();
        overlap_px_ = round_up(options_.overlap_px.value_or(manifest_.overlap_px), manifest_.stride);
        timings_.open_s = clock.lap();
    }

    Cells predict(const Image& image, std::optional<double> intensity_scale) {
        const InputMatch match = match_input(manifest_, image, intensity_scale);
        Cells cells;
        const int tile_px = find_tile_px(image.height, image.width, cells.notes);
        const auto rows = plan_spans(image.height, tile_px, overlap_px_);
        const auto columns = plan_spans(image.width, tile_px, overlap_px_);
        std::vector<Tile> tiles;
        for (const Span& row : rows) {
            for (const Span& column : columns) {
                tiles.push_back({.rows = row, .columns = column});
            }
        }
        cells.height = image.height, cells.width = image.width;
        cells.classes = manifest_.classes;
        cells.channels = manifest_.channel_names();
        cells.kind = manifest_.kind;
        cells.pixel_size_um = image.pixel_size_um;
        cells.tiles = static_cast<int>(tiles.size());
        Timings spent{.images = 1, .tiles = cells.tiles};
        if (maps_) {
            split_maps(image, match, tiles, cells, spent);
        } else {
            const int full = paint_detections(image, match, tiles, cells, spent);
            if (full > 0) {
                cells.notes.push_back(note_full_tiles(full, cells.tiles, tile_px));
            }
        }
        const std::lock_guard lock(mutex_);
        timings_.net_s += spent.net_s, timings_.cells_s += spent.cells_s;
        timings_.images += spent.images, timings_.tiles += spent.tiles;
        return cells;
    }

    [[nodiscard]] const Manifest& manifest() const noexcept { return manifest_; }
    [[nodiscard]] const std::string& version() const noexcept { return version_; }

    Timings timings() {
        const std::lock_guard lock(mutex_);
        return timings_;
    }

private:
    void split_maps(const Image& image, const InputMatch& match, std::span<const Tile> tiles, Cells& cells,
                    Timings& spent) const {
        Stitcher stitcher(image.width, overlap_px_);
        cells.label_image = LabelImage(image.height, image.width);
        Clock clock;
        for (const auto batch : cut_batches(tiles, options_.batch)) {
            pause();
            const auto counts = to_input(image, match, batch);
            const Windows windows = to_windows(counts, batch);
            const auto maps = maps_->run(windows);
            spent.net_s += clock.lap();
            for (std::size_t i = 0; i < batch.size(); ++i) {
                const auto pixels = static_cast<std::size_t>(windows.height) * static_cast<std::size_t>(windows.width);
                const auto background = maps[i].probabilities.first(pixels);
                LabelImage labels = split_cells(background, maps[i].distance, windows.height, windows.width,
                                                manifest_.splitting);
                const std::int32_t count = *std::max_element(labels.data.begin(), labels.data.end());
                const Window window{.labels = labels,
                                    .image = image,
                                    .order = match.order,
                                    .probabilities = maps[i].probabilities,
                                    .classes = static_cast<int>(manifest_.classes.size())};
                auto sums = measure_cells(window, batch[i], count);
                stitcher.add(batch[i], labels, std::move(sums), cells.label_image);
            }
            spent.cells_s += clock.lap();
        }
        cells.cells = build_cells(stitcher.resolve(cells.label_image, manifest_.splitting.min_area_px), manifest_);
        spent.cells_s += clock.lap();
    }

    /// The number of tiles that hold as many cells as the net finds in one, the last of them good enough to count.
    int paint_detections(const Image& image, const InputMatch& match, std::span<const Tile> tiles, Cells& cells,
                         Timings& spent) const {
        DetectionPile pile(manifest_, image.height, image.width, overlap_px_);
        int full = 0;
        Clock clock;
        for (const auto batch : cut_batches(tiles, options_.batch)) {
            pause();
            const auto counts = to_input(image, match, batch);
            const auto found = detections_->run(to_windows(counts, batch));
            spent.net_s += clock.lap();
            for (std::size_t i = 0; i < batch.size(); ++i) {
                full += is_full(found[i]) ? 1 : 0;
                pile.add(batch[i], found[i]);
            }
            spent.cells_s += clock.lap();
        }
        cells.cells = pile.build(image, match.order, cells.label_image);
        spent.cells_s += clock.lap();
        return full;
    }

    void pause() const {
        if (options_.before_tiles) {
            options_.before_tiles();
        }
    }

    static Windows to_windows(std::span<const std::byte> counts, std::span<const Tile> batch) {
        return {.counts = counts,
                .count = static_cast<int>(batch.size()),
                .height = batch[0].rows.window_size(),
                .width = batch[0].columns.window_size()};
    }

    /// Whether a tile can hold more cells than it has places for: those without one have lower scores than all others.
    [[nodiscard]] bool is_full(const Detections& detections) const {
        const auto least = static_cast<float>(manifest_.splitting.score_threshold);
        return detections.found.size() == static_cast<std::size_t>(manifest_.detecting->max_cells) &&
               std::all_of(detections.found.begin(), detections.found.end(),
                           [least](const Detection& one) { return one.score >= least; });
    }

    [[nodiscard]] std::string note_full_tiles(int full, int tiles, int tile_px) const {
        const int most = manifest_.detecting->max_cells;
        return std::to_string(full) + " of " + std::to_string(tiles) + " tiles of " + std::to_string(tile_px) +
               " px hold " + std::to_string(most) +
               " cells, as many as the bundle finds in one; if there are more, a smaller tile_px finds them, or a "
               "bundle of export.py with max_cells=" +
               std::to_string(2LL * most);
    }

    /// The tile size that was asked for, or the bundle's, or a smaller one that fits the memory, which is noted once.
    int find_tile_px(int height, int width, std::vector<std::string>& notes) {
        const int stride = manifest_.stride;
        const int largest = round_up(options_.tile_px.value_or(manifest_.tile_px), stride);
        const TileLimits limits{.largest_px = largest,
                                .smallest_px = options_.tile_px ? largest : round_up(smallest_tile_px, stride),
                                .stride = stride,
                                .overlap_px = overlap_px_};
        // Measuring takes a few runs: an image can be so small that the net need not be known.
        const Costs most = compute_costs(bound_net(manifest_), manifest_, options_.batch);
        if (most.compute_total(height, width, largest, overlap_px_) <= options_.memory_mib * 1024.0 * 1024.0) {
            return largest;
        }
        const Costs costs = compute_costs(find_net_costs(), manifest_, options_.batch);
        const int tile_px = choose_tile_px(height, width, limits, costs, options_.memory_mib);
        const std::size_t tiles = count_tiles(height, width, tile_px);
        const std::size_t fewest = count_tiles(height, width, largest);
        if (tiles != fewest) {
            const double enough = costs.compute_total(height, width, largest, overlap_px_) / (1024.0 * 1024.0);
            std::string note = std::to_string(tiles) + " tiles of " + std::to_string(tile_px) +
                               " px keep within memory_mib=" + std::to_string(options_.memory_mib) + "; memory_mib=" +
                               std::to_string(static_cast<long long>(std::ceil(enough))) + " allows " +
                               std::to_string(fewest) + " of " + std::to_string(largest) + " px, which is faster";
            const std::lock_guard lock(mutex_);
            if (said_.insert(note).second) {
                notes.push_back(std::move(note));
            }
        }
        return tile_px;
    }

    [[nodiscard]] std::size_t count_tiles(int height, int width, int tile_px) const {
        return plan_spans(height, tile_px, overlap_px_).size() * plan_spans(width, tile_px, overlap_px_).size();
    }

    NetCosts find_net_costs() {
        const std::lock_guard lock(measuring_);
        if (!net_costs_) {
            net_costs_ = measure_net(manifest_, [this](const std::vector<std::byte>& image, int edge) {
                return maps_ ? maps_->probe(image, edge) : detections_->probe(image, edge);
            });
        }
        return *net_costs_;
    }

    Options options_;
    Manifest manifest_;
    std::optional<MapNet> maps_;
    std::optional<DetectionNet> detections_;
    std::string version_;
    int overlap_px_ = 0;
    std::mutex measuring_;
    std::optional<NetCosts> net_costs_;
    std::mutex mutex_;
    Timings timings_;
    std::set<std::string> said_;
};

Predictor::Predictor(const std::filesystem::path& bundle_dir, const Options& options)
    : impl_(std::make_unique<Impl>(bundle_dir, options)) {}
Predictor::~Predictor() = default;
Predictor::Predictor(Predictor&&) noexcept = default;
Predictor& Predictor::operator=(Predictor&&) noexcept = default;

Cells Predictor::operator()(const Image& image, std::optional<double> intensity_scale) const {
    return impl_->predict(image, intensity_scale);
}

const Manifest& Predictor::manifest() const noexcept { return impl_->manifest(); }
Timings Predictor::timings() const { return impl_->timings(); }
const std::string& Predictor::runtime_version() const noexcept { return impl_->version(); }

}  // namespace cellvision
