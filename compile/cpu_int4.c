/* Activations times int4 weights for ONNX Runtime, on processors with AVX2: operator Int4Product. Where there is more,
   cpu_int4_wide.c does the same.

   y[m, n] = sum over groups g of scale[n, g] * step[m, g] * (sum over k in g of (code[n, k] - 8) * a[m, k])  (+ bias[n])

   Activations are rounded to int8, a, with one step per row and group, as ONNX Runtime does at accuracy level 4.
   Weights are woven (cpu_products.py): 32 bytes hold 8 inputs of 8 outputs, output by output, and of each the first four
   inputs in the lower halves, the last four in the upper. So one stream is read from end to end, four activations are
   broadcast at a time, and the eight numbers of a register belong to eight outputs, whose scales lie side by side.
   Sums of 16 products of up to 15 * 127 are at most 30480 and fit into 16 bits: 32 inputs are added up before they are
   widened. (In groups too small for a step, and in those that are not finite, a number may be -128: -30720 fits too.)
   A group with NaN or an infinity gets a step of NaN, so that its row says so instead of something plausible. */

#include "cpu_operators.h"

#include <immintrin.h>
#include <string.h>

enum { AHEAD = 2048, BLOCK = 32 };
/* Bytes that are asked for before they are needed; rows of activations that stay in the second cache while a panel is
   worked on. */

INLINE float highest(__m256 v) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

INLINE int32_t total(__m256i v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1)));
}

INLINE __m256i rounded_32(const float *x, __m256 inverse) {
    __m256i i[4];
    for (int j = 0; j < 4; j++) i[j] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * j), inverse));
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(i[0], i[1]), _mm256_packs_epi32(i[2], i[3]));
    return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

static void round_group(const float *x, int64_t size, int8_t *rounded, float *step, int32_t *offset) {
    __m256 most = _mm256_setzero_ps(), unfit = _mm256_setzero_ps();
    for (int64_t k = 0; k < size; k += 8) {
        const __m256 v = _mm256_loadu_ps(x + k);
        most = _mm256_max_ps(most, _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v));
        unfit = _mm256_fmadd_ps(v, _mm256_setzero_ps(), unfit); /* NaN where v is NaN or infinite */
    }
    const int is_finite = !_mm256_movemask_ps(_mm256_cmp_ps(unfit, unfit, _CMP_UNORD_Q));
    *step = is_finite ? highest(most) / 127.0f : __builtin_nanf("");
    const __m256 inverse = _mm256_set1_ps(*step > 0 ? 1.0f / *step : 0.0f);
    __m256i sums = _mm256_setzero_si256();
    for (int64_t k = 0; k < size; k += STRIDE) {
        const __m256i bytes = rounded_32(x + k, inverse);
        _mm256_storeu_si256((__m256i *)(rounded + k), bytes);
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(8), bytes);
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    *offset = -total(sums);
}

void product_round_row(void *work, size_t row) {
    const Product *w = work;
    for (int64_t group = 0; group < w->num_groups; group++) {
        const int64_t at = (int64_t)row * w->num_groups + group, left = w->num_inputs - group * w->group_size;
        const float *x = w->x + (int64_t)row * w->num_inputs + group * w->group_size;
        float filled[MOST_GROUP];
        if (left < w->group_size) {
            memset(filled, 0, sizeof filled);
            x = memcpy(filled, x, (size_t)left * sizeof(float));
        }
        round_group(x, w->group_size, w->rounded + at * w->group_size, w->steps + at, w->offsets + at);
    }
}

INLINE __m256i four(const int8_t *a) {
    int32_t bytes;
    memcpy(&bytes, a, sizeof bytes);
    return _mm256_set1_epi32(bytes);
}

/* The products of `rows` rows of activations with 8 outputs; `rows`, and the size of a small group, are constants where
   this is inlined, so that all sums stay in registers. */
INLINE void tile(const Product *w, int64_t m, int64_t n, const int rows, const int64_t group_size) {
    const int64_t groups = w->num_groups, padded = groups * group_size;
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    const uint8_t *codes = w->codes + n * padded / 2;
    const float *scales = w->scales + n * groups;
    const int8_t *a = w->rounded + m * padded;
    __m256 sums[4];
    for (int i = 0; i < rows; i++) sums[i] = _mm256_setzero_ps();
    for (int64_t group = 0; group < groups; group++) {
        __m256i whole[4];
        for (int i = 0; i < rows; i++) whole[i] = _mm256_set1_epi32(w->offsets[(m + i) * groups + group]);
        for (int64_t k = 0; k < group_size; k += STRIDE) {
            __m256i part[4];
#pragma GCC unroll 4
            for (int step = 0; step < 4; step++) {
                if (rows == 1 && step % 2 == 0) _mm_prefetch((const char *)codes + 32 * step + AHEAD, _MM_HINT_T0);
                const __m256i both = _mm256_loadu_si256((const __m256i *)(codes + 32 * step));
                const __m256i first = _mm256_and_si256(both, low);
                const __m256i last = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
                for (int i = 0; i < rows; i++) {
                    const int8_t *at = a + i * padded + 8 * step;
                    const __m256i low_four = _mm256_maddubs_epi16(first, four(at));
                    part[i] = step == 0 ? low_four : _mm256_add_epi16(part[i], low_four);
                    part[i] = _mm256_add_epi16(part[i], _mm256_maddubs_epi16(last, four(at + 4)));
                }
            }
            for (int i = 0; i < rows; i++) whole[i] = _mm256_add_epi32(whole[i], _mm256_madd_epi16(part[i], ones));
            codes += 4 * 32;
            a += STRIDE;
        }
        const __m256 scale = _mm256_loadu_ps(scales + group * OUTPUTS);
        for (int i = 0; i < rows; i++) {
            const __m256 step = _mm256_broadcast_ss(w->steps + (m + i) * groups + group);
            sums[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[i]), _mm256_mul_ps(scale, step), sums[i]);
        }
    }
    const int64_t left = w->num_outputs - n;
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i there = _mm256_cmpgt_epi32(_mm256_set1_epi32(left < 8 ? (int)left : 8), lanes);
    for (int i = 0; i < rows; i++) {
        if (w->bias) sums[i] = _mm256_add_ps(sums[i], _mm256_maskload_ps(w->bias + n, there));
        _mm256_maskstore_ps(w->y + (m + i) * w->num_outputs + n, there, sums[i]);
    }
}

INLINE void panel(const Product *w, int64_t first, int64_t last, const int64_t group_size) {
    for (int64_t block = 0; block < w->num_rows; block += BLOCK) {
        const int64_t stop = block + BLOCK < w->num_rows ? block + BLOCK : w->num_rows;
        for (int64_t n = first; n < last; n += OUTPUTS) {
            int64_t m = block;
            for (; m + 4 <= stop; m += 4) tile(w, m, n, 4, group_size);
            for (; m < stop; m++) tile(w, m, n, 1, group_size);
        }
    }
}

void product_run_panel(void *work, size_t index) {
    const Product *w = work;
    const int64_t first = (int64_t)index * PANEL, end = first + PANEL;
    const int64_t last = end < w->num_outputs ? end : w->num_outputs;
    if (has_wide_products()) product_run_wide(w, first, last);
    else if (w->group_size == STRIDE) panel(w, first, last, STRIDE);
    else panel(w, first, last, w->group_size);
}
