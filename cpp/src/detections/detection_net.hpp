#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cellvision/manifest.hpp"
#include "detections/masks.hpp"
#include "graphs/checked_run.hpp"
#include "graphs/graph_runner.hpp"

namespace cellvision {

/// One cell that an instance net found in a window; its arrays lie in the Detections that hold it.
struct Detection {
    Box box{};                            ///< px of the window; may reach beyond it
    float score = 0.0F;                   ///< in 0..1, that there is a cell of this class in this box
    float rank_score = 0.0F;              ///< in 0..1, by which detections compete: score times predicted mask IoU
    int class_id = 0;                     ///< 1..K-1
    std::span<const float> class_scores;  ///< (K-1,) in 0..1, not summing to 1
    std::span<const float> mask;          ///< (M * M,) in 0..1, stretched over the box
};

/// What an instance net found in one window, best first.
struct Detections {
    std::vector<Detection> found;
    std::vector<Tensor> tensors;  ///< hold the numbers
};

/// A net that finds the cells itself: in one graph, or in two with the choice of boxes between them.
class DetectionNet {
public:
    /// @param trunk the "whole" graph, or the "trunk" where `masks` is there. Throws Error unless all fit the manifest.
    DetectionNet(const Manifest& manifest, std::unique_ptr<GraphRunner> trunk, std::unique_ptr<GraphRunner> masks);

    /// What is found in each window.
    [[nodiscard]] std::vector<Detections> run(const Windows& windows) const;

    /// Runs all graphs on an image of this edge, to see what they take; the number of cells found. The second of two
    /// graphs runs for as many boxes as it ever gets at once.
    int probe(std::span<const std::byte> input, int edge) const;

private:
    [[nodiscard]] std::vector<Tensor> run_trunk(const Windows& windows) const;
    [[nodiscard]] std::vector<Detections> run_whole(const Windows& windows) const;
    [[nodiscard]] std::vector<Detections> run_parted(const Windows& windows) const;
    /// Gives each detection its mask and rank score; `images` are their windows. What holds the masks.
    [[nodiscard]] std::vector<Tensor> add_masks(std::span<Detection> found, std::span<const std::int64_t> images,
                                                std::span<const Tensor> maps, float image_area) const;

    const Manifest& manifest_;
    std::unique_ptr<GraphRunner> trunk_;
    std::unique_ptr<GraphRunner> masks_;
    std::vector<std::string> maps_;  // names of what goes from trunk to masks
    bool is_rated_;                  // whether the net rates its masks
};

}  // namespace cellvision
