#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "cellvision/cells.hpp"
#include "cellvision/image.hpp"
#include "cellvision/manifest.hpp"

namespace cellvision {

/// So many threads as the machine has, or 16: many more only wait for each other, for minutes.
[[nodiscard]] int find_most_threads();

/// How a bundle is run. What is left out is the bundle's own.
struct Options {
    int threads = 0;  ///< processor threads of the net, up to find_most_threads(); 0 for all cores
    std::string provider = "cpu";                        ///< "cpu", "cuda", "tensorrt", "openvino" ..; no fallback
    std::map<std::string, std::string> provider_options; ///< passed on as they are, e.g. {"device_id", "1"}
    std::optional<int> tile_px;     ///< distance between tiles; nothing: the bundle's, smaller as memory asks
    std::optional<int> overlap_px;  ///< margin around each tile; better at least as wide as a cell
    int batch = 1;                  ///< at most so many tiles of one size go through the net at once
    int memory_mib = 1024;          ///< most memory for predicting one image, beside image, labels and cells
    /// What becomes of the working memory of a run: "keep" holds it for the next, which is fastest; "shrink" gives it
    /// back after each; so does "none" on the processor, where no more is held than was in use at once, while on others
    /// it asks for every piece anew.
    std::string arena = "keep";
    /// Called before each batch of tiles, in the thread that predicts; what it throws ends that prediction.
    std::function<void()> before_tiles;
    std::filesystem::path ort_library;  ///< ONNX Runtime; empty: $CELLVISION_ORT_LIBRARY, else the system's
};

/// Where the time went since the predictor was opened, in seconds.
struct Timings {
    double open_s = 0.0;   ///< reading the bundle and starting the net
    double net_s = 0.0;    ///< in the net, all images
    double cells_s = 0.0;  ///< from the net's outputs to cells, all images
    int images = 0;        ///< predicted so far
    int tiles = 0;         ///< run so far
};

/// Runs a bundle on images: an image in, its cells out, of any size and in bounded memory, as the Python Predictor.
///
/// One predictor may be used by several threads at once.
class Predictor {
public:
    /// Opens a bundle folder as written by export. Throws Error where bundle, provider or a number cannot be used.
    explicit Predictor(const std::filesystem::path& bundle_dir, const Options& options = {});
    ~Predictor();
    Predictor(Predictor&&) noexcept;
    Predictor& operator=(Predictor&&) noexcept;
    Predictor(const Predictor&) = delete;
    Predictor& operator=(const Predictor&) = delete;

    /// The cells of an image.
    ///
    /// @param image raw counts of a type in the manifest's image_dtypes. Where it names its channels, the bundle's
    ///     channels are found by name; else they are taken in the bundle's order.
    /// @param intensity_scale factor from the image's counts to the training counts, e.g. 257 from 8 to 16 bits;
    ///     nothing for equal units.
    [[nodiscard]] Cells operator()(const Image& image, std::optional<double> intensity_scale = std::nullopt) const;

    [[nodiscard]] const Manifest& manifest() const noexcept;
    [[nodiscard]] Timings timings() const;
    /// Release of ONNX Runtime that runs the net, e.g. "1.31.1"; "" where another engine does.
    [[nodiscard]] const std::string& runtime_version() const noexcept;

private:
    class Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace cellvision
