#include "detections/detection_net.hpp"

#include <algorithm>
#include <cstring>

#include "cellvision/error.hpp"
#include "detections/nms.hpp"
#include "graphs/checked_run.hpp"
#include "graphs/signature.hpp"

namespace cellvision {
namespace {

/// Masks are made for so many boxes at a time: what they take grows with their number.
constexpr std::size_t regions_at_once = 64;

/// Outputs of a trunk before its maps.
constexpr std::size_t candidates = 4;

std::vector<Box> read_boxes(const Tensor& tensor) {
    const auto values = tensor.values<float>();
    std::vector<Box> boxes(values.size() / 4);
    std::memcpy(boxes.data(), values.data(), values.size_bytes());
    return boxes;
}

template <typename T>
Tensor to_tensor(const char* name, Element element, std::vector<std::int64_t> shape, std::span<const T> values) {
    return {.name = name,
            .element = element,
            .shape = std::move(shape),
            .bytes = std::as_bytes(values),
            .owner = nullptr};
}

}  // namespace

DetectionNet::DetectionNet(const Manifest& manifest, std::unique_ptr<GraphRunner> trunk,
                           std::unique_ptr<GraphRunner> masks)
    : manifest_(manifest), trunk_(std::move(trunk)), masks_(std::move(masks)),
      is_rated_(std::find(manifest.outputs.begin(), manifest.outputs.end(), "mask_scores") != manifest.outputs.end()) {
    if (masks_) {
        maps_ = check_parted_graphs(*trunk_, *masks_, manifest_);
    } else {
        check_detection_graph(*trunk_, manifest_);
    }
}

Detections DetectionNet::run(std::span<const std::byte> input, int height, int width) const {
    const Tensor image = to_image_tensor(manifest_, input, height, width);
    const std::string size = std::to_string(height) + "x" + std::to_string(width) + " px";
    Detections detections = masks_ ? run_parted(image, size) : run_whole(image, size);
    for (const Detection& one : detections.found) {
        if (one.class_id < 1 || one.class_id >= static_cast<int>(manifest_.classes.size())) {
            fail(ErrorKind::bundle,
                 trunk_->path().filename().string() + ": output 'classes' holds " + std::to_string(one.class_id),
                 "1 to " + std::to_string(manifest_.classes.size() - 1), "export the bundle again");
        }
    }
    return detections;
}

int DetectionNet::probe(std::span<const std::byte> input, int edge) const {
    if (masks_) {
        const auto outputs = run_trunk(to_image_tensor(manifest_, input, edge, edge), std::to_string(edge) + " px");
        const auto side = static_cast<float>(edge);
        Detections whole;
        Detection one;
        one.box = {0.0F, 0.0F, side, side};
        one.class_id = 1;
        whole.found.assign(regions_at_once, one);
        add_masks(whole, std::span(outputs).subspan(candidates), side * side);
    }
    return static_cast<int>(run(input, edge, edge).found.size());
}

Detections DetectionNet::run_whole(const Tensor& image, const std::string& size) const {
    const std::int64_t places = manifest_.detecting->max_cells;
    const std::int64_t side = manifest_.detecting->mask_side;
    const std::size_t classes = manifest_.classes.size() - 1;
    Detections result;
    result.tensors = run_graph(*trunk_, std::span(&image, 1), manifest_.outputs, size);
    const std::vector<std::vector<std::int64_t>> shapes = {
        {1, places, 4}, {1, places}, {1, places}, {1, places}, {1, places, static_cast<std::int64_t>(classes)},
        {1, places, side, side}, {1, places}};
    for (std::size_t i = 0; i < result.tensors.size(); ++i) {
        check_result(*trunk_, result.tensors[i], shapes[i]);
    }
    const auto boxes = read_boxes(result.tensors[0]);
    const auto scores = result.tensors[is_rated_ ? 6 : 1].values<float>();
    const auto class_ids = result.tensors[2].values<std::int64_t>();
    const auto valid = result.tensors[3].values<std::uint8_t>();
    const auto class_scores = result.tensors[4].values<float>();
    const auto masks = result.tensors[5].values<float>();
    const auto pixels = static_cast<std::size_t>(side * side);
    for (std::size_t i = 0; i < boxes.size(); ++i) {
        if (valid[i] != 0) {
            result.found.push_back({.box = boxes[i],
                                    .rank_score = is_rated_ ? std::clamp(scores[i], 0.0F, 1.0F) : scores[i],
                                    .class_id = static_cast<int>(std::clamp<std::int64_t>(class_ids[i], -1, 1 << 20)),
                                    .class_scores = class_scores.subspan(i * classes, classes),
                                    .mask = masks.subspan(i * pixels, pixels)});
        }
    }
    return result;
}

std::vector<Tensor> DetectionNet::run_trunk(const Tensor& image, const std::string& size) const {
    std::vector<std::string> wanted = {"boxes", "scores", "classes", "class_scores"};
    wanted.insert(wanted.end(), maps_.begin(), maps_.end());
    auto outputs = run_graph(*trunk_, std::span(&image, 1), wanted, size);
    const std::int64_t places = outputs[1].shape.back();
    const auto classes = static_cast<std::int64_t>(manifest_.classes.size()) - 1;
    const std::vector<std::vector<std::int64_t>> shapes = {
        {1, places, 4}, {1, places}, {1, places}, {1, places, classes}};
    for (std::size_t i = 0; i < candidates; ++i) {
        check_result(*trunk_, outputs[i], shapes[i]);
    }
    return outputs;
}

Detections DetectionNet::run_parted(const Tensor& image, const std::string& size) const {
    const auto outputs = run_trunk(image, size);
    const std::size_t classes = manifest_.classes.size() - 1;
    const auto boxes = read_boxes(outputs[0]);
    const auto scores = outputs[1].values<float>();
    const auto class_ids = outputs[2].values<std::int64_t>();
    const auto chosen = suppress(boxes, scores, class_ids, manifest_.detecting->nms_iou,
                                 static_cast<std::size_t>(manifest_.detecting->max_cells));
    Detections result;
    result.tensors.push_back(outputs[3]);
    for (const std::size_t at : chosen) {
        result.found.push_back({.box = boxes[at],
                                .rank_score = scores[at],
                                .class_id = static_cast<int>(std::clamp<std::int64_t>(class_ids[at], -1, 1 << 20)),
                                .class_scores = outputs[3].values<float>().subspan(at * classes, classes),
                                .mask = {}});
    }
    const auto area = static_cast<float>(image.shape[2] * image.shape[3]);
    add_masks(result, std::span(outputs).subspan(candidates), area);
    return result;
}

void DetectionNet::add_masks(Detections& detections, std::span<const Tensor> maps, float image_area) const {
    const std::int64_t side = manifest_.detecting->mask_side;
    const auto pixels = static_cast<std::size_t>(side * side);
    const std::vector<std::string> wanted =
        is_rated_ ? std::vector<std::string>{"masks", "mask_ious"} : std::vector<std::string>{"masks"};
    for (std::size_t start = 0; start < detections.found.size(); start += regions_at_once) {
        const auto some = std::span(detections.found)
                              .subspan(start, std::min(regions_at_once, detections.found.size() - start));
        const auto count = static_cast<std::int64_t>(some.size());
        std::vector<float> boxes;
        std::vector<std::int64_t> class_ids;
        const std::vector<std::int64_t> images(some.size(), 0);
        for (const Detection& one : some) {
            boxes.insert(boxes.end(), one.box.begin(), one.box.end());
            class_ids.push_back(one.class_id);
        }
        std::vector<Tensor> feeds(maps.begin(), maps.end());
        feeds.push_back(to_tensor<float>("boxes", Element::float32, {count, 4}, boxes));
        feeds.push_back(to_tensor<std::int64_t>("images", Element::int64, {count}, images));
        feeds.push_back(to_tensor<std::int64_t>("classes", Element::int64, {count}, class_ids));
        feeds.push_back(to_tensor<float>("image_area", Element::float32, {1}, std::span(&image_area, 1)));
        auto results = run_graph(*masks_, feeds, wanted, std::to_string(count) + " cells");
        check_result(*masks_, results[0], {count, side, side});
        if (is_rated_) {
            check_result(*masks_, results[1], {count});
        }
        for (std::size_t i = 0; i < some.size(); ++i) {
            some[i].mask = results[0].values<float>().subspan(i * pixels, pixels);
            if (is_rated_) {
                some[i].rank_score = std::clamp(some[i].rank_score * results[1].values<float>()[i], 0.0F, 1.0F);
            }
        }
        detections.tensors.push_back(std::move(results[0]));
    }
}

}  // namespace cellvision
