#include "cellvision/manifest.hpp"

#include <algorithm>
#include <array>
#include <fstream>
#include <set>

#include "bundle/record.hpp"
#include "bundle/sha256.hpp"
#include "cellvision/error.hpp"

namespace cellvision {
namespace {

using nlohmann::json;

constexpr int format_version = 2;
constexpr std::array<std::string_view, 5> field_columns = {"image", "cells", "viability_percent", "low_percent",
                                                           "high_percent"};
const std::vector<std::string> detection_outputs = {"boxes", "scores", "classes", "valid", "class_scores", "masks"};

[[noreturn]] void fail_unusable(const std::filesystem::path& folder, const std::string& why) {
    fail(ErrorKind::bundle, (folder / "manifest.json").string() + " " + why, "an unaltered bundle",
         "export the bundle again");
}

Channel read_channel(const json& value) {
    const Record record(value, "channels.", {"name"}, {"role"});
    const json role = record.has("role") ? record.at("role") : json("");
    check_value(role.is_string(), "channels.role", role, "nuclear, live, dead or \"\"", "nuclear");
    return {.name = record.read_name("name", "DAPI"), .role = role.get<std::string>()};
}

Graph read_graph(const json& value) {
    const Record record(value, "graphs.", {"role", "file", "sha256"}, {"engine", "precision"});
    Graph graph{.role = record.read_choice("role", {"whole", "trunk", "masks"}, "whole"),
                .file = record.read_name("file", "graph.onnx"),
                .sha256 = record.read_name("sha256", "what sha256sum prints for the file"),
                .engine = record.read_choice("engine", {"onnx", "tensorrt", "tensorrt_rtx"}, "onnx"),
                .precision = record.read_choice("precision", {"fp32", "fp16", "int8"}, "fp32")};
    const bool is_digest =
        graph.sha256.size() == 64 && graph.sha256.find_first_not_of("0123456789abcdef") == std::string::npos;
    check_value(is_digest, "graphs.sha256", record.at("sha256"), "64 lowercase hex digits", "what sha256sum prints");
    return graph;
}

Splitting read_splitting(const json& value) {
    const Record record(value, "splitting.", {},
                        {"method", "foreground_threshold", "seed_threshold", "score_threshold", "min_visible",
                         "min_area_px", "min_seed_px"});
    return {.method = record.read_choice("method", {"distance", "components", "instances"}, "distance"),
            .foreground_threshold = record.read_share("foreground_threshold", 0.5),
            .seed_threshold = record.read_share("seed_threshold", 0.5),
            .score_threshold = record.read_share("score_threshold", 0.5),
            .min_visible = record.read_share("min_visible", 0.5),
            .min_area_px = record.read_whole("min_area_px", 1, 20),
            .min_seed_px = record.read_whole("min_seed_px", 1, 3)};
}

Detecting read_detecting(const json& value) {
    const Record record(value, "detecting.", {}, {"nms_iou", "min_score", "max_cells", "mask_side"});
    const bool has_least = record.has("min_score") && record.at("min_score") != 0;
    return {.nms_iou = record.read_share("nms_iou", 0.6),
            .min_score = has_least ? record.read_share("min_score", 0.0) : 0.0,
            .max_cells = record.read_whole("max_cells", 1, 1000),
            .mask_side = record.read_whole("mask_side", 1, 28)};
}

template <typename Read>
auto read_each(const json& list, Read read) {
    std::vector<decltype(read(list))> found;
    for (const json& value : list) {
        found.push_back(read(value));
    }
    return found;
}

template <typename Records, typename Member>
bool are_different(const Records& records, Member member) {
    std::set<std::string> names;
    const auto is_new = [&](const auto& one) { return names.insert(one.*member).second; };
    return std::all_of(records.begin(), records.end(), is_new);
}

void check_graphs(const Manifest& found, const Record& record) {
    std::vector<std::string> roles;
    for (const Graph& graph : found.graphs) {
        roles.push_back(graph.role);
    }
    const bool is_parted = roles == std::vector<std::string>{"trunk", "masks"};
    const bool is_right = roles == std::vector<std::string>{"whole"} || (found.kind == "instance" && is_parted);
    check_value(is_right, "graphs.role", json(roles), "whole, or trunk and masks of an instance net", "whole");
    check_value(are_different(found.graphs, &Graph::file), "graphs.file", record.at("graphs"), "different names",
                "trunk.onnx, masks.onnx");
}

void check_outputs(const Manifest& found, const Record& record) {
    const json& shown = record.at("outputs");
    const bool has_distance = std::find(found.outputs.begin(), found.outputs.end(), "distance") != found.outputs.end();
    if (found.kind == "instance") {
        auto rated = detection_outputs;
        rated.emplace_back("mask_scores");
        check_value(found.outputs == detection_outputs || found.outputs == rated, "outputs", shown,
                    "boxes, scores, classes, valid, class_scores, masks, and mask_scores where the net rates its masks",
                    "boxes, ..");
    } else {
        check_value(found.outputs.front() == "probabilities", "outputs", shown, "probabilities first",
                    "probabilities, distance");
        check_value(found.splitting.method != "distance" || has_distance, "outputs", shown,
                    "distance too for splitting.method=distance", "probabilities, distance");
    }
    check_value((found.kind == "instance") == (found.splitting.method == "instances"), "splitting.method",
                json(found.splitting.method), "instances for kind=instance, and only there",
                found.kind == "instance" ? "instances" : "components");
}

/// The table of fields has a column for each class.
void check_classes(const Manifest& found, const json& shown) {
    const auto has_class = [&](std::string_view name) {
        return std::find(found.classes.begin() + 1, found.classes.end(), name) != found.classes.end();
    };
    check_value(std::none_of(field_columns.begin(), field_columns.end(), has_class), "classes", shown,
                "other names than the columns image, cells, viability_percent, low_percent, high_percent of fields.csv",
                "background, cell");
    check_value(found.kind != "viability" || (has_class("live") && has_class("dead")), "classes", shown,
                "live and dead after the background, for viability", "background, live, dead");
}

void check_meaning(const Manifest& found, const Record& record) {
    check_graphs(found, record);
    check_value(are_different(found.channels, &Channel::name) && !found.channels.empty(), "channels.name",
                record.at("channels"), "at least one name, all different", "DAPI, PI");
    check_classes(found, record.at("classes"));
    check_outputs(found, record);
    check_value((found.kind == "instance") == found.detecting.has_value(), "detecting",
                record.has("detecting") ? record.at("detecting") : json(),
                "nms_iou, max_cells and mask_side for kind=instance, null for others",
                found.kind == "instance" ? "{\"max_cells\": 1000}" : "null");
    for (const auto& [key, value] : {std::pair("tile_px", found.tile_px), std::pair("overlap_px", found.overlap_px)}) {
        check_value(value % found.stride == 0, key, json(value), "a multiple of stride=" + std::to_string(found.stride),
                    std::to_string((value / found.stride + 1) * found.stride));
    }
}

/// What the export found out of the net; a bundle need not say it.
bool read_exact_tiles(const json& object) {
    const json provenance = object.value("provenance", json());
    const json tiling = provenance.is_object() ? provenance.value("tiling", json()) : json();
    const json exact = tiling.is_object() ? tiling.value("exact", json()) : json();
    return !exact.is_boolean() || exact.get<bool>();
}

Manifest read_manifest(const json& object) {
    const Record record(object, "",
                        {"model", "kind", "graphs", "input_dtype", "image_dtypes", "channels", "pixel_size_um",
                         "classes", "outputs", "stride", "splitting"},
                        {"format", "format_version", "detecting", "live_threshold", "tile_px", "overlap_px",
                         "nucleus_margin_px", "recipe", "parity", "accuracy", "latency", "gate", "provenance",
                         "versions"});
    Manifest found;
    found.model = record.read_name("model", "unet");
    found.kind = record.read_choice("kind", {"semantic", "viability", "instance"}, "semantic");
    found.graphs = read_each(record.read_list("graphs"), read_graph);
    found.input_dtype = to_dtype(record.read_choice("input_dtype", {"uint8", "uint16", "float32"}, "float32"));
    for (const std::string& name : record.read_names("image_dtypes", 1, "uint8, uint16")) {
        const bool is_known = name == "uint8" || name == "uint16" || name == "float32";
        check_value(is_known, "image_dtypes", json(name), "one of uint8, uint16, float32", "uint8, uint16");
        found.image_dtypes.push_back(to_dtype(name));
    }
    found.channels = read_each(record.read_list("channels"), read_channel);
    if (const json& size = record.at("pixel_size_um"); !size.is_null()) {
        check_value(size.is_number() && is_pixel_size(size.get<double>()), "pixel_size_um", size,
                    std::string(pixel_sizes) + ", or null where unknown", "0.5");
        found.pixel_size_um = size.get<double>();
    }
    found.classes = record.read_names("classes", 2, "background, cell");
    found.outputs = record.read_names("outputs", 1, "probabilities, distance");
    found.stride = record.read_whole("stride", 1, 16);
    found.splitting = read_splitting(record.at("splitting"));
    if (record.has("detecting") && !record.at("detecting").is_null()) {
        found.detecting = read_detecting(record.at("detecting"));
    }
    found.live_threshold = record.read_share("live_threshold", 0.5);
    found.tile_px = record.read_whole("tile_px", 1, 512);
    found.overlap_px = record.read_whole("overlap_px", 0, 96);
    found.nucleus_margin_px = record.read_whole("nucleus_margin_px", 0, 0);
    found.has_exact_tiles = read_exact_tiles(object);
    check_meaning(found, record);
    return found;
}

json read_json(const std::filesystem::path& folder) {
    std::ifstream stream(folder / "manifest.json", std::ios::binary);
    std::error_code unseen;
    if (!stream || !std::filesystem::is_regular_file(folder / "manifest.json", unseen)) {
        fail(ErrorKind::bundle, folder.string() + " has no manifest.json", "a bundle folder",
             "python export.py ckpt=... bundle=DIR");
    }
    json object;
    try {
        object = json::parse(stream);
    } catch (const json::exception& error) {
        fail_unusable(folder, std::string("is not JSON (") + error.what() + ")");
    }
    if (!object.is_object() || object.value("format", json()) != "cellvision-bundle") {
        fail_unusable(folder, "is not of format 'cellvision-bundle'");
    }
    if (const json version = object.value("format_version", json());
        !version.is_number_integer() || version != format_version) {
        fail_unusable(folder, "has format version " + version.dump() + ", this release reads " +
                                  std::to_string(format_version));
    }
    return object;
}

void check_graph_file(const std::filesystem::path& folder, const Graph& graph) {
    if (std::filesystem::path(graph.file).filename() != graph.file) {
        fail_unusable(folder, "names the graph '" + graph.file + "', which is not a plain file name");
    }
    const auto path = folder / graph.file;
    if (!std::filesystem::is_regular_file(std::filesystem::symlink_status(path))) {
        fail_unusable(folder, "names the graph '" + graph.file + "', which is no file beside it");
    }
    if (const std::string found = compute_sha256(path); found != graph.sha256) {
        fail_unusable(folder, "expects SHA-256 " + graph.sha256.substr(0, 12) + ".. of " + graph.file + ", found " +
                                  found.substr(0, 12) + "..");
    }
}

}  // namespace

const Graph& Manifest::find_graph(std::string_view role) const {
    const auto at = std::find_if(graphs.begin(), graphs.end(), [&](const Graph& graph) { return graph.role == role; });
    if (at == graphs.end()) {
        fail(ErrorKind::bundle, "a bundle without a graph " + std::string(role), "one", "export the bundle again");
    }
    return *at;
}

std::vector<std::string> Manifest::channel_names() const {
    std::vector<std::string> names;
    for (const Channel& channel : channels) {
        names.push_back(channel.name);
    }
    return names;
}

Manifest load_manifest(const std::filesystem::path& folder) {
    const json object = read_json(folder);
    Manifest found;
    try {
        found = read_manifest(object);
    } catch (const Error& error) {
        throw Error(error.kind(), (folder / "manifest.json").string() + ": " + error.what());
    }
    for (const Graph& graph : found.graphs) {
        check_graph_file(folder, graph);
    }
    return found;
}

std::string compute_sha256(const std::filesystem::path& file) {
    std::ifstream stream(file, std::ios::binary);
    if (!stream) {
        fail(ErrorKind::data, file.string() + " cannot be read", "a file", "check its path and rights");
    }
    Sha256 digest;
    std::vector<std::byte> piece(std::size_t{1} << 20);
    while (stream) {
        stream.read(reinterpret_cast<char*>(piece.data()), static_cast<std::streamsize>(piece.size()));
        digest.add(std::span(piece).first(static_cast<std::size_t>(stream.gcount())));
    }
    return digest.finish();
}

}  // namespace cellvision
