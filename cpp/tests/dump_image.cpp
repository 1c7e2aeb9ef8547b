// For the comparison with Python's reader: an image file's counts on stdout, after one line of what is known of it.
//
//   dump_image FILE [labels]
#include <cstdio>
#include <iostream>
#include <span>
#include <string>

#include "cellvision/error.hpp"
#include "cellvision/image_io.hpp"

namespace {

void write(std::span<const std::byte> bytes) {
    std::cout.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

void dump_image(const char* path) {
    const cellvision::ImageInfo info = cellvision::read_info(path);
    const cellvision::Image image = cellvision::read_image(path);
    std::string names;
    for (const std::string& name : image.channel_names) {
        names += (names.empty() ? "" : ",") + name;
    }
    std::array<char, 40> pixel{};
    std::snprintf(pixel.data(), pixel.size(), "%.17g", image.pixel_size_um.value_or(0.0));
    const bool agrees = info.channels == image.channels && info.height == image.height && info.width == image.width &&
                        info.dtype == image.dtype && info.pixel_size_um == image.pixel_size_um;
    std::cout << image.channels << '|' << image.height << '|' << image.width << '|'
              << cellvision::to_name(image.dtype) << '|' << names << '|' << pixel.data() << '|'
              << (agrees ? "agrees" : "differs") << '\n';
    write(image.data);
}

}  // namespace

int main(int count, char** arguments) {
    try {
        if (count == 3) {
            const cellvision::LabelImage labels = cellvision::read_label_image(arguments[1]);
            std::cout << labels.height << '|' << labels.width << '\n';
            write(std::as_bytes(std::span(labels.data)));
        } else if (count == 2) {
            dump_image(arguments[1]);
        }
    } catch (const cellvision::Error& error) {
        std::cerr << error.what() << '\n';
        return 2;
    }
    return 0;
}
