#include "graphs/signature.hpp"

#include <algorithm>

#include "cellvision/error.hpp"

namespace cellvision {
namespace {

constexpr std::int64_t any = -1;  // in an expected shape: fixed or free

/// Whether a graph's port has the expected name, element, rank and fixed sizes; free sizes of the graph fit all.
bool matches(const Port& found, const Port& expected) {
    return found.name == expected.name && found.element == expected.element &&
           std::equal(found.shape.begin(), found.shape.end(), expected.shape.begin(), expected.shape.end(),
                      [](std::int64_t one, std::int64_t other) { return one < 0 || other < 0 || one == other; });
}

std::string describe(const std::vector<Port>& ports) {
    std::string text;
    for (const Port& port : ports) {
        text.append(text.empty() ? "" : ", ").append(port.name).append(": ").append(to_text(port.element)).append(" [");
        for (std::size_t i = 0; i < port.shape.size(); ++i) {
            text.append(i > 0 ? ", " : "").append(port.shape[i] < 0 ? "free" : std::to_string(port.shape[i]));
        }
        text.append("]");
    }
    return text;
}

void check(const GraphRunner& graph, const char* what, const std::vector<Port>& found,
           const std::vector<Port>& expected) {
    const bool is_right = found.size() == expected.size() &&
                          std::all_of(expected.begin(), expected.end(), [&](const Port& port) {
                              return std::any_of(found.begin(), found.end(),
                                                 [&](const Port& one) { return matches(one, port); });
                          });
    if (!is_right) {
        fail(ErrorKind::bundle, graph.path().string() + " has " + what + " " + describe(found),
             what + std::string(" ") + describe(expected), "export the bundle again");
    }
}

/// The graph must leave batch, height and width free: a fixed one would run at one size only.
void check_image(const GraphRunner& graph, const Manifest& manifest) {
    const Port image{"image", to_element(manifest.input_dtype),
                     {any, static_cast<std::int64_t>(manifest.channels.size()), any, any}};
    check(graph, "inputs", graph.inputs(), {image});
    const auto& shape = graph.inputs().front().shape;
    if (shape[0] >= 0 || shape[2] >= 0 || shape[3] >= 0) {
        fail(ErrorKind::bundle, graph.path().string() + " has inputs " + describe(graph.inputs()),
             "inputs of any batch, height and width", "export the bundle again");
    }
}

}  // namespace

void check_map_graph(const GraphRunner& graph, const Manifest& manifest) {
    std::vector<Port> expected;
    for (const std::string& name : manifest.outputs) {
        const std::int64_t planes = name == "probabilities" ? static_cast<std::int64_t>(manifest.classes.size()) : 1;
        if (name != "probabilities" && name != "distance") {
            fail(ErrorKind::bundle, graph.path().string() + " has the output " + name,
                 "outputs among probabilities, distance", "export the bundle again");
        }
        expected.push_back({name, Element::float32, {any, planes, any, any}});
    }
    check_image(graph, manifest);
    check(graph, "outputs", graph.outputs(), expected);
}

void check_detection_graph(const GraphRunner& graph, const Manifest& manifest) {
    const std::int64_t cells = manifest.detecting->max_cells;
    const std::int64_t side = manifest.detecting->mask_side;
    const auto classes = static_cast<std::int64_t>(manifest.classes.size()) - 1;
    std::vector<Port> expected = {
        {"boxes", Element::float32, {any, cells, 4}},
        {"scores", Element::float32, {any, cells}},
        {"classes", Element::int64, {any, cells}},
        {"valid", Element::boolean, {any, cells}},
        {"class_scores", Element::float32, {any, cells, classes}},
        {"masks", Element::float32, {any, cells, side, side}},
        {"mask_scores", Element::float32, {any, cells}}};
    expected.resize(manifest.outputs.size());
    check_image(graph, manifest);
    check(graph, "outputs", graph.outputs(), expected);
}

std::vector<std::string> check_parted_graphs(const GraphRunner& trunk, const GraphRunner& masks,
                                             const Manifest& manifest) {
    const std::int64_t side = manifest.detecting->mask_side;
    const auto classes = static_cast<std::int64_t>(manifest.classes.size()) - 1;
    std::vector<std::string> names;
    std::vector<Port> candidates = {{"boxes", Element::float32, {any, any, 4}},
                                    {"scores", Element::float32, {any, any}},
                                    {"classes", Element::int64, {any, any}},
                                    {"class_scores", Element::float32, {any, any, classes}}};
    std::vector<Port> regions = {{"boxes", Element::float32, {any, 4}},
                                 {"images", Element::int64, {any}},
                                 {"classes", Element::int64, {any}},
                                 {"image_area", Element::float32, {1}}};
    const auto maps = std::max<std::ptrdiff_t>(
        1, std::count_if(trunk.outputs().begin(), trunk.outputs().end(),
                         [](const Port& port) { return port.name.starts_with("map_"); }));
    for (std::ptrdiff_t level = 0; level < maps; ++level) {
        names.push_back("map_" + std::to_string(level));
        candidates.push_back({names.back(), Element::float32, {any, any, any, any}});
        regions.push_back(candidates.back());
    }
    std::vector<Port> results = {{"masks", Element::float32, {any, side, side}}};
    if (std::find(manifest.outputs.begin(), manifest.outputs.end(), "mask_scores") != manifest.outputs.end()) {
        results.push_back({"mask_ious", Element::float32, {any}});
    }
    check_image(trunk, manifest);
    check(trunk, "outputs", trunk.outputs(), candidates);
    check(masks, "inputs", masks.inputs(), regions);
    check(masks, "outputs", masks.outputs(), results);
    return names;
}

}  // namespace cellvision
