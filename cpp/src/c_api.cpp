#include <algorithm>
#include <exception>
#include <memory>
#include <string>

#include "cellvision/cellvision.h"
#include "cellvision/error.hpp"
#include "cellvision/predictor.hpp"

struct cellvision_predictor {
    cellvision::Predictor predictor;
};

struct cellvision_cells {
    cellvision::Cells cells;
};

namespace {

thread_local std::string last_error;

/// What `act` gives, or `otherwise` where it throws: no exception may pass into another language.
template <typename Act, typename Result>
Result guard(Result otherwise, Act act) noexcept {
    try {
        last_error.clear();
        return act();
    } catch (const std::exception& error) {
        try {
            last_error = error.what();
        } catch (...) {  // no memory for the text
        }
    } catch (...) {
    }
    return otherwise;
}

template <typename T>
const T& check_given(const T* value, const char* name) {
    if (value == nullptr) {
        cellvision::fail(cellvision::ErrorKind::config, std::string(name) + "=NULL", "one", "check the call before");
    }
    return *value;
}

cellvision::DType to_dtype(cellvision_dtype dtype) {
    switch (dtype) {
        case CELLVISION_UINT8: return cellvision::DType::uint8;
        case CELLVISION_UINT16: return cellvision::DType::uint16;
        case CELLVISION_FLOAT32: return cellvision::DType::float32;
    }
    cellvision::fail(cellvision::ErrorKind::config, "dtype=" + std::to_string(static_cast<int>(dtype)),
                     "one of cellvision_dtype", "CELLVISION_UINT16");
}

}  // namespace

const char* cellvision_last_error(void) { return last_error.c_str(); }

cellvision_predictor* cellvision_open(const char* bundle_dir, const char* ort_library, const char* provider,
                                      int threads) {
    return guard<>(static_cast<cellvision_predictor*>(nullptr), [&] {
        check_given(bundle_dir, "bundle_dir");
        cellvision::Options options;
        options.threads = threads;
        if (provider != nullptr) {
            options.provider = provider;
        }
        if (ort_library != nullptr) {
            options.ort_library = ort_library;
        }
        return std::make_unique<cellvision_predictor>(cellvision::Predictor(bundle_dir, options)).release();
    });
}

void cellvision_close(cellvision_predictor* predictor) { std::unique_ptr<cellvision_predictor>{predictor}.reset(); }

int cellvision_class_count(const cellvision_predictor* predictor) {
    return predictor == nullptr ? 0 : static_cast<int>(predictor->predictor.manifest().classes.size());
}

const char* cellvision_class_name(const cellvision_predictor* predictor, int class_id) {
    if (class_id < 0 || class_id >= cellvision_class_count(predictor)) {
        return nullptr;
    }
    return predictor->predictor.manifest().classes[static_cast<std::size_t>(class_id)].c_str();
}

cellvision_cells* cellvision_predict(const cellvision_predictor* predictor, const void* counts, cellvision_dtype dtype,
                                     int channels, int height, int width, double intensity_scale) {
    return guard<>(static_cast<cellvision_cells*>(nullptr), [&] {
        const auto& open = check_given(predictor, "predictor").predictor;
        check_given(static_cast<const std::byte*>(counts), "counts");
        if (channels < 1 || height < 1 || width < 1) {
            cellvision::fail(cellvision::ErrorKind::shape,
                             std::to_string(channels) + " channels of " + std::to_string(height) + "x" +
                                 std::to_string(width) + " px",
                             "at least one of each", "check channels, height and width");
        }
        cellvision::Image image(channels, height, width, to_dtype(dtype));
        std::copy_n(static_cast<const std::byte*>(counts), image.data.size(), image.data.begin());
        const auto scale = intensity_scale == 0.0 ? std::nullopt : std::optional(intensity_scale);
        return std::make_unique<cellvision_cells>(open(image, scale)).release();
    });
}

void cellvision_free_cells(cellvision_cells* cells) { std::unique_ptr<cellvision_cells>{cells}.reset(); }

size_t cellvision_cell_count(const cellvision_cells* cells) { return cells == nullptr ? 0 : cells->cells.size(); }

int cellvision_get_cell(const cellvision_cells* cells, size_t index, cellvision_cell* cell) {
    return guard(-1, [&] {
        check_given(cell, "cell");
        if (index >= check_given(cells, "cells").cells.size()) {
            cellvision::fail(cellvision::ErrorKind::config, "index=" + std::to_string(index),
                             "one below " + std::to_string(cells->cells.size()), "cellvision_cell_count");
        }
        const cellvision::Cell& found = cells->cells.cells[index];
        cell->label = found.label;
        cell->class_id = found.class_id;
        cell->area_px = found.area_px;
        cell->centroid_y_px = found.centroid_y_px;
        cell->centroid_x_px = found.centroid_x_px;
        std::copy(found.bbox.begin(), found.bbox.end(), cell->bbox);
        cell->score = found.score.value_or(-1.0);
        return 0;
    });
}

const int32_t* cellvision_label_image(const cellvision_cells* cells) {
    return cells == nullptr ? nullptr : cells->cells.label_image.data.data();
}

double cellvision_viability(const cellvision_cells* cells) {
    return guard(-1.0, [&] {
        const cellvision::Cells& found = check_given(cells, "cells").cells;
        return found.has_viability() ? found.viability().viability.value_or(-1.0) : -1.0;
    });
}
