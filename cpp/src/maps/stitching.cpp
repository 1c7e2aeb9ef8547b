#include "maps/stitching.hpp"

#include <algorithm>
#include <numeric>
#include <unordered_map>

namespace cellvision {
namespace {

std::size_t find_root(std::vector<std::size_t>& parent, std::size_t at) {
    while (parent[at] != at) {
        parent[at] = parent[parent[at]];
        at = parent[at];
    }
    return at;
}

std::unordered_map<std::int32_t, std::int64_t> count_ids(const std::vector<std::int32_t>& ids) {
    std::unordered_map<std::int32_t, std::int64_t> counts;
    for (const std::int32_t id : ids) {
        ++counts[id];
    }
    return counts;
}

}  // namespace

// Half: nearer to its window's edge a tile sees cut cells, and its labels there are not worth comparing.
Stitcher::Stitcher(int width, int overlap_px) : width_(width), zone_(std::max(1, overlap_px / 2)) {}

void Stitcher::add(const Tile& tile, LabelImage& labels, std::vector<CellSums> pieces, LabelImage& ids) {
    const auto count = static_cast<std::int32_t>(pieces_.size());
    for (std::int32_t& label : labels.data) {
        label = label > 0 ? label + count : 0;
    }
    std::move(pieces.begin(), pieces.end(), std::back_inserter(pieces_));
    const Span& rows = tile.rows;
    const Span& columns = tile.columns;
    if (columns.start > 0) {
        compare(left_, copy_columns(tile, labels, columns.offset()));
    }
    if (rows.start > 0) {
        compare(above_[below_.size()], copy_rows(tile, labels, rows.offset()));
    }
    left_ = copy_columns(tile, labels, columns.offset() + columns.size());
    below_.push_back(copy_rows(tile, labels, rows.offset() + rows.size()));
    if (columns.stop == width_) {
        above_ = std::exchange(below_, {});
    }
    for (int y = rows.start; y < rows.stop; ++y) {
        const std::int32_t* from = labels.row(y - rows.window_start) + columns.offset();
        std::copy_n(from, columns.size(), ids.row(y) + columns.start);
    }
}

std::vector<CellSums> Stitcher::resolve(LabelImage& ids, int min_area_px) const {
    std::vector<std::size_t> parent(pieces_.size());
    std::iota(parent.begin(), parent.end(), std::size_t{0});
    for (const auto& [one, other] : links_) {
        const std::size_t first = find_root(parent, static_cast<std::size_t>(one - 1));
        const std::size_t second = find_root(parent, static_cast<std::size_t>(other - 1));
        parent[std::max(first, second)] = std::min(first, second);
    }
    std::vector<CellSums> whole(pieces_.size());
    for (std::size_t i = 0; i < pieces_.size(); ++i) {
        whole[find_root(parent, i)].add(pieces_[i]);
    }
    std::vector<std::size_t> kept;
    for (std::size_t i = 0; i < whole.size(); ++i) {
        if (parent[i] == i && whole[i].area >= min_area_px) {
            kept.push_back(i);
        }
    }
    std::sort(kept.begin(), kept.end(), [&](std::size_t a, std::size_t b) { return whole[a].first < whole[b].first; });
    std::vector<std::int32_t> table(pieces_.size() + 1, 0);
    std::vector<CellSums> cells;
    for (const std::size_t root : kept) {
        cells.push_back(std::move(whole[root]));
        table[root + 1] = static_cast<std::int32_t>(cells.size());
    }
    for (std::size_t i = 0; i < pieces_.size(); ++i) {
        table[i + 1] = table[find_root(parent, i) + 1];
    }
    for (std::int32_t& id : ids.data) {
        id = table[static_cast<std::size_t>(id)];
    }
    return cells;
}

Stitcher::Strip Stitcher::copy_columns(const Tile& tile, const LabelImage& ids, int seam) const {
    const int begin = std::max(0, seam - zone_);
    const int end = std::min(ids.width, seam + zone_);
    Strip strip{.along = tile.rows.size(), .across = end - begin, .ids = {}};
    for (int y = 0; y < strip.along; ++y) {
        const std::int32_t* row = ids.row(tile.rows.offset() + y);
        strip.ids.insert(strip.ids.end(), row + begin, row + end);
    }
    return strip;
}

Stitcher::Strip Stitcher::copy_rows(const Tile& tile, const LabelImage& ids, int seam) const {
    const int begin = std::max(0, seam - zone_);
    const int end = std::min(ids.height, seam + zone_);
    Strip strip{.along = tile.columns.size(), .across = end - begin, .ids = {}};
    for (int x = 0; x < strip.along; ++x) {
        for (int y = begin; y < end; ++y) {
            strip.ids.push_back(ids.row(y)[tile.columns.offset() + x]);
        }
    }
    return strip;
}

void Stitcher::compare(const Strip& one, const Strip& other) {
    // Cells that only come near the seam lie in one core as a whole and need no partner.
    struct Shared {
        std::int64_t pixels = 0;
        bool on_seam = false;
    };
    std::unordered_map<std::uint64_t, Shared> pairs;
    for (std::size_t at = 0; at < one.ids.size(); ++at) {
        if (one.ids[at] > 0 && other.ids[at] > 0) {
            const int place = static_cast<int>(at % static_cast<std::size_t>(one.across));
            const auto first = static_cast<std::uint64_t>(one.ids[at]);
            Shared& shared = pairs[(first << 32) | static_cast<std::uint32_t>(other.ids[at])];
            ++shared.pixels;
            shared.on_seam = shared.on_seam || place == zone_ - 1 || place == zone_;
        }
    }
    if (pairs.empty()) {
        return;
    }
    const auto in_one = count_ids(one.ids);
    const auto in_other = count_ids(other.ids);
    for (const auto& [pair, shared] : pairs) {
        const auto first = static_cast<std::int32_t>(pair >> 32);
        const auto second = static_cast<std::int32_t>(pair & 0xffffffffU);
        if (shared.on_seam && 2 * shared.pixels > std::min(in_one.at(first), in_other.at(second))) {
            links_.emplace_back(first, second);
        }
    }
}

}  // namespace cellvision
