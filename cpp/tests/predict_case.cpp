#include "predict_case.hpp"

#include <algorithm>
#include <future>

#include "cellvision/error.hpp"
#include "cellvision/predictor.hpp"

namespace {

using cases::expect;
using cases::expect_equal;
using cases::expect_near;

cellvision::Image read_image(const cases::Case& one) {
    cellvision::Image image(one.size("image", 0), one.size("image", 1), one.size("image", 2),
                            cellvision::to_dtype(one.dtype("image")));
    const auto raw = one.bytes("image");
    std::transform(raw.begin(), raw.end(), image.data.begin(), [](char byte) { return static_cast<std::byte>(byte); });
    if (one.has("channel_names")) {
        image.channel_names = one["channel_names"].get<std::vector<std::string>>();
    }
    if (one.has("pixel_size_um")) {
        image.pixel_size_um = one["pixel_size_um"].get<double>();
    }
    return image;
}

cellvision::Options read_options(const cases::Case& one) {
    cellvision::Options options;
    options.threads = 1;
    if (one.has("tile_px")) {
        options.tile_px = one["tile_px"].get<int>();
    }
    if (one.has("threads")) {
        options.threads = one["threads"].get<int>();
    }
    if (one.has("provider")) {
        options.provider = one["provider"].get<std::string>();
    }
    if (one.has("arena")) {
        options.arena = one["arena"].get<std::string>();
    }
    if (one.has("memory_mib")) {
        options.memory_mib = one["memory_mib"].get<int>();
    }
    if (one.has("overlap_px")) {
        options.overlap_px = one["overlap_px"].get<int>();
    }
    return options;
}

void compare_columns(const cases::Case& one, const cellvision::Cells& cells) {
    const auto class_id = one.values<std::int64_t>("class_id");
    const auto area = one.values<std::int64_t>("area_px");
    const auto bbox = one.values<std::int64_t>("bbox");
    const auto y = one.values<double>("centroid_y_px");
    const auto x = one.values<double>("centroid_x_px");
    const auto mean = one.values<double>("mean_intensity");
    const auto probabilities = one.values<double>("probabilities");
    for (std::size_t i = 0; i < cells.size(); ++i) {
        const cellvision::Cell& cell = cells.cells[i];
        const std::string place = "cell " + std::to_string(i + 1) + ": ";
        expect_near(cell.class_id, static_cast<double>(class_id[i]), 0.0, place + "class");
        expect_near(static_cast<double>(cell.area_px), static_cast<double>(area[i]), 0.0, place + "area");
        expect(std::equal(cell.bbox.begin(), cell.bbox.end(), bbox.begin() + static_cast<std::ptrdiff_t>(4 * i)),
               place + "box");
        expect_near(cell.centroid_y_px, y[i], 1e-9, place + "y");
        expect_near(cell.centroid_x_px, x[i], 1e-9, place + "x");
        for (std::size_t c = 0; c < cell.mean_intensity.size(); ++c) {
            expect_near(cell.mean_intensity[c], mean[i * cell.mean_intensity.size() + c], 1e-6, place + "intensity");
        }
        for (std::size_t k = 0; k < cell.probabilities.size(); ++k) {
            expect_near(cell.probabilities[k], probabilities[i * cell.probabilities.size() + k], 1e-6, place + "P");
        }
        expect(cell.score.has_value() == one.has_array("score"), place + "whether there is a score");
        if (cell.score) {
            expect_near(*cell.score, one.values<double>("score")[i], 1e-6, place + "score");
        }
    }
}

cellvision::Cells predict(const cases::Case& one) {
    const cellvision::Predictor predictor(one.folder() / one["bundle"].get<std::string>(), read_options(one));
    std::optional<double> scale;
    if (one.has("intensity_scale")) {
        scale = one["intensity_scale"].get<double>();
    }
    const cellvision::Image image = read_image(one);
    cellvision::Cells cells = predictor(image, scale);
    const int at_once = one.has("at_once") ? one["at_once"].get<int>() : 0;
    std::vector<std::future<cellvision::Cells>> others;
    for (int i = 0; i < at_once; ++i) {
        others.push_back(std::async(std::launch::async, [&] { return predictor(image, scale); }));
    }
    for (auto& other : others) {
        expect_equal(other.get().label_image.data, cells.label_image.data, "labels from several threads");
    }
    expect_equal(predictor.timings().tiles, (1 + at_once) * cells.tiles, "timed tiles");
    return cells;
}

}  // namespace

void check_predict(const cases::Case& one) {
    const cellvision::Cells cells = predict(one);
    expect_equal(cells.tiles, one["tiles"].get<int>(), "numbers of tiles");
    expect_equal(static_cast<int>(cells.size()), one.size("area_px", 0), "numbers of cells");
    expect_equal(cells.label_image.data, one.values<std::int32_t>("labels"), "labels");
    compare_columns(one, cells);
}

void check_unfit(const cases::Case& one) {
    try {
        static_cast<void>(predict(one));
    } catch (const cellvision::Error& error) {
        const std::string text = error.what();
        expect(text.find(one["names"].get<std::string>()) != std::string::npos, "the text is: " + text);
        expect(text.find("; need ") != std::string::npos && text.find("; try: ") != std::string::npos, text);
        return;
    }
    expect(false, "the image was accepted");
}
