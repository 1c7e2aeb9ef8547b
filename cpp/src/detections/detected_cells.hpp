#pragma once

#include <vector>

#include "cellvision/cells.hpp"
#include "cellvision/image.hpp"
#include "cellvision/manifest.hpp"
#include "detections/detection_net.hpp"
#include "detections/masks.hpp"
#include "tiles/tiling.hpp"

namespace cellvision {

/// Collects what the tiles of one image found, and paints it.
///
/// A cell that two tiles see is found by both. A tile keeps the detections whose middle lies in its core grown by half
/// the overlap; whole detections are painted before those that a window's side may have cut, best first; and painting
/// drops a detection whose pixels are taken, whichever tile it came from. Of each detection only its pixels are kept.
class DetectionPile {
public:
    /// For an image of height x width px; margin around a core `overlap_px`.
    DetectionPile(const Manifest& manifest, int height, int width, int overlap_px)
        : manifest_(manifest), height_(height), width_(width), overlap_px_(overlap_px) {}

    /// Takes in what a tile found, boxes in px of its window. Tiles come row by row, left to right.
    void add(const Tile& tile, const Detections& detections);

    /// Paints all of them; the pile is empty afterwards.
    ///
    /// @param image raw counts; `order` are its channels to measure.
    /// @param labels receives the label image, 1..N from the best to the worst.
    [[nodiscard]] std::vector<Cell> build(const Image& image, std::span<const int> order, LabelImage& labels);

private:
    struct Found {
        bool is_cut = false;
        float rank_score = 0.0F;
        int class_id = 0;
        std::vector<double> probabilities;
        MaskCrop crop;
    };

    const Manifest& manifest_;
    int height_;
    int width_;
    int overlap_px_;
    std::vector<Found> pile_;
};

/// A detection's box in px of the image, whether the tile answers for it, and whether its window may have cut it.
struct Placed {
    Box box{};
    bool is_held = true;
    bool is_cut = false;
};

[[nodiscard]] Placed place_box(const Box& box, const Tile& tile, int height, int width, int overlap_px);

}  // namespace cellvision
