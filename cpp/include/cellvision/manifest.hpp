#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cellvision/image.hpp"

namespace cellvision {

/// No size or number of a bundle or an Options may be larger, so that sums of a few of them are whole numbers still.
inline constexpr int largest_size = 500'000'000;

/// One image channel: its name, and its role where there is one ("nuclear", "live", "dead", or "").
struct Channel {
    std::string name;
    std::string role;
};

/// One file of a bundle that runs.
struct Graph {
    std::string role;       ///< "whole", or "trunk" and "masks" of a parted instance net
    std::string file;       ///< plain file name inside the bundle folder
    std::string sha256;     ///< of that file, 64 lowercase hex digits
    std::string engine = "onnx";     ///< "onnx", "tensorrt" or "tensorrt_rtx"
    std::string precision = "fp32";  ///< "fp32", "fp16" or "int8"
};

/// How an instance net's candidates become detections.
struct Detecting {
    double nms_iou = 0.6;  ///< of two boxes of one class that overlap by more, the worse is dropped; in (0, 1)
    double min_score = 0.0; ///< boxes with a lower score get no mask; the graph leaves them out, from 0 up and below 1
    int max_cells = 1000;  ///< so many of an image's (or tile's) best are kept
    int mask_side = 28;    ///< px of a mask, which is stretched over its box
};

/// How a net's outputs become separate cells.
struct Splitting {
    std::string method = "distance";     ///< "distance", "components" or "instances"
    double foreground_threshold = 0.5;   ///< a pixel is foreground where 1 - P(background), or its mask, reaches it
    double seed_threshold = 0.5;         ///< a cell's core is where the distance map reaches it
    double score_threshold = 0.5;        ///< "instances": detections with a lower score are dropped
    double min_visible = 0.5;            ///< "instances": smallest share of a mask that better cells must leave free
    int min_area_px = 20;                ///< smaller cells are dropped
    int min_seed_px = 3;                 ///< smaller cores start no cell of their own
};

/// Everything that a runner needs to know of a net, from ``manifest.json`` (format version 2).
struct Manifest {
    std::string model;                     ///< e.g. "unet"
    std::string kind;                      ///< "semantic", "viability" or "instance"
    std::vector<Graph> graphs;             ///< one "whole", or "trunk" and "masks"
    DType input_dtype = DType::float32;    ///< of the graph's input "image" (B, C, H, W)
    std::vector<DType> image_dtypes;       ///< of images whose counts mean what the training counts meant
    std::vector<Channel> channels;         ///< in the graph's order
    std::optional<double> pixel_size_um;   ///< of the training images
    std::vector<std::string> classes;      ///< (K,), background first
    std::vector<std::string> outputs;      ///< of a whole graph, in order
    int stride = 1;                        ///< px; tile origins are multiples of it
    Splitting splitting;
    std::optional<Detecting> detecting;    ///< of instance nets
    double live_threshold = 0.5;           ///< a cell is live where P(live) reaches it
    int tile_px = 512;                     ///< edge of a tile's core, a multiple of the stride
    int overlap_px = 96;                   ///< margin read around it, a multiple of the stride
    int nucleus_margin_px = 0;             ///< not used when predicting
    bool has_exact_tiles = true;           ///< tiles show the net all that a pixel's result depends on

    /// The graph of a role; throws Error where the bundle has none.
    [[nodiscard]] const Graph& find_graph(std::string_view role) const;
    [[nodiscard]] bool is_parted() const noexcept { return graphs.size() > 1; }
    [[nodiscard]] std::vector<std::string> channel_names() const;
};

/// The manifest of a bundle folder, after checking format, keys, values, and the hash of every graph; else Error.
[[nodiscard]] Manifest load_manifest(const std::filesystem::path& folder);

/// Hex SHA-256 of a file's bytes.
[[nodiscard]] std::string compute_sha256(const std::filesystem::path& file);

}  // namespace cellvision
