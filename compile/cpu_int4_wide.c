/* The same products as cpu_int4.c's, to the last bit, on processors with AVX-512 and its VNNI: one instruction there
   multiplies four pairs of bytes for each of 16 outputs and adds them up in 32 bits. */

#include "cpu_operators.h"

#include <immintrin.h>
#include <string.h>

#define WIDE __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
#define WIDE_INLINE static inline __attribute__((always_inline, target("avx512f,avx512bw,avx512vl,avx512vnni")))

enum { AHEAD = 2048, BLOCK = 32, LANES = 2 * OUTPUTS, MOST_ROWS = 4, MOST_COLUMNS = 2 };
/* Bytes that are asked for before they are needed; rows that stay in the second cache; outputs of a register; rows and
   registers of outputs of a tile. */

int has_wide_products(void) {
#ifdef NARROW /* to hold the two against one another on one machine */
    return 0;
#endif
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

/* What lies side by side for each of two eights of outputs. */
typedef struct {
    const uint8_t *codes[2];
    const float *scales[2];
} Sixteen;

/* Where outputs end behind the first eight, these are read twice and stored once. */
WIDE_INLINE Sixteen sixteen_at(const Product *w, int64_t n) {
    const int64_t code_bytes = w->num_groups * w->group_size / 2, second = n + OUTPUTS < w->num_outputs ? n + OUTPUTS : n;
    return (Sixteen){.codes = {w->codes + n * code_bytes, w->codes + second * code_bytes},
                     .scales = {w->scales + n * w->num_groups, w->scales + second * w->num_groups}};
}

WIDE_INLINE __m512i four(const int8_t *a) {
    int32_t bytes;
    memcpy(&bytes, a, sizeof bytes);
    return _mm512_set1_epi32(bytes);
}

WIDE_INLINE __m512 scales_at(const Sixteen *of, int64_t group) {
    const __m256d first = _mm256_castps_pd(_mm256_loadu_ps(of->scales[0] + group * OUTPUTS));
    const __m256d second = _mm256_castps_pd(_mm256_loadu_ps(of->scales[1] + group * OUTPUTS));
    return _mm512_castpd_ps(_mm512_insertf64x4(_mm512_castpd256_pd512(first), second, 1));
}

/* The products of `rows` rows with `columns` registers of outputs; both, and the size of a small group, are constants
   where this is inlined. */
WIDE_INLINE void tile(const Product *w, int64_t m, int64_t n, const int rows, const int columns, const int64_t size) {
    const int64_t groups = w->num_groups, padded = groups * size;
    const __m512i low = _mm512_set1_epi8(15);
    const int8_t *a = w->rounded + m * padded;
    Sixteen of[MOST_COLUMNS];
    __m512 sums[MOST_ROWS][MOST_COLUMNS];
    for (int c = 0; c < columns; c++) {
        of[c] = sixteen_at(w, n + c * LANES);
        for (int i = 0; i < rows; i++) sums[i][c] = _mm512_setzero_ps();
    }
    int64_t at = 0;
    for (int64_t group = 0; group < groups; group++) {
        __m512i whole[MOST_ROWS][MOST_COLUMNS];
        for (int c = 0; c < columns; c++)
            for (int i = 0; i < rows; i++) whole[i][c] = _mm512_set1_epi32(w->offsets[(m + i) * groups + group]);
#pragma GCC unroll 4
        for (int64_t k = 0; k < size; k += 8, at += 32, a += 8) {
            for (int c = 0; c < columns; c++) {
                const __m256i one = _mm256_loadu_si256((const __m256i *)(of[c].codes[0] + at));
                const __m256i other = _mm256_loadu_si256((const __m256i *)(of[c].codes[1] + at));
                const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(one), other, 1);
                const __m512i first = _mm512_and_si512(both, low);
                const __m512i last = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
                for (int i = 0; i < rows; i++) {
                    const int8_t *row = a + i * padded;
                    whole[i][c] = _mm512_dpbusd_epi32(whole[i][c], first, four(row));
                    whole[i][c] = _mm512_dpbusd_epi32(whole[i][c], last, four(row + 4));
                }
            }
        }
        for (int c = 0; c < columns; c++) {
            const __m512 scale = scales_at(of + c, group);
            for (int i = 0; i < rows; i++) {
                const __m512 step = _mm512_set1_ps(w->steps[(m + i) * groups + group]);
                sums[i][c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[i][c]), _mm512_mul_ps(scale, step), sums[i][c]);
            }
        }
    }
    for (int c = 0; c < columns; c++) {
        const int64_t output = n + c * LANES, left = w->num_outputs - output;
        const __mmask16 there = left < LANES ? (__mmask16)((1u << left) - 1) : 0xFFFF;
        for (int i = 0; i < rows; i++) {
            if (w->bias) sums[i][c] = _mm512_add_ps(sums[i][c], _mm512_maskz_loadu_ps(there, w->bias + output));
            _mm512_mask_storeu_ps(w->y + (m + i) * w->num_outputs + output, there, sums[i][c]);
        }
    }
}

/* The products of one row with 8 outputs: memory is what counts, so codes are read as one stream from end to end, 16
   inputs at a time. Sums of the lower and the upper halves of bytes do not wait for each other. */
WIDE_INLINE void single(const Product *w, int64_t m, int64_t n, const int64_t size) {
    const int64_t groups = w->num_groups, padded = groups * size;
    const __m512i low = _mm512_set1_epi8(15);
    const __m512i firsts = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi32(2), 1);
    const __m512i lasts = _mm512_add_epi32(firsts, _mm512_set1_epi32(1));
    const uint8_t *codes = w->codes + n * padded / 2;
    const float *scales = w->scales + n * groups;
    const int8_t *a = w->rounded + m * padded;
    __m256 sums = _mm256_setzero_ps();
    for (int64_t group = 0; group < groups; group++) {
        __m512i lower = _mm512_setzero_si512(), upper = _mm512_setzero_si512();
#pragma GCC unroll 2
        for (int64_t k = 0; k < size; k += 16, codes += 64, a += 16) {
            _mm_prefetch((const char *)codes + AHEAD, _MM_HINT_T0);
            const __m512i both = _mm512_loadu_si512(codes);
            const __m512i sixteen = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)a));
            const __m512i first = _mm512_and_si512(both, low);
            const __m512i last = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
            lower = _mm512_dpbusd_epi32(lower, first, _mm512_permutexvar_epi32(firsts, sixteen));
            upper = _mm512_dpbusd_epi32(upper, last, _mm512_permutexvar_epi32(lasts, sixteen));
        }
        const __m512i all = _mm512_add_epi32(lower, upper);
        __m256i whole = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
        whole = _mm256_add_epi32(whole, _mm256_set1_epi32(w->offsets[m * groups + group]));
        const __m256 step = _mm256_set1_ps(w->steps[m * groups + group]);
        const __m256 scale = _mm256_mul_ps(_mm256_loadu_ps(scales + group * OUTPUTS), step);
        sums = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), scale, sums);
    }
    const int64_t left = w->num_outputs - n;
    const __mmask8 there = left < OUTPUTS ? (__mmask8)((1u << left) - 1) : 0xFF;
    if (w->bias) sums = _mm256_add_ps(sums, _mm256_maskz_loadu_ps(there, w->bias + n));
    _mm256_mask_storeu_ps(w->y + m * w->num_outputs + n, there, sums);
}

WIDE_INLINE void panel(const Product *w, int64_t first, int64_t last, const int64_t size) {
    for (int64_t block = 0; block < w->num_rows; block += BLOCK) {
        const int64_t stop = block + BLOCK < w->num_rows ? block + BLOCK : w->num_rows;
        const int64_t whole = block + (stop - block) / MOST_ROWS * MOST_ROWS;
        for (int64_t n = first; n < last && block < whole; n += MOST_COLUMNS * LANES)
            for (int64_t m = block; m < whole; m += MOST_ROWS) {
                if (n + LANES < last) tile(w, m, n, MOST_ROWS, MOST_COLUMNS, size);
                else tile(w, m, n, MOST_ROWS, 1, size);
            }
        for (int64_t n = first; n < last; n += OUTPUTS)
            for (int64_t m = whole; m < stop; m++) single(w, m, n, size);
    }
}

WIDE void product_run_wide(const Product *w, int64_t first, int64_t last) {
    if (w->group_size == STRIDE) panel(w, first, last, STRIDE);
    else panel(w, first, last, w->group_size);
}
