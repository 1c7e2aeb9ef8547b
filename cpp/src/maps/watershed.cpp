#include "maps/watershed.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

namespace cellvision {
namespace {

std::int32_t find_root(std::vector<std::int32_t>& parent, std::int32_t at) {
    while (parent[static_cast<std::size_t>(at)] != at) {
        auto& up = parent[static_cast<std::size_t>(at)];
        up = parent[static_cast<std::size_t>(up)];
        at = up;
    }
    return at;
}

struct Place {
    float level;          // lower is flooded earlier
    std::uint32_t age;    // order of arrival; all seeds have 0
    std::size_t index;    // in the padded map

    [[nodiscard]] bool before(const Place& other) const noexcept {
        return level != other.level ? level < other.level : age < other.age;
    }
};

/// A binary heap that keeps to the textbook's steps. std::priority_queue may move equal elements in another order, and
/// then seeds of one level would flood in another order than they do in Python.
class Queue {
public:
    [[nodiscard]] bool empty() const noexcept { return places_.empty(); }

    void push(const Place& place) {
        std::size_t child = places_.size();
        places_.push_back(place);
        while (child > 0) {
            const std::size_t parent = (child - 1) / 2;
            if (!places_[child].before(places_[parent])) {
                break;
            }
            std::swap(places_[child], places_[parent]);
            child = parent;
        }
    }

    Place pop() {
        const Place top = places_.front();
        places_.front() = places_.back();
        places_.pop_back();
        for (std::size_t at = 0;;) {
            std::size_t smallest = at;
            for (const std::size_t child : {2 * at + 1, 2 * at + 2}) {
                if (child < places_.size() && places_[child].before(places_[smallest])) {
                    smallest = child;
                }
            }
            if (smallest == at) {
                return top;
            }
            std::swap(places_[at], places_[smallest]);
            at = smallest;
        }
    }

private:
    std::vector<Place> places_;
};

}  // namespace

std::int32_t label_regions(std::span<const std::uint8_t> mask, LabelImage& labels) {
    const auto width = static_cast<std::size_t>(labels.width);
    std::vector<std::int32_t> parent(1, 0);
    std::fill(labels.data.begin(), labels.data.end(), 0);
    for (std::size_t at = 0; at < mask.size(); ++at) {
        if (mask[at] == 0) {
            continue;
        }
        const std::int32_t left = at % width > 0 ? labels.data[at - 1] : 0;
        const std::int32_t above = at >= width ? labels.data[at - width] : 0;
        if (left == 0 && above == 0) {
            labels.data[at] = static_cast<std::int32_t>(parent.size());
            parent.push_back(labels.data[at]);
        } else if (left == 0 || above == 0) {
            labels.data[at] = std::max(left, above);
        } else {
            const std::int32_t one = find_root(parent, left);
            const std::int32_t other = find_root(parent, above);
            labels.data[at] = std::min(one, other);
            parent[static_cast<std::size_t>(std::max(one, other))] = std::min(one, other);
        }
    }
    std::vector<std::int32_t> number(parent.size(), 0);
    std::int32_t count = 0;
    for (std::size_t label = 1; label < parent.size(); ++label) {
        // The root is the smallest of its region, so it has its number already.
        const auto root = static_cast<std::size_t>(find_root(parent, static_cast<std::int32_t>(label)));
        number[label] = root == label ? ++count : number[root];
    }
    for (std::int32_t& label : labels.data) {
        label = number[static_cast<std::size_t>(label)];
    }
    return count;
}

void flood(std::span<const float> height_map, std::span<const std::uint8_t> mask, LabelImage& labels) {
    const auto height = static_cast<std::size_t>(labels.height);
    const auto width = static_cast<std::size_t>(labels.width);
    const std::size_t stride = width + 2;  // a border that cannot be flooded, so that no step leaves the image
    constexpr std::int32_t closed = -1;
    std::vector<std::int32_t> owner(stride * (height + 2), closed);
    std::vector<float> level(owner.size(), 0.0F);
    for (std::size_t y = 0; y < height; ++y) {
        for (std::size_t x = 0; x < width; ++x) {
            const std::size_t from = y * width + x;
            const std::size_t to = (y + 1) * stride + x + 1;
            owner[to] = mask[from] != 0 ? labels.data[from] : closed;
            level[to] = -height_map[from];
        }
    }
    Queue queue;
    for (std::size_t at = 0; at < owner.size(); ++at) {
        if (owner[at] > 0) {
            queue.push({.level = level[at], .age = 0, .index = at});
        }
    }
    std::uint32_t age = 0;
    while (!queue.empty()) {
        const Place place = queue.pop();
        for (const std::size_t next : {place.index - stride, place.index - 1, place.index + 1, place.index + stride}) {
            if (owner[next] == 0) {
                owner[next] = owner[place.index];
                queue.push({.level = std::max(level[next], place.level), .age = ++age, .index = next});
            }
        }
    }
    for (std::size_t y = 0; y < height; ++y) {
        for (std::size_t x = 0; x < width; ++x) {
            labels.data[y * width + x] = std::max(owner[(y + 1) * stride + x + 1], 0);
        }
    }
}

}  // namespace cellvision
