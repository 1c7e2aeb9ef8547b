// What is written is read back the same, and staged files appear whole or not at all: write_and_read FOLDER
#include <filesystem>
#include <iostream>
#include <string>

#include "cellvision/error.hpp"
#include "cellvision/image_io.hpp"
#include "cellvision/writers.hpp"

namespace {

namespace fs = std::filesystem;
using namespace cellvision;

int failures = 0;

void expect(bool is_right, const std::string& what) {
    if (!is_right) {
        std::cerr << "failed: " << what << '\n';
        ++failures;
    }
}

LabelImage make_labels(int height, int width, std::int32_t largest) {
    LabelImage labels(height, width);
    for (std::size_t i = 0; i < labels.data.size(); ++i) {
        labels.data[i] = i % 7 == 0 ? 0 : static_cast<std::int32_t>(i % static_cast<std::size_t>(largest));
    }
    labels.data.back() = largest;
    return labels;
}

void check_labels(const fs::path& folder, int height, int width, std::int32_t largest) {
    const LabelImage labels = make_labels(height, width, largest);
    const fs::path path = folder / "labels.tif";
    write_label_image(path, labels, 0.65);
    const LabelImage read = read_label_image(path);
    expect(read.height == height && read.width == width && read.data == labels.data,
           "labels up to " + std::to_string(largest) + " of " + std::to_string(height) + "x" + std::to_string(width));
    const ImageInfo info = read_info(path);
    expect(info.pixel_size_um && *info.pixel_size_um > 0.6499 && *info.pixel_size_um < 0.6501, "pixel size");
}

void check_staging(const fs::path& folder) {
    const fs::path made = folder / "made";
    {
        StagedFiles files(made);
        std::ofstream(files.path("a.txt")) << "a";
        expect(!fs::exists(made / "a.txt"), "nothing has its name before commit");
    }
    expect(!fs::exists(made), "a folder made for what was not committed is gone");
    StagedFiles files(made);
    std::ofstream(files.path("a.txt")) << "a";
    files.commit();
    expect(fs::exists(made / "a.txt"), "commit gives the name");
    bool is_refused = false;
    try {
        const StagedFiles odd(made / "a.txt");
    } catch (const Error&) {
        is_refused = true;
    }
    expect(is_refused, "a file is no folder");
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 2) {
        std::cerr << "usage: write_and_read FOLDER\n";
        return 2;
    }
    const fs::path folder = arguments[1];
    fs::remove_all(folder);
    fs::create_directories(folder);
    check_labels(folder, 1, 1, 2);
    check_labels(folder, 64, 31, 65535);
    check_labels(folder, 65, 31, 65536);
    check_labels(folder, 200, 1, 70000);
    check_staging(folder);
    expect(format_number(0.1) == "0.1", "0.1");
    expect(format_number(1e-5) == "1e-05", "1e-05");
    expect(format_number(1234567890.0) == "1.23456789e+09", "1.23456789e+09");
    std::cout << (failures == 0 ? "all right\n" : "");
    return failures == 0 ? 0 : 1;
}
