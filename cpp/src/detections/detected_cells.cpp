#include "detections/detected_cells.hpp"

#include <algorithm>
#include <numeric>

#include "cells/measure.hpp"

namespace cellvision {
namespace {

/// A box that ends within so many px of a window's side may go on beyond it: boxes are not exact.
constexpr float cut_px = 2.0F;

/// Class scores scaled to sum 1; where all are 0, the detection's own class gets 1.
std::vector<double> normalise_scores(std::span<const float> class_scores, int class_id) {
    std::vector<double> scores(class_scores.begin(), class_scores.end());
    double total = std::accumulate(scores.begin(), scores.end(), 0.0);
    if (total <= 0.0) {
        scores[static_cast<std::size_t>(class_id - 1)] = 1.0;
        total = std::accumulate(scores.begin(), scores.end(), 0.0);
    }
    for (double& score : scores) {
        score /= total;
    }
    return scores;
}

bool tells_viability(const Manifest& manifest) {
    Cells cells;
    cells.kind = manifest.kind;
    cells.classes = manifest.classes;
    return cells.has_viability();
}

}  // namespace

Placed place_box(const Box& box, const Tile& tile, int height, int width, int overlap_px) {
    Placed placed{.box = box};
    const auto reach = static_cast<float>(overlap_px / 2.0);
    const auto place = [&](std::size_t axis, const Span& span, int length) {
        const auto begin = static_cast<float>(span.window_start);
        const auto end = static_cast<float>(span.window_stop);
        float& first = placed.box[axis];
        float& last = placed.box[axis + 2];
        first += begin;
        last += begin;
        const float middle = (first + last) / 2.0F;
        // Without end at the sides of the image: a box whose middle lies beyond them has no other tile.
        placed.is_held = placed.is_held && (span.start == 0 || middle >= static_cast<float>(span.start) - reach) &&
                         (span.stop == length || middle < static_cast<float>(span.stop) + reach);
        placed.is_cut = placed.is_cut || (span.window_start > 0 && first <= begin + cut_px) ||
                        (span.window_stop < length && last >= end - cut_px);
    };
    place(0, tile.columns, width);
    place(1, tile.rows, height);
    return placed;
}

void DetectionPile::add(const Tile& tile, const Detections& detections) {
    const auto least = static_cast<float>(manifest_.splitting.score_threshold);
    for (const Detection& one : detections.found) {
        const Placed placed = place_box(one.box, tile, height_, width_, overlap_px_);
        if (!placed.is_held || !(one.rank_score >= least)) {
            continue;
        }
        pile_.push_back({.is_cut = placed.is_cut,
                         .rank_score = one.rank_score,
                         .class_id = one.class_id,
                         .probabilities = normalise_scores(one.class_scores, one.class_id),
                         .crop = crop_mask(one.mask, manifest_.detecting->mask_side, placed.box, height_, width_,
                                           manifest_.splitting.foreground_threshold)});
    }
}

std::vector<Cell> DetectionPile::build(const Image& image, std::span<const int> order, LabelImage& labels) {
    std::stable_sort(pile_.begin(), pile_.end(), [](const Found& one, const Found& other) {
        return one.is_cut != other.is_cut ? other.is_cut : one.rank_score > other.rank_score;
    });
    Canvas canvas(height_, width_, manifest_.splitting.min_area_px, manifest_.splitting.min_visible);
    std::erase_if(pile_, [&](const Found& found) { return !canvas.paint(found.crop); });
    labels = std::move(canvas.labels());
    const Window window{.labels = labels, .image = image, .order = order, .probabilities = {}};
    const Tile whole{.rows = {0, height_, 0, height_}, .columns = {0, width_, 0, width_}};
    std::vector<Cell> cells = build_cells(measure_cells(window, whole, canvas.count()), manifest_);
    const bool is_viability = tells_viability(manifest_);
    for (std::size_t i = 0; i < cells.size(); ++i) {
        cells[i].probabilities = std::move(pile_[i].probabilities);
        cells[i].class_id =
            is_viability ? choose_live_or_dead(cells[i].probabilities, manifest_) : pile_[i].class_id;
        cells[i].score = static_cast<double>(pile_[i].rank_score);
    }
    pile_.clear();
    return cells;
}

}  // namespace cellvision
