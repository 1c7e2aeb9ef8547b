#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "cellvision/image.hpp"

namespace cellvision {

/// What the header of an image file says.
struct ImageInfo {
    int channels = 0;                        ///< of what `read_image` returns; an alpha channel is not counted
    int height = 0;                          ///< px
    int width = 0;                           ///< px
    DType dtype = DType::uint8;              ///< of what `read_image` returns
    std::vector<std::string> channel_names;  ///< from OME-XML, one per channel; empty where the file does not name all
    std::optional<double> pixel_size_um;     ///< edge of a pixel in micrometres; nothing where the file does not say,
                                             ///< says different things for x and y, or states a print resolution
};

/// What the header of a TIFF, PNG or JPEG file says; no pixel is decoded. Throws as `read_image` does.
[[nodiscard]] ImageInfo read_info(const std::filesystem::path& path);

/// The image as raw counts, the same as cellvision.data.images.read_image gives in Python.
///
/// uint8, uint16 and float32 come back as stored; 1-bit images as uint8 0 and 1; every other type as float32 if that
/// holds each value exactly. An alpha channel is dropped if it is opaque everywhere. A palette PNG comes back as red,
/// green, blue. The format is read from the first bytes of the file, not from its name.
///
/// @param max_samples largest number of samples (pixels x channels) that is read; nothing for 2**31, less where a small
///     file claims a vast image.
/// @throws Error (data): missing, empty, damaged, too large, or what cannot be read faithfully.
[[nodiscard]] Image read_image(const std::filesystem::path& path,
                               std::optional<std::uint64_t> max_samples = std::nullopt);

/// Labels from a one-channel PNG or TIFF of whole numbers (any type, or palette indices); else Error.
[[nodiscard]] LabelImage read_label_image(const std::filesystem::path& path);

/// The file name without ``.png``, ``.tif``, ``.ome.tif`` ..: what image and label file have in common.
[[nodiscard]] std::string image_stem(const std::filesystem::path& path);

/// The image files directly in a folder, sorted by name, hidden ones left out; Error where there is none.
[[nodiscard]] std::vector<std::filesystem::path> list_images(const std::filesystem::path& folder);

}  // namespace cellvision
