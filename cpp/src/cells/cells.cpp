#include "cellvision/cells.hpp"

#include <algorithm>
#include <set>

#include "cellvision/error.hpp"

namespace cellvision {

std::int64_t Cells::count(std::string_view class_name) const {
    return std::count_if(cells.begin(), cells.end(), [&](const Cell& cell) {
        return classes[static_cast<std::size_t>(cell.class_id)] == class_name;
    });
}

bool Cells::has_viability() const {
    if (kind == "viability") {
        return true;
    }
    // Not semantic nets, whatever their classes are called: a live and a dead cell that touch count as one there.
    const std::set<std::string_view> names(classes.empty() ? classes.end() : classes.begin() + 1, classes.end());
    return kind == "instance" && names == std::set<std::string_view>{"live", "dead"};
}

std::optional<double> Cells::p_live(const Cell& cell) const {
    if (!has_viability()) {
        return std::nullopt;
    }
    const auto live = std::find(classes.begin(), classes.end(), "live") - classes.begin();
    return cell.probabilities[static_cast<std::size_t>(live - 1)];
}

std::optional<double> Cells::area_um2(const Cell& cell) const {
    if (!pixel_size_um) {
        return std::nullopt;
    }
    return static_cast<double>(cell.area_px) * (*pixel_size_um * *pixel_size_um);
}

Viability Cells::viability(double confidence) const {
    if (!has_viability()) {
        std::string names;
        for (std::size_t i = 1; i < classes.size(); ++i) {
            names.append(i > 1 ? ", " : "").append(classes[i]);
        }
        fail(ErrorKind::bundle, "cells of the classes " + names, "a viability bundle",
             "a bundle trained with data=livedead");
    }
    return compute_viability(count("live"), count("dead"), confidence);
}

}  // namespace cellvision
