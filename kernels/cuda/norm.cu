// SPDX-License-Identifier: Apache-2.0
// RMSNorm and LayerNorm: one block for a row; RMSNorm is the case without a mean.
#include "kernels/cuda/row.h"

constexpr int HELD = 4, NORM_THREADS = 512;

template <typename T, int WIDTH>
static __device__ __forceinline__ float row_mean(const Row<T, WIDTH, HELD> &x, int64_t packs, int64_t h) {
    float sum = 0;
    each_pack(packs, x, [&](int64_t, const Pack<T, WIDTH> &p) {
        for (int i = 0; i < WIDTH; i++) sum += as_float(p.at[i]);
    });
    return block_sum(sum) / (float)h;
}

// y may be x.
template <typename T, int WIDTH>
static __global__ void __launch_bounds__(NORM_THREADS)
    forward_row(T *y, float *rstd, const T *x, const T *w, int64_t h, float eps, bool centered, bool add) {
    typedef Pack<T, WIDTH> P;
    int64_t row = blockIdx.x, packs = h / WIDTH;
    Row<T, WIDTH, HELD> from;
    from.load(x + row * h, packs);
    float mean = centered ? row_mean(from, packs, h) : 0.0f, squares = 0;
    each_pack(packs, from, [&](int64_t, const P &p) {
        for (int i = 0; i < WIDTH; i++) {
            float off = as_float(p.at[i]) - mean;
            squares += off * off;
        }
    });
    float r = 1.0f / sqrtf(block_sum(squares) / (float)h + eps);
    if (threadIdx.x == 0) rstd[row] = r;
    P *to = reinterpret_cast<P *>(y + row * h);
    const P *weight = reinterpret_cast<const P *>(w);
    each_pack(packs, from, [&](int64_t at, const P &p) {
        P scale = weight[at], out = p;
        if (add) out = to[at];
        for (int i = 0; i < WIDTH; i++) {
            float value = (as_float(p.at[i]) - mean) * r * as_float(scale.at[i]);
            out.at[i] = rounded<T>(add ? as_float(out.at[i]) + value : value);
        }
        to[at] = out;
    });
}

template <typename T, int WIDTH>
static void launch_forward(Tensor y, Tensor rstd, Tensor x, Tensor w, float eps, bool centered, Into into,
                           Stream stream) {
    int64_t h = x.dim[1];
    CUDA_LAUNCH((forward_row<T, WIDTH>), (unsigned)x.dim[0], row_threads(h / WIDTH, NORM_THREADS), 0, stream,
                (T *)y.data, tensor_f32(rstd), (const T *)x.data, (const T *)w.data, h, eps, centered,
                into == INTO_SUM);
}

static void norm_forward(Tensor y, Tensor rstd, Tensor x, Tensor w, float eps, bool centered, Into into,
                         Stream stream) {
    int64_t T = x.dim[0], h = x.dim[1];
    REQUIRE(y.dim[0] == T && y.dim[1] == h && w.dim[0] == h && rstd.dim[0] == T && y.dtype == x.dtype &&
                w.dtype == x.dtype && rstd.dtype == DTYPE_F32,
            "norm: x (%ld, %ld), y (%ld, %ld), w (%ld), rstd (%ld)", (long)T, (long)h, (long)y.dim[0],
            (long)y.dim[1], (long)w.dim[0], (long)rstd.dim[0]);
    if (T == 0) return;
    CALL_BY_TYPE(x.dtype, packs_fit(h, x, y, w), launch_forward, y, rstd, x, w, eps, centered, into, stream);
}

void KERNEL(rmsnorm_forward)(Tensor y, Tensor rstd, Tensor x, Tensor w, float eps, Into into, Stream stream) {
    norm_forward(y, rstd, x, w, eps, false, into, stream);
}

void KERNEL(layernorm_forward)(Tensor y, Tensor rstd, Tensor x, Tensor w, float eps, Into into,
                               Stream stream) {
    norm_forward(y, rstd, x, w, eps, true, into, stream);
}

// ---- backward: the weight's gradient is summed over the rows of a block in shared memory, then over blocks

constexpr int BACKWARD_BLOCKS = 256, MOST_WIDTH = 24576; // 96 KiB of shared memory hold one row in f32

// dx may be dy. A thread has the same columns in every row, so that it alone touches its sums in dweight,
// which lie as [part of a pack][pack][4 elements] for loads of 16 bytes without bank conflicts.
template <typename T, int WIDTH>
static __global__ void __launch_bounds__(NORM_THREADS)
    backward_rows(T *dx, float *partial, const T *dy, const T *x, const T *w, const float *rstd, int64_t rows,
                  int64_t h, bool centered, bool add) {
    constexpr int PART = WIDTH < 4 ? WIDTH : 4;
    typedef Pack<T, WIDTH> P;
    typedef Pack<float, PART> Sums;
    DYNAMIC_SHARED(dweight, Sums);
    int64_t packs = h / WIDTH;
    const P *weight = reinterpret_cast<const P *>(w);
    for (int64_t at = threadIdx.x; at < packs; at += blockDim.x)
        for (int part = 0; part < WIDTH / PART; part++) dweight[part * packs + at] = Sums();
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        Row<T, WIDTH, HELD> from, d;
        from.load(x + row * h, packs);
        d.load(dy + row * h, packs);
        float mean = centered ? row_mean(from, packs, h) : 0.0f, r = rstd[row];
        float sums[2] = {0, 0}; // Σ dy·w·(x − mean), Σ dy·w
        each_pack(packs, from, d, [&](int64_t at, const P &p, const P &g) {
            P scale = weight[at];
            for (int i = 0; i < WIDTH; i++) {
                float gw = as_float(g.at[i]) * as_float(scale.at[i]);
                sums[0] += gw * (as_float(p.at[i]) - mean);
                sums[1] += gw;
            }
        });
        block_sums(sums);
        float along = sums[0] * r / (float)h, shift = centered ? sums[1] / (float)h : 0.0f;
        P *to = reinterpret_cast<P *>(dx + row * h);
        each_pack(packs, from, d, [&](int64_t at, const P &p, const P &g) {
            P scale = weight[at], out = p;
            if (add) out = to[at];
#pragma unroll
            for (int part = 0; part < WIDTH / PART; part++) {
                Sums sum = dweight[part * packs + at];
#pragma unroll
                for (int i = 0; i < PART; i++) {
                    int c = part * PART + i;
                    float hat = (as_float(p.at[c]) - mean) * r, gradient = as_float(g.at[c]);
                    float value = r * (gradient * as_float(scale.at[c]) - hat * along - shift);
                    sum.at[i] += gradient * hat;
                    out.at[c] = rounded<T>(add ? as_float(out.at[c]) + value : value);
                }
                dweight[part * packs + at] = sum;
            }
            to[at] = out;
        });
    }
    Sums *mine = reinterpret_cast<Sums *>(partial + blockIdx.x * h);
    for (int64_t at = threadIdx.x; at < packs; at += blockDim.x)
        for (int part = 0; part < WIDTH / PART; part++)
            mine[at * (WIDTH / PART) + part] = dweight[part * packs + at];
}

constexpr int COLUMN_GROUPS = 8;

// dw[c] += Σ_b partial[b, c]; block (WARP columns, COLUMN_GROUPS).
static __global__ void add_columns(float *dw, const float *partial, int blocks, int64_t h) {
    SHARED(sums, float[COLUMN_GROUPS][WARP]);
    int64_t c = (int64_t)blockIdx.x * WARP + threadIdx.x;
    float sum = 0;
    if (c < h)
        for (int b = threadIdx.y; b < blocks; b += COLUMN_GROUPS) sum += partial[b * h + c];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || c >= h) return;
    for (int g = 1; g < COLUMN_GROUPS; g++) sum += sums[g][threadIdx.x];
    dw[c] += sum;
}

template <typename T, int WIDTH>
static void launch_backward(Tensor dx, float *partial, int blocks, Tensor dy, Tensor x, Tensor w, Tensor rstd,
                            bool centered, Into into, Stream stream) {
    int64_t h = x.dim[1];
    size_t shared = (size_t)h * sizeof(float);
    allow_shared(backward_rows<T, WIDTH>, shared);
    CUDA_LAUNCH((backward_rows<T, WIDTH>), blocks, row_threads(h / WIDTH, NORM_THREADS), shared, stream,
                (T *)dx.data, partial, (const T *)dy.data, (const T *)x.data, (const T *)w.data,
                tensor_f32(rstd), x.dim[0], h, centered, into == INTO_SUM);
}

static void norm_backward(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor rstd, bool centered,
                          Into into, Stream stream) {
    int64_t T = x.dim[0], h = x.dim[1];
    REQUIRE(dy.dim[0] == T && dy.dim[1] == h && dx.dim[0] == T && dx.dim[1] == h && dw.dim[0] == h &&
                w.dim[0] == h && rstd.dim[0] == T && dy.dtype == x.dtype && dx.dtype == x.dtype &&
                w.dtype == x.dtype && dw.dtype == DTYPE_F32 && rstd.dtype == DTYPE_F32,
            "norm backward: x (%ld, %ld), dy (%ld, %ld), w (%ld), rstd (%ld)", (long)T, (long)h,
            (long)dy.dim[0], (long)dy.dim[1], (long)w.dim[0], (long)rstd.dim[0]);
    REQUIRE(h <= MOST_WIDTH, "norm backward: rows of %ld, at most %d fit a block", (long)h, MOST_WIDTH);
    if (T == 0) return;
    int blocks = T < BACKWARD_BLOCKS ? (int)T : BACKWARD_BLOCKS;
    float *partial = (float *)stream_scratch(stream, (size_t)(blocks * h) * sizeof(float));
    CALL_BY_TYPE(x.dtype, packs_fit(h, x, dy, dx, w), launch_backward, dx, partial, blocks, dy, x, w, rstd,
                 centered, into, stream);
    CUDA_LAUNCH(add_columns, (unsigned)ceil_div(h, WARP), dim3(WARP, COLUMN_GROUPS), 0, stream,
                tensor_f32(dw), partial, blocks, h);
}

void KERNEL(rmsnorm_backward)(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor rstd, Into into,
                              Stream stream) {
    norm_backward(dx, dw, dy, x, w, rstd, false, into, stream);
}

void KERNEL(layernorm_backward)(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor rstd, Into into,
                                Stream stream) {
    norm_backward(dx, dw, dy, x, w, rstd, true, into, stream);
}
