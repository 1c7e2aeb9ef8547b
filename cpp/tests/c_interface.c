/* The C interface as a C program uses it: c_interface BUNDLE IMAGE DTYPE CHANNELS HEIGHT WIDTH
 * IMAGE holds raw counts. Prints "cells N, labelled pixels P, area A", A being the sum over the cells. */
#include <stdio.h>
#include <stdlib.h>

#include "cellvision/cellvision.h"

static int complain(void) {
    fprintf(stderr, "%s\n", cellvision_last_error());
    return 1;
}

int main(int count, char **arguments) {
    if (count != 7) {
        return 2;
    }
    const int dtype = atoi(arguments[3]);
    const int channels = atoi(arguments[4]);
    const int height = atoi(arguments[5]);
    const int width = atoi(arguments[6]);
    static const size_t bytes_of[] = {1, 2, 4};
    const size_t bytes = (size_t)channels * (size_t)height * (size_t)width * bytes_of[dtype];
    void *counts = malloc(bytes);
    FILE *file = fopen(arguments[2], "rb");
    if (counts == NULL || file == NULL || fread(counts, 1, bytes, file) != bytes) {
        return 2;
    }
    fclose(file);

    /* What must fail tells why, and nothing else happens. */
    if (cellvision_open("no such folder", NULL, NULL, 1) != NULL || cellvision_last_error()[0] == '\0' ||
        cellvision_predict(NULL, counts, CELLVISION_UINT8, 1, 1, 1, 0.0) != NULL ||
        cellvision_last_error()[0] == '\0' || cellvision_cell_count(NULL) != 0 || cellvision_class_count(NULL) != 0) {
        return 3;
    }

    cellvision_predictor *predictor = cellvision_open(arguments[1], NULL, "cpu", 1);
    if (predictor == NULL) {
        return complain();
    }
    cellvision_cells *cells =
        cellvision_predict(predictor, counts, (cellvision_dtype)dtype, channels, height, width, 0.0);
    free(counts);
    if (cells == NULL) {
        return complain();
    }
    long long labelled = 0;
    long long area = 0;
    const int32_t *labels = cellvision_label_image(cells);
    for (size_t i = 0; i < (size_t)height * (size_t)width; ++i) {
        labelled += labels[i] > 0;
    }
    cellvision_cell cell;
    for (size_t i = 0; i < cellvision_cell_count(cells); ++i) {
        if (cellvision_get_cell(cells, i, &cell) != 0 || cell.label != (int32_t)i + 1 ||
            cellvision_class_name(predictor, cell.class_id) == NULL) {
            return 4;
        }
        area += cell.area_px;
    }
    if (cellvision_get_cell(cells, cellvision_cell_count(cells), &cell) == 0 ||
        cellvision_class_name(predictor, -1) != NULL) {
        return 5;
    }
    printf("cells %zu, labelled pixels %lld, area %lld, viability %.6f\n", cellvision_cell_count(cells), labelled, area,
           cellvision_viability(cells));
    cellvision_free_cells(cells);
    cellvision_close(predictor);
    return 0;
}
