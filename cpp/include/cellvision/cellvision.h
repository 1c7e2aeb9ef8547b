/* C interface of cellvision, for other languages. Everything that can fail returns NULL or a status, and
 * cellvision_last_error() tells why. Strings that are returned belong to the library. */
#ifndef CELLVISION_H
#define CELLVISION_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define CELLVISION_API __declspec(dllexport)
#else
#define CELLVISION_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct cellvision_predictor cellvision_predictor; /* an open bundle; may be used by several threads at once */
typedef struct cellvision_cells cellvision_cells;         /* what was found in one image */

typedef enum cellvision_dtype {
    CELLVISION_UINT8 = 0,
    CELLVISION_UINT16 = 1,
    CELLVISION_FLOAT32 = 2
} cellvision_dtype;

/* One cell. Pixel centres lie at whole numbers. */
typedef struct cellvision_cell {
    int32_t label;        /* in the label image, from 1 */
    int32_t class_id;     /* 1 .. number of classes - 1 */
    int64_t area_px;      /* visible pixels */
    double centroid_y_px;
    double centroid_x_px;
    int64_t bbox[4];      /* top, left, bottom, right, px; the last two are one past the last */
    double score;         /* in 0..1, or -1 from nets that do not find cells themselves */
} cellvision_cell;

/* Why the last call of this thread failed: one sentence, "" where it did not. */
CELLVISION_API const char *cellvision_last_error(void);

/* Opens a bundle folder (UTF-8).
 * ort_library: path of ONNX Runtime, or NULL for $CELLVISION_ORT_LIBRARY, else the system's.
 * provider: "cpu", "cuda" ..; NULL for "cpu". threads: 0 for all cores. NULL on failure. */
CELLVISION_API cellvision_predictor *cellvision_open(const char *bundle_dir, const char *ort_library,
                                                     const char *provider, int threads);
CELLVISION_API void cellvision_close(cellvision_predictor *predictor); /* NULL is allowed */

/* Number of classes, background included, and their names; 0 and NULL where there are none. */
CELLVISION_API int cellvision_class_count(const cellvision_predictor *predictor);
CELLVISION_API const char *cellvision_class_name(const cellvision_predictor *predictor, int class_id);

/* The cells of an image: channels * height * width raw counts, channel by channel, row by row, channels in the
 * bundle's order. intensity_scale: factor from the image's counts to the training counts, 0 for equal units.
 * NULL on failure. */
CELLVISION_API cellvision_cells *cellvision_predict(const cellvision_predictor *predictor, const void *counts,
                                                    cellvision_dtype dtype, int channels, int height, int width,
                                                    double intensity_scale);
CELLVISION_API void cellvision_free_cells(cellvision_cells *cells); /* NULL is allowed */

CELLVISION_API size_t cellvision_cell_count(const cellvision_cells *cells);

/* Fills in cell number index, from 0; 0 on success. */
CELLVISION_API int cellvision_get_cell(const cellvision_cells *cells, size_t index, cellvision_cell *cell);

/* (height * width) labels, 0 = background; they live as long as the cells. */
CELLVISION_API const int32_t *cellvision_label_image(const cellvision_cells *cells);

/* Share of live cells in 0..1, or -1 where no cell was counted or the net does not tell live from dead. */
CELLVISION_API double cellvision_viability(const cellvision_cells *cells);

#ifdef __cplusplus
}
#endif

#endif
