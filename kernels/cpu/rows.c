// SPDX-License-Identifier: Apache-2.0
// Rows to expert order and back.
#include "kernels/cpu/vec.h"

static void check_rows(const char *what, Tensor rows, Tensor x, Tensor row) {
    REQUIRE(rows.dim[1] == x.dim[1] && row.dim[0] == x.dim[0],
            "%s: rows (%ld, %ld), tokens (%ld, %ld), places (%ld, %ld)", what, (long)rows.dim[0],
            (long)rows.dim[1], (long)x.dim[0], (long)x.dim[1], (long)row.dim[0], (long)row.dim[1]);
}

void KERNEL(rows_gather)(Tensor rows, Tensor x, Tensor row, Stream stream) {
    check_rows("rows_gather", rows, x, row);
    int64_t T = row.dim[0], k = row.dim[1], h = x.dim[1], batch = poll_rows(k * h);
    for (int64_t t = 0; t < T; t++) {
        for (int64_t j = 0; j < k; j++) {
            int64_t place = tensor_i32(row)[t * k + j];
            if (place >= 0)
                memcpy(tensor_f32(rows) + place * h, tensor_f32(x) + t * h, (size_t)h * sizeof(float));
        }
        if ((t + 1) % batch == 0) stream_poll(stream);
    }
}

void KERNEL(rows_combine)(Tensor y, Tensor rows, Tensor row, Into into, Stream stream) {
    check_rows("rows_combine", rows, y, row);
    int64_t T = row.dim[0], k = row.dim[1], h = y.dim[1], batch = poll_rows(k * h);
    for (int64_t t = 0; t < T; t++) {
        float *to = tensor_f32(y) + t * h;
        bool empty = into == INTO_ZERO;
        for (int64_t j = 0; j < k; j++) {
            int64_t place = tensor_i32(row)[t * k + j];
            if (place < 0) continue;
            const float *from = tensor_f32(rows) + place * h;
            if (empty)
                memcpy(to, from, (size_t)h * sizeof *to);
            else {
                SIMD for (int64_t c = 0; c < h; c++) to[c] += from[c];
            }
            empty = false;
        }
        if (empty) memset(to, 0, (size_t)h * sizeof *to);
        if ((t + 1) % batch == 0) stream_poll(stream);
    }
}

void KERNEL(pairs_gather)(Tensor rows, Tensor value, Tensor row, Stream stream) {
    REQUIRE(tensor_size(value) == tensor_size(row), "pairs_gather: %ld values, %ld places",
            (long)tensor_size(value), (long)tensor_size(row));
    for (int64_t i = 0, n = tensor_size(row); i < n; i++) {
        int64_t place = tensor_i32(row)[i];
        if (place >= 0) tensor_f32(rows)[place] = tensor_f32(value)[i];
    }
    stream_poll(stream);
}

void KERNEL(pairs_scatter)(Tensor value, Tensor rows, Tensor row, Stream stream) {
    REQUIRE(tensor_size(value) == tensor_size(row), "pairs_scatter: %ld values, %ld places",
            (long)tensor_size(value), (long)tensor_size(row));
    for (int64_t i = 0, n = tensor_size(row); i < n; i++) {
        int64_t place = tensor_i32(row)[i];
        tensor_f32(value)[i] = place >= 0 ? tensor_f32(rows)[place] : 0.0f;
    }
    stream_poll(stream);
}
