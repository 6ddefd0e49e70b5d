#include "vector_loops.h"

#include <algorithm>
#include <cmath>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define VECTORS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define VECTORS
#endif

#define RESTRICT __restrict__

#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace layers {
VECTORS bool all_finite(const float* x, int64_t n) {
    // 0 for finite numbers, NaN for others.
    const int WIDTH = 16;
    float sums[WIDTH] = {};
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH)
        for (int k = 0; k < WIDTH; ++k) sums[k] += x[i + k] * 0.0f;
    for (; i < n; ++i) sums[0] += x[i] * 0.0f;
    for (int k = 1; k < WIDTH; ++k) sums[0] += sums[k];
    return sums[0] == 0.0f;
}

VECTORS void add_to(const float* RESTRICT from, float* RESTRICT to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}

VECTORS void add(const float* a, const float* b, float* RESTRICT to, bool relu, int64_t n) {
    if (relu)
        for (int64_t i = 0; i < n; ++i) {
            const float v = a[i] + b[i];
            to[i] = v > 0.0f ? v : 0.0f;
        }
    else
        for (int64_t i = 0; i < n; ++i) to[i] = a[i] + b[i];
}

VECTORS void pass_back(const float* dy, const float* y, float* RESTRICT to, bool adds, int64_t n) {
    if (!y) {
        if (adds)
            for (int64_t i = 0; i < n; ++i) to[i] += dy[i];
        else
            for (int64_t i = 0; i < n; ++i) to[i] = dy[i];
    } else if (adds) {
        for (int64_t i = 0; i < n; ++i) to[i] += y[i] > 0.0f ? dy[i] : 0.0f;
    } else {
        for (int64_t i = 0; i < n; ++i) to[i] = y[i] > 0.0f ? dy[i] : 0.0f;
    }
}

VECTORS void unary(Unary kind, const float* x, float* RESTRICT y, float alpha, float beta,
                   int64_t n) {
    (void)beta;
    switch (kind) {
        case Unary::RELU:
            for (int64_t i = 0; i < n; ++i) y[i] = x[i] > 0.0f ? x[i] : 0.0f;
            break;
        case Unary::LEAKY_RELU:
            for (int64_t i = 0; i < n; ++i) y[i] = x[i] > 0.0f ? x[i] : alpha * x[i];
            break;
        case Unary::RELU6:
            for (int64_t i = 0; i < n; ++i) {
                const float v = x[i] > 0.0f ? x[i] : 0.0f;
                y[i] = v < 6.0f ? v : 6.0f;
            }
            break;
        case Unary::TANH:
            for (int64_t i = 0; i < n; ++i) y[i] = std::tanh(x[i]);
            break;
        case Unary::SIGMOID:
            for (int64_t i = 0; i < n; ++i) y[i] = 1.0f / (1.0f + std::exp(-x[i]));
            break;
        case Unary::ELU:
            for (int64_t i = 0; i < n; ++i)
                y[i] = x[i] > 0.0f ? x[i] : alpha * (std::exp(x[i]) - 1.0f);
            break;
        case Unary::SELU:
            for (int64_t i = 0; i < n; ++i)
                y[i] = x[i] > 0.0f ? alpha * x[i] : alpha * beta * (std::exp(x[i]) - 1.0f);
            break;
    }
}

#define BACK(slope)                                                     \
    if (adds)                                                           \
        for (int64_t i = 0; i < n; ++i) dx[i] += dy[i] * (slope);       \
    else                                                                \
        for (int64_t i = 0; i < n; ++i) dx[i] = dy[i] * (slope);        \
    break

VECTORS void unary_back(Unary kind, const float* x, const float* y, const float* dy,
                        float* RESTRICT dx, bool adds, float alpha, float beta, int64_t n) {
    switch (kind) {
        case Unary::RELU: BACK(y[i] > 0.0f ? 1.0f : 0.0f);
        case Unary::LEAKY_RELU: BACK(x[i] > 0.0f ? 1.0f : alpha);
        case Unary::RELU6: BACK(x[i] > 0.0f && x[i] < 6.0f ? 1.0f : 0.0f);
        case Unary::TANH: BACK(1.0f - y[i] * y[i]);
        case Unary::SIGMOID: BACK(y[i] * (1.0f - y[i]));
        case Unary::ELU: BACK(x[i] > 0.0f ? 1.0f : alpha * std::exp(x[i]));
        case Unary::SELU: BACK(x[i] > 0.0f ? alpha : alpha * beta * std::exp(x[i]));
    }
}

VECTORS void sum_rows(const float* x, int64_t rows, int64_t width, float* RESTRICT sum) {
    for (int64_t r = 0; r < rows; ++r, x += width)
        for (int64_t i = 0; i < width; ++i) sum[i] += x[i];
}

VECTORS void sum_squares(const float* x, const float* mean, int64_t rows, int64_t width,
                         float* RESTRICT sum) {
    for (int64_t r = 0; r < rows; ++r, x += width)
        for (int64_t i = 0; i < width; ++i) {
            const float d = x[i] - mean[i];
            sum[i] += d * d;
        }
}

VECTORS void normalize(const float* x, const float* mean, const float* scale, const float* shift,
                       const float* residual, bool relu, float* RESTRICT y, int64_t rows,
                       int64_t width) {
    for (int64_t r = 0; r < rows; ++r, x += width, y += width) {
        if (residual) {
            for (int64_t i = 0; i < width; ++i) {
                const float v = (x[i] - mean[i]) * scale[i] + shift[i] + residual[i];
                y[i] = !relu || v > 0.0f ? v : 0.0f;
            }
            residual += width;
        } else if (relu) {
            for (int64_t i = 0; i < width; ++i) {
                const float v = (x[i] - mean[i]) * scale[i] + shift[i];
                y[i] = v > 0.0f ? v : 0.0f;
            }
        } else {
            for (int64_t i = 0; i < width; ++i) y[i] = (x[i] - mean[i]) * scale[i] + shift[i];
        }
    }
}

VECTORS void normalize_sums(const float* x, const float* y, const float* dy, const float* mean,
                            int64_t rows, int64_t width, float* RESTRICT sum,
                            float* RESTRICT product) {
    for (int64_t r = 0; r < rows; ++r, x += width, dy += width) {
        if (y) {
            for (int64_t i = 0; i < width; ++i) {
                const float d = dy[i];
                const float dz = y[i] > 0.0f ? d : 0.0f;
                sum[i] += dz;
                product[i] += dz * (x[i] - mean[i]);
            }
            y += width;
        } else {
            for (int64_t i = 0; i < width; ++i) {
                sum[i] += dy[i];
                product[i] += dy[i] * (x[i] - mean[i]);
            }
        }
    }
}

VECTORS void normalize_back(const float* x, const float* y, const float* dy, const float* mean,
                            const float* a, const float* b, const float* c, float* dx, bool adds,
                            int64_t rows, int64_t width) {
    for (int64_t r = 0; r < rows; ++r, x += width, dy += width, dx += width) {
        // dx may be x itself; nothing else overlaps.
        if (y) {
            if (adds) {
                INDEPENDENT
                for (int64_t i = 0; i < width; ++i) {
                    const float d = dy[i], dz = y[i] > 0.0f ? d : 0.0f;
                    dx[i] += a[i] * dz + b[i] * (x[i] - mean[i]) + c[i];
                }
            } else {
                INDEPENDENT
                for (int64_t i = 0; i < width; ++i) {
                    const float d = dy[i], dz = y[i] > 0.0f ? d : 0.0f;
                    dx[i] = a[i] * dz + b[i] * (x[i] - mean[i]) + c[i];
                }
            }
            y += width;
        } else if (adds) {
            INDEPENDENT
            for (int64_t i = 0; i < width; ++i)
                dx[i] += a[i] * dy[i] + b[i] * (x[i] - mean[i]) + c[i];
        } else {
            INDEPENDENT
            for (int64_t i = 0; i < width; ++i)
                dx[i] = a[i] * dy[i] + b[i] * (x[i] - mean[i]) + c[i];
        }
    }
}

namespace {

const int64_t TILE = 16;

template <bool ADD>
void turn_tiles(const float* from, int64_t channels, int64_t positions, float* to) {
    for (int64_t c = 0; c < channels; c += TILE)
        for (int64_t s = 0; s < positions; s += TILE) {
            const int64_t c_end = std::min(channels, c + TILE), s_end = std::min(positions, s + TILE);
            for (int64_t j = s; j < s_end; ++j)
                for (int64_t i = c; i < c_end; ++i) {
                    if (ADD)
                        to[j * channels + i] += from[i * positions + j];
                    else
                        to[j * channels + i] = from[i * positions + j];
                }
        }
}

}  // namespace

void turn(const float* from, int64_t channels, int64_t positions, float* to) {
    turn_tiles<false>(from, channels, positions, to);
}

void turn_and_add(const float* from, int64_t channels, int64_t positions, float* to) {
    turn_tiles<true>(from, channels, positions, to);
}

}  // namespace layers
