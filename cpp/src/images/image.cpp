#include "cellvision/image.hpp"

#include "cellvision/error.hpp"

namespace cellvision {

std::size_t size_of(DType dtype) noexcept {
    switch (dtype) {
        case DType::uint8: return 1;
        case DType::uint16: return 2;
        case DType::float32: return 4;
    }
    return 0;
}

std::string_view to_name(DType dtype) noexcept {
    switch (dtype) {
        case DType::uint8: return "uint8";
        case DType::uint16: return "uint16";
        case DType::float32: return "float32";
    }
    return "";
}

DType to_dtype(std::string_view name) {
    for (const DType dtype : {DType::uint8, DType::uint16, DType::float32}) {
        if (to_name(dtype) == name) {
            return dtype;
        }
    }
    fail(ErrorKind::data, "pixels of type " + std::string(name), "uint8, uint16 or float32", "save the image as one");
}

Image::Image(int planes, int rows, int columns, DType type)
    : channels(planes), height(rows), width(columns), dtype(type) {
    data.resize(static_cast<std::size_t>(channels) * pixels() * size_of(dtype));
}

std::size_t Image::pixels() const noexcept {
    return static_cast<std::size_t>(height) * static_cast<std::size_t>(width);
}

std::span<const std::byte> Image::plane(int channel) const {
    const std::size_t bytes = pixels() * size_of(dtype);
    return std::span(data).subspan(static_cast<std::size_t>(channel) * bytes, bytes);
}

std::span<std::byte> Image::plane(int channel) {
    const std::size_t bytes = pixels() * size_of(dtype);
    return std::span(data).subspan(static_cast<std::size_t>(channel) * bytes, bytes);
}

}  // namespace cellvision
