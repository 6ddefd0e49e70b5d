// Loops over arrays, compiled for several instruction sets; the best one is chosen when the
// library is loaded. Products and sums are rounded one by one in all of them.
#pragma once
#include <cstdint>

namespace layers {

enum class Unary : int32_t { RELU, LEAKY_RELU, RELU6, TANH, SIGMOID, ELU, SELU };

// Whether all numbers are finite.
bool all_finite(const float* x, int64_t n);
void add_to(const float* from, float* to, int64_t n);
void add(const float* a, const float* b, float* to, bool relu, int64_t n);
// to = dy where y > 0 (all of it without y), else 0; added to what is there if `adds`.
void pass_back(const float* dy, const float* y, float* to, bool adds, int64_t n);
void unary(Unary kind, const float* x, float* y, float alpha, float beta, int64_t n);
void unary_back(Unary kind, const float* x, const float* y, const float* dy, float* dx, bool adds,
                float alpha, float beta, int64_t n);

// Rows of `width` numbers; `of_row` and the like have `width` numbers too.
void sum_rows(const float* x, int64_t rows, int64_t width, float* sum);
void sum_squares(const float* x, const float* mean, int64_t rows, int64_t width, float* sum);
// y = (x - mean) * scale + shift + residual, and 0 where that is negative if `relu`.
void normalize(const float* x, const float* mean, const float* scale, const float* shift,
               const float* residual, bool relu, float* y, int64_t rows, int64_t width);
// dz = dy where y > 0; sum += dz; product += dz * (x - mean).
void normalize_sums(const float* x, const float* y, const float* dy, const float* mean,
                    int64_t rows, int64_t width, float* sum, float* product);
// dx (+)= a * dz + b * (x - mean) + c.
void normalize_back(const float* x, const float* y, const float* dy, const float* mean,
                    const float* a, const float* b, const float* c, float* dx, bool adds,
                    int64_t rows, int64_t width);

// (channels, positions) to (positions, channels), and back with the two exchanged.
void turn(const float* from, int64_t channels, int64_t positions, float* to);
void turn_and_add(const float* from, int64_t channels, int64_t positions, float* to);

}  // namespace layers
