#include "detections/detection_net.hpp"

#include <algorithm>
#include <cstring>

#include "cellvision/error.hpp"
#include "detections/nms.hpp"
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

/// A class that no net has stays one.
int to_class_id(std::int64_t found) { return static_cast<int>(std::clamp<std::int64_t>(found, -1, 1 << 20)); }

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

std::vector<Detections> DetectionNet::run(const Windows& windows) const {
    auto all = masks_ ? run_parted(windows) : run_whole(windows);
    for (const Detections& detections : all) {
        for (const Detection& one : detections.found) {
            if (one.class_id < 1 || one.class_id >= static_cast<int>(manifest_.classes.size())) {
                fail(ErrorKind::bundle,
                     trunk_->path().filename().string() + ": output 'classes' holds " + std::to_string(one.class_id),
                     "1 to " + std::to_string(manifest_.classes.size() - 1), "export the bundle again");
            }
        }
    }
    return all;
}

int DetectionNet::probe(std::span<const std::byte> input, int edge) const {
    const Windows window{.counts = input, .height = edge, .width = edge};
    if (masks_) {
        const auto outputs = run_trunk(window);
        const auto side = static_cast<float>(edge);
        Detection one;
        one.box = {0.0F, 0.0F, side, side};
        one.class_id = 1;
        std::vector<Detection> whole(regions_at_once, one);
        const std::vector<std::int64_t> images(whole.size(), 0);
        static_cast<void>(add_masks(whole, images, std::span(outputs).subspan(candidates), side * side));
    }
    return static_cast<int>(run(window)[0].found.size());
}

std::vector<Detections> DetectionNet::run_whole(const Windows& windows) const {
    const std::int64_t count = windows.count;
    const std::int64_t places = manifest_.detecting->max_cells;
    const std::int64_t side = manifest_.detecting->mask_side;
    const std::size_t classes = manifest_.classes.size() - 1;
    const Tensor image = to_image_tensor(manifest_, windows);
    const auto outputs = run_graph(*trunk_, std::span(&image, 1), manifest_.outputs, describe(windows));
    const std::vector<std::vector<std::int64_t>> shapes = {
        {count, places, 4}, {count, places}, {count, places}, {count, places},
        {count, places, static_cast<std::int64_t>(classes)}, {count, places, side, side}, {count, places}};
    for (std::size_t i = 0; i < outputs.size(); ++i) {
        check_result(*trunk_, outputs[i], shapes[i]);
    }
    const auto boxes = read_boxes(outputs[0]);
    const auto scores = outputs[1].values<float>();
    const auto rank_scores = outputs[is_rated_ ? 6 : 1].values<float>();
    const auto class_ids = outputs[2].values<std::int64_t>();
    const auto valid = outputs[3].values<std::uint8_t>();
    const auto class_scores = outputs[4].values<float>();
    const auto masks = outputs[5].values<float>();
    const auto pixels = static_cast<std::size_t>(side * side);
    std::vector<Detections> all(static_cast<std::size_t>(count), Detections{.found = {}, .tensors = outputs});
    for (std::size_t i = 0; i < boxes.size(); ++i) {
        if (valid[i] != 0) {
            all[i / static_cast<std::size_t>(places)].found.push_back(
                {.box = boxes[i],
                 .score = scores[i],
                 .rank_score = is_rated_ ? std::clamp(rank_scores[i], 0.0F, 1.0F) : scores[i],
                 .class_id = to_class_id(class_ids[i]),
                 .class_scores = class_scores.subspan(i * classes, classes),
                 .mask = masks.subspan(i * pixels, pixels)});
        }
    }
    return all;
}

std::vector<Tensor> DetectionNet::run_trunk(const Windows& windows) const {
    std::vector<std::string> wanted = {"boxes", "scores", "classes", "class_scores"};
    wanted.insert(wanted.end(), maps_.begin(), maps_.end());
    const Tensor image = to_image_tensor(manifest_, windows);
    auto outputs = run_graph(*trunk_, std::span(&image, 1), wanted, describe(windows));
    const std::int64_t count = windows.count;
    const std::int64_t places = outputs[1].shape.back();
    const auto classes = static_cast<std::int64_t>(manifest_.classes.size()) - 1;
    const std::vector<std::vector<std::int64_t>> shapes = {
        {count, places, 4}, {count, places}, {count, places}, {count, places, classes}};
    for (std::size_t i = 0; i < candidates; ++i) {
        check_result(*trunk_, outputs[i], shapes[i]);
    }
    return outputs;
}

std::vector<Detections> DetectionNet::run_parted(const Windows& windows) const {
    const auto outputs = run_trunk(windows);
    const std::size_t classes = manifest_.classes.size() - 1;
    const auto places = static_cast<std::size_t>(outputs[1].shape.back());
    const auto boxes = read_boxes(outputs[0]);
    const auto scores = outputs[1].values<float>();
    const auto class_ids = outputs[2].values<std::int64_t>();
    std::vector<Detection> found;
    std::vector<std::int64_t> images;
    for (int image = 0; image < windows.count; ++image) {
        const std::size_t first = static_cast<std::size_t>(image) * places;
        const auto chosen =
            suppress(std::span(boxes).subspan(first, places), scores.subspan(first, places),
                     class_ids.subspan(first, places), static_cast<float>(manifest_.detecting->min_score),
                     manifest_.detecting->nms_iou, static_cast<std::size_t>(manifest_.detecting->max_cells));
        for (const std::size_t place : chosen) {
            const std::size_t at = first + place;
            found.push_back({.box = boxes[at],
                             .score = scores[at],
                             .rank_score = scores[at],
                             .class_id = to_class_id(class_ids[at]),
                             .class_scores = outputs[3].values<float>().subspan(at * classes, classes),
                             .mask = {}});
            images.push_back(image);
        }
    }
    const auto area = static_cast<float>(windows.height) * static_cast<float>(windows.width);
    auto tensors = add_masks(found, images, std::span(outputs).subspan(candidates), area);
    tensors.push_back(outputs[3]);
    std::vector<Detections> all(static_cast<std::size_t>(windows.count), Detections{.found = {}, .tensors = tensors});
    for (std::size_t i = 0; i < found.size(); ++i) {
        all[static_cast<std::size_t>(images[i])].found.push_back(found[i]);
    }
    return all;
}

std::vector<Tensor> DetectionNet::add_masks(std::span<Detection> found, std::span<const std::int64_t> images,
                                            std::span<const Tensor> maps, float image_area) const {
    const std::int64_t side = manifest_.detecting->mask_side;
    const auto pixels = static_cast<std::size_t>(side * side);
    const std::vector<std::string> wanted =
        is_rated_ ? std::vector<std::string>{"masks", "mask_ious"} : std::vector<std::string>{"masks"};
    std::vector<Tensor> tensors;
    for (std::size_t start = 0; start < found.size(); start += regions_at_once) {
        const auto some = found.subspan(start, std::min(regions_at_once, found.size() - start));
        const auto count = static_cast<std::int64_t>(some.size());
        std::vector<float> boxes;
        std::vector<std::int64_t> class_ids;
        for (const Detection& one : some) {
            boxes.insert(boxes.end(), one.box.begin(), one.box.end());
            class_ids.push_back(one.class_id);
        }
        std::vector<Tensor> feeds(maps.begin(), maps.end());
        feeds.push_back(to_tensor<float>("boxes", Element::float32, {count, 4}, boxes));
        feeds.push_back(to_tensor<std::int64_t>("images", Element::int64, {count}, images.subspan(start, some.size())));
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
        tensors.push_back(std::move(results[0]));
    }
    return tensors;
}

}  // namespace cellvision
