// Compares the parts of the library with vectors that the Python runtime computed: core_vectors FOLDER
#include <algorithm>
#include <functional>
#include <iostream>
#include <map>

#include "bundle/sha256.hpp"
#include "case_file.hpp"
#include "cellvision/error.hpp"
#include "cellvision/manifest.hpp"
#include "cellvision/viability.hpp"
#include "detections/masks.hpp"
#include "detections/nms.hpp"
#include "graphs/engine_sidecar.hpp"
#include "graphs/external_data.hpp"
#include "maps/split.hpp"
#include "maps/watershed.hpp"
#include "predict_case.hpp"
#include "tiles/tiling.hpp"

namespace {

using cases::Case;
using cases::expect;
using cases::expect_equal;
using cases::expect_near;
using namespace cellvision;

LabelImage read_labels(const Case& one, const std::string& array) {
    LabelImage labels(one.size(array, 0), one.size(array, 1));
    labels.data = one.values<std::int32_t>(array);
    return labels;
}

void check_spans(const Case& one) {
    const auto spans = plan_spans(one["length"], one["tile_px"], one["overlap_px"]);
    std::vector<std::vector<int>> found;
    for (const Span& span : spans) {
        found.push_back({span.start, span.stop, span.window_start, span.window_stop});
    }
    expect_equal(found, one["spans"].get<std::vector<std::vector<int>>>(), "spans");
}

void check_tile(const Case& one) {
    const Costs costs{.per_window_px = one["per_window_px"],
                      .fixed = one["fixed"],
                      .per_cell = one["per_cell"],
                      .most_cells = one["most_cells"]};
    const TileLimits limits{.largest_px = one["largest_px"],
                            .smallest_px = one["smallest_px"],
                            .stride = one["stride"],
                            .overlap_px = one["overlap_px"]};
    int found = 0;
    try {
        found = choose_tile_px(one["height"], one["width"], limits, costs, one["memory_mib"]);
    } catch (const Error&) {
        found = 0;
    }
    expect_equal(found, one["tile_px"].get<int>(), "tile sizes");
}

void check_flood(const Case& one) {
    LabelImage labels = read_labels(one, "seeds");
    const auto distance = one.values<float>("distance");
    const auto mask = one.values<std::uint8_t>("mask");
    flood(distance, mask, labels);
    expect_equal(labels.data, one.values<std::int32_t>("labels"), "labels");
}

void check_split(const Case& one) {
    Splitting splitting;
    splitting.method = one["method"];
    splitting.foreground_threshold = one["foreground_threshold"];
    splitting.seed_threshold = one["seed_threshold"];
    splitting.min_area_px = one["min_area_px"];
    splitting.min_seed_px = one["min_seed_px"];
    const auto background = one.values<float>("background");
    const auto distance = one.values<float>("distance");
    const LabelImage labels =
        split_cells(background, distance, one.size("labels", 0), one.size("labels", 1), splitting);
    expect_equal(labels.data, one.values<std::int32_t>("labels"), "labels");
}

std::vector<Box> read_boxes(const Case& one) {
    const auto edges = one.values<float>("boxes");
    std::vector<Box> boxes(edges.size() / 4);
    for (std::size_t i = 0; i < edges.size(); ++i) {
        boxes[i / 4][i % 4] = edges[i];
    }
    return boxes;
}

void check_paint(const Case& one) {
    const auto boxes = read_boxes(one);
    const auto masks = one.values<float>("masks");
    const int side = one.size("masks", 1);
    const auto pixels = static_cast<std::size_t>(side) * static_cast<std::size_t>(side);
    Canvas canvas(one.size("labels", 0), one.size("labels", 1), one["min_area_px"], one["min_visible"]);
    std::vector<std::int64_t> kept;
    for (const auto at : one.values<std::int64_t>("order")) {
        const auto i = static_cast<std::size_t>(at);
        const MaskCrop crop = crop_mask(std::span(masks).subspan(i * pixels, pixels), side, boxes[i],
                                        one.size("labels", 0), one.size("labels", 1), one["mask_threshold"]);
        if (canvas.paint(crop)) {
            kept.push_back(at);
        }
    }
    expect_equal(kept, one.values<std::int64_t>("kept"), "kept detections");
    expect_equal(canvas.labels().data, one.values<std::int32_t>("labels"), "labels");
}

void check_suppress(const Case& one) {
    const auto kept = suppress(read_boxes(one), one.values<float>("scores"), one.values<std::int64_t>("classes"),
                               one["least"], one["iou"], one["most"]);
    const std::vector<std::int64_t> found(kept.begin(), kept.end());
    expect_equal(found, one.values<std::int64_t>("kept"), "kept candidates");
}

void check_viability(const Case& one) {
    const Viability found = compute_viability(one["live"], one["dead"], one["confidence"]);
    expect(found.viability.has_value() == !one["viability"].is_null(), "whether there is a viability");
    if (found.viability) {
        expect_near(*found.viability, one["viability"], 1e-12, "viability");
        expect_near(*found.low, one["low"], 1e-12, "low end");
        expect_near(*found.high, one["high"], 1e-12, "high end");
    }
}

void check_sha256(const Case& one) {
    const auto raw = one.bytes("bytes");
    const auto bytes = std::as_bytes(std::span(raw));
    for (Sha256 digest : {Sha256(), Sha256(false)}) {
        for (std::size_t at = 0, step = 1; at < bytes.size(); at += step, step = step * 3 + 1) {
            digest.add(bytes.subspan(at, std::min(step, bytes.size() - at)));  // pieces of odd sizes
        }
        expect_equal(digest.finish(), one["digest"].get<std::string>(), "digests");
    }
}

void check_external(const Case& one) {
    const auto raw = one.bytes("model");
    expect_equal(has_external_data(std::as_bytes(std::span(raw))), one["external"].get<bool>(), "findings");
}

void check_sidecar(const Case& one) {
    std::string said;
    try {
        check_engine_sidecar(one.folder() / one["engine"].get<std::string>(),
                             {.library_version = one["library_version"],
                              .gpu = one["gpu"]["name"],
                              .compute_capability = one["gpu"]["compute_capability"]});
    } catch (const Error& error) {
        said = error.what();
    }
    const auto expected = one["said"].get<std::string>();
    expect(expected.empty() ? said.empty() : said.starts_with(expected), "the text is: " + said);
}

void check_refused(const Case& one) {
    try {
        static_cast<void>(load_manifest(one.folder() / one["bundle"].get<std::string>()));
    } catch (const Error& error) {
        const std::string text = error.what();
        expect(text.find(one["names"].get<std::string>()) != std::string::npos, "the text is: " + text);
        expect(text.find("; need ") != std::string::npos && text.find("; try: ") != std::string::npos, text);
        return;
    }
    expect(false, "the bundle was accepted");
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 2) {
        std::cerr << "core_vectors FOLDER\n";
        return 2;
    }
    const std::map<std::string, std::function<void(const Case&)>> checks = {
        {"spans", check_spans},       {"tile", check_tile},         {"flood", check_flood},
        {"split", check_split},       {"paint", check_paint},       {"suppress", check_suppress},
        {"sha256", check_sha256},     {"external", check_external}, {"refused", check_refused},
        {"sidecar", check_sidecar},   {"viability", check_viability}, {"predict", check_predict},
        {"unfit", check_unfit}};
    int failed = 0;
    const auto all = cases::load(arguments[1]);
    for (const Case& one : all) {
        try {
            checks.at(one["kind"].get<std::string>())(one);
        } catch (const std::exception& error) {
            ++failed;
            std::cout << "FAILED " << one.name() << ": " << error.what() << '\n';
        }
    }
    std::cout << all.size() - static_cast<std::size_t>(failed) << " of " << all.size() << " cases agree\n";
    return failed == 0 && !all.empty() ? 0 : 1;
}
