/* Attention over a cache of keys and values, four queries at a time: those of one token that share their keys, and of
   the next tokens where fewer do. So a key is read once for four queries, and only as far as they see.

   Scores of all that a tile sees are kept, then the softmax is taken, then values are added up in blocks that stay in
   the first cache. All in fp32. */

#define _GNU_SOURCE
#include "cpu_operators.h"

#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

enum { VALUES = 64, AHEAD = 512 };
/* Of a block: at a head size of 64, half of the first cache; numbers that are asked for before they are needed. */

typedef struct {
    const float *queries[TILE];
    float *attended[TILE];
    const uint8_t *masks[TILE];
    int64_t first[TILE], end[TILE]; /* slots that a query sees, but for those that its mask hides */
    int64_t low, high;              /* slots that any of them sees */
} Tile;

/* e^x for x <= 0, NaN for NaN: 2^n times a polynomial (Cephes' expf, 2 units in the last place). */
INLINE __m256 exponential(__m256 x) {
    x = _mm256_max_ps(_mm256_set1_ps(-87.0f), x); /* of a number and NaN, the second */
    const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), 8);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 y = _mm256_set1_ps(1.9875691500e-4f);
    const float terms[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
    for (int i = 0; i < 5; i++) y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(terms[i]));
    y = _mm256_add_ps(_mm256_fmadd_ps(y, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0f));
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(y, _mm256_castsi256_ps(power));
}

/* The sums of the lanes of four registers, side by side. */
INLINE __m128 four_sums(__m256 a, __m256 b, __m256 c, __m256 d) {
    const __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}

/* Scores of `keys` keys in a row, a constant where it is inlined, with four queries. */
INLINE void score(const Attention *a, const Tile *tile, const float *key, const int keys, float *scores, int64_t width) {
    __m256 sums[2][TILE];
    for (int j = 0; j < keys; j++)
        for (int i = 0; i < TILE; i++) sums[j][i] = _mm256_setzero_ps();
    for (int64_t d = 0; d < a->head_dim; d += 8) {
        for (int j = 0; j < keys; j++) _mm_prefetch((const char *)(key + j * a->head_dim + d + AHEAD), _MM_HINT_T0);
        for (int i = 0; i < TILE; i++) {
            const __m256 query = _mm256_loadu_ps(tile->queries[i] + d);
            for (int j = 0; j < keys; j++)
                sums[j][i] = _mm256_fmadd_ps(query, _mm256_loadu_ps(key + j * a->head_dim + d), sums[j][i]);
        }
    }
    for (int j = 0; j < keys; j++) {
        float four[TILE];
        _mm_storeu_ps(four, _mm_mul_ps(four_sums(sums[j][0], sums[j][1], sums[j][2], sums[j][3]), _mm_set1_ps(a->scale)));
        for (int i = 0; i < TILE; i++) scores[i * width + j] = four[i];
    }
}

static float largest(const float *x, int64_t num) {
    __m256 most = _mm256_set1_ps(-__builtin_inff());
    int64_t j = 0;
    for (; j + 8 <= num; j += 8) most = _mm256_max_ps(most, _mm256_loadu_ps(x + j));
    float eight[8], result = -__builtin_inff();
    _mm256_storeu_ps(eight, most);
    for (int i = 0; i < 8; i++) result = eight[i] > result ? eight[i] : result;
    for (; j < num; j++) result = x[j] > result ? x[j] : result;
    return result;
}

/* Turns a query's scores into weights that add up to 1; what it does not see weighs nothing. */
static void weigh(float *scores, int64_t num, const Tile *tile, int i) {
    const int64_t first = tile->first[i] - tile->low, end = tile->end[i] - tile->low;
    for (int64_t j = 0; j < first; j++) scores[j] = 0;
    for (int64_t j = end > 0 ? end : 0; j < num; j++) scores[j] = 0;
    if (first >= end) return;
    for (int64_t j = first; j < end && tile->masks[i]; j++)
        if (!tile->masks[i][tile->low + j]) scores[j] = -__builtin_inff();
    const float most = largest(scores + first, end - first);
    __m256 sums = _mm256_setzero_ps();
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    for (int64_t j = first; j < end; j += 8) {
        const __m256i there = _mm256_cmpgt_epi32(_mm256_set1_epi32(end - j < 8 ? (int)(end - j) : 8), lanes);
        const __m256 x = _mm256_sub_ps(_mm256_maskload_ps(scores + j, there), _mm256_set1_ps(most));
        const __m256 is_seen = _mm256_cmp_ps(x, _mm256_set1_ps(-__builtin_inff()), _CMP_NLE_UQ); /* or is NaN */
        const __m256 y = _mm256_and_ps(exponential(x), _mm256_and_ps(is_seen, _mm256_castsi256_ps(there)));
        sums = _mm256_add_ps(sums, y);
        _mm256_maskstore_ps(scores + j, there, y);
    }
    float sum = 0, eight[8];
    _mm256_storeu_ps(eight, sums);
    for (int j = 0; j < 8; j++) sum += eight[j];
    for (int64_t j = first; j < end; j++) scores[j] /= sum;
}

/* Adds a block of weighted values to what four queries have so far, `wide` registers of them at a time. */
INLINE void add_values(float *sums, const float *value, const float *weights, int64_t width, int64_t num,
                       int64_t head_dim, const float *next, const int wide) {
    __m256 parts[TILE][2];
    for (int i = 0; i < TILE; i++)
        for (int w = 0; w < wide; w++) parts[i][w] = _mm256_loadu_ps(sums + i * head_dim + 8 * w);
    for (int64_t j = 0; j < num; j++) {
        _mm_prefetch((const char *)(next + 16 * j), _MM_HINT_T0);
        for (int w = 0; w < wide; w++) {
            const __m256 v = _mm256_loadu_ps(value + j * head_dim + 8 * w);
            for (int i = 0; i < TILE; i++)
                parts[i][w] = _mm256_fmadd_ps(_mm256_broadcast_ss(weights + i * width + j), v, parts[i][w]);
        }
    }
    for (int i = 0; i < TILE; i++)
        for (int w = 0; w < wide; w++) _mm256_storeu_ps(sums + i * head_dim + 8 * w, parts[i][w]);
}

static void see(const Attention *a, Tile *tile, int i, int64_t sequence, int64_t token) {
    if (a->mask) {
        const uint8_t *mask = a->mask + (sequence * a->num_tokens + token) * a->num_slots;
        const uint8_t *first = memchr(mask, 1, (size_t)a->num_slots);
        const uint8_t *last = first ? memrchr(mask, 1, (size_t)a->num_slots) : NULL;
        tile->masks[i] = mask;
        tile->first[i] = first ? first - mask : 0;
        tile->end[i] = first ? last - mask + 1 : 0;
    } else {
        const int64_t slot = a->last_slots[sequence] - a->num_tokens + 1 + token;
        tile->masks[i] = NULL;
        tile->first[i] = a->window >= 0 && slot + 1 > a->window ? slot + 1 - a->window : 0;
        tile->end[i] = slot + 1;
    }
}

static int64_t tiles_of_head(const Attention *a) {
    return (a->num_tokens * (a->num_heads / a->num_kv_heads) + TILE - 1) / TILE;
}

int64_t attention_tiles(const Attention *a) { return a->batch * a->num_kv_heads * tiles_of_head(a); }

void attention_run_tile(void *attention, size_t index) {
    Attention *a = attention;
    const int64_t tiles = tiles_of_head(a), shared = a->num_heads / a->num_kv_heads, rows = a->num_tokens * shared;
    const int64_t sequence = (int64_t)index / (a->num_kv_heads * tiles), kv_head = (int64_t)index / tiles % a->num_kv_heads;
    const int64_t row = (int64_t)index % tiles * TILE, there = rows - row < TILE ? rows - row : TILE;
    Tile tile = {.low = a->num_slots, .high = 0};
    for (int i = 0; i < TILE; i++) {
        const int64_t own = row + (i < there ? i : 0), token = own / shared, head = kv_head * shared + own % shared;
        const int64_t at = sequence * a->strides[0] + token * a->strides[1] + head * a->strides[2];
        tile.queries[i] = a->queries + at;
        tile.attended[i] = a->attended + at;
        see(a, &tile, i, sequence, token);
        if (tile.first[i] < tile.low) tile.low = tile.first[i];
        if (tile.end[i] > tile.high) tile.high = tile.end[i];
    }
    const int64_t num = tile.high > tile.low ? tile.high - tile.low : 0, head_dim = a->head_dim;
    const int64_t start = ((sequence * a->num_kv_heads + kv_head) * a->num_slots + tile.low) * head_dim;
    float *scores = malloc(sizeof(float) * (size_t)(TILE * num + TILE * head_dim));
    if (!scores) {
        __atomic_store_n(&a->lacks_memory, 1, __ATOMIC_RELAXED);
        return;
    }
    float *sums = scores + TILE * num;
    memset(sums, 0, sizeof(float) * (size_t)(TILE * head_dim));
    int64_t j = 0;
    for (; j + 2 <= num; j += 2) score(a, &tile, a->keys + start + j * head_dim, 2, scores + j, num);
    for (; j < num; j++) score(a, &tile, a->keys + start + j * head_dim, 1, scores + j, num);
    for (int i = 0; i < TILE; i++) weigh(scores + i * num, num, &tile, i);
    for (int64_t block = 0; block < num; block += VALUES) {
        const int64_t size = num - block < VALUES ? num - block : VALUES;
        const float *values = a->values + start + block * head_dim;
        const float *next = values + VALUES * head_dim; /* asked for from end to end, 64 bytes for each that is used */
        int64_t d = 0;
        for (; d + 16 <= head_dim; d += 16)
            add_values(sums + d, values + d, scores + block, num, size, head_dim, next + VALUES * d, 2);
        for (; d < head_dim; d += 8)
            add_values(sums + d, values + d, scores + block, num, size, head_dim, next + VALUES * d, 1);
    }
    for (int i = 0; i < there; i++) memcpy(tile.attended[i], sums + i * head_dim, sizeof(float) * (size_t)head_dim);
    free(scores);
}

/* One head, rotated by its halves. */
static void rotate(const float *x, const float *cosines, const float *sines, int64_t head_dim, float *rotated) {
    const int64_t half = head_dim / 2;
    for (int64_t d = 0; d < half; d++) {
        rotated[d] = x[d] * cosines[d] - x[d + half] * sines[d];
        rotated[d + half] = x[d + half] * cosines[d] + x[d] * sines[d];
    }
}

void new_tokens_place(void *new_tokens, size_t index) {
    const NewTokens *n = new_tokens;
    const Attention *a = n->attention;
    const int64_t sequence = (int64_t)index / a->num_tokens, token = (int64_t)index % a->num_tokens, dim = a->head_dim;
    const int64_t slot = a->last_slots[sequence] - a->num_tokens + 1 + token;
    const size_t bytes = sizeof(float) * (size_t)dim;
    const float *queries = n->queries + (int64_t)index * n->query_stride;
    const float *keys = n->keys + (int64_t)index * n->key_stride, *values = n->values + (int64_t)index * n->key_stride;
    const float *cosines = n->cosines ? n->cosines + slot * dim / 2 : NULL;
    const float *sines = n->sines ? n->sines + slot * dim / 2 : NULL;
    for (int64_t head = 0; head < a->num_heads && cosines; head++)
        rotate(queries + head * dim, cosines, sines, dim, n->rotated + ((int64_t)index * a->num_heads + head) * dim);
    for (int64_t head = 0; head < a->num_kv_heads; head++) {
        const int64_t at = ((sequence * a->num_kv_heads + head) * a->num_slots + slot) * dim;
        memcpy(n->present_values + at, values + head * dim, bytes);
        if (cosines) rotate(keys + head * dim, cosines, sines, dim, n->present_keys + at);
        else memcpy(n->present_keys + at, keys + head * dim, bytes);
    }
}
