/* Activations times int4 weights for ONNX Runtime, on processors with AVX2: operator Int4Product of domain blockwright.

   y[m, n] = sum over groups g of scale[n, g] * step[m, g] * (sum over k in g of (code[n, k] - 8) * a[m, k])  (+ bias[n])

   Activations are rounded to int8, a, with one step per row and group, as ONNX Runtime does at accuracy level 4.
   Weights are woven (cpu_products.py): 32 bytes hold 8 inputs of 8 outputs, output by output, and of each the first four
   inputs in the lower halves, the last four in the upper. So one stream is read from end to end, four activations are
   broadcast at a time, and the eight numbers of a register belong to eight outputs, whose scales lie side by side.
   Sums of 16 products of up to 15 * 127 fit into 16 bits: 32 inputs are added up before they are widened.

   ONNX Runtime's C interface is a table of functions whose order never changes; those used here are named by their
   place in it, so that none of its headers is needed. */

#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORTED __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))

enum { OUTPUTS = 8, STRIDE = 32, AHEAD = 2048 };
/* Of a register; inputs between widenings; bytes that are asked for before they are needed. */
enum { MOST_GROUP = 256, PANEL = 64, BLOCK = 32 };
/* Outputs of a task; rows of activations that stay in the second cache while a panel is worked on. */

typedef struct {
    int64_t num_rows, num_inputs, num_outputs, num_groups, group_size;
    const uint8_t *codes; /* N/8, K/8, 32 */
    const float *scales;  /* N/8, G, 8 */
    const float *bias;    /* N, or none */
    const float *x;       /* M, K */
    float *y;             /* M, N */
    int8_t *rounded;      /* M, G * group_size */
    float *steps;         /* M, G */
    int32_t *offsets;     /* M, G: 8 * the sum of the rounded */
} Work;

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
    __m256 most = _mm256_setzero_ps();
    for (int64_t k = 0; k < size; k += 8)
        most = _mm256_max_ps(most, _mm256_andnot_ps(_mm256_set1_ps(-0.0f), _mm256_loadu_ps(x + k)));
    *step = highest(most) / 127.0f;
    const __m256 inverse = _mm256_set1_ps(*step > 0 ? 1.0f / *step : 0.0f);
    __m256i sums = _mm256_setzero_si256();
    for (int64_t k = 0; k < size; k += STRIDE) {
        const __m256i bytes = rounded_32(x + k, inverse);
        _mm256_storeu_si256((__m256i *)(rounded + k), bytes);
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(8), bytes);
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    *offset = total(sums);
}

static void round_row(void *work, size_t row) {
    const Work *w = work;
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

/* The products of `rows` rows of activations, a constant where it is inlined, with 8 outputs. */
INLINE void tile(const Work *w, int64_t m, int64_t n, const int rows) {
    const int64_t groups = w->num_groups, padded = groups * w->group_size;
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    const uint8_t *codes = w->codes + n * padded / 2;
    const float *scales = w->scales + n * groups;
    const int8_t *a = w->rounded + m * padded;
    __m256 sums[4];
    for (int i = 0; i < rows; i++) sums[i] = _mm256_setzero_ps();
    for (int64_t group = 0; group < groups; group++) {
        __m256i whole[4];
        for (int i = 0; i < rows; i++) whole[i] = _mm256_set1_epi32(-w->offsets[(m + i) * groups + group]);
        for (int64_t k = 0; k < w->group_size; k += STRIDE) {
            __m256i part[4];
            for (int i = 0; i < rows; i++) part[i] = _mm256_setzero_si256();
#pragma GCC unroll 4
            for (int step = 0; step < 4; step++) {
                if (rows == 1 && step % 2 == 0) _mm_prefetch((const char *)codes + 32 * step + AHEAD, _MM_HINT_T0);
                const __m256i both = _mm256_loadu_si256((const __m256i *)(codes + 32 * step));
                const __m256i first = _mm256_and_si256(both, low);
                const __m256i last = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
                for (int i = 0; i < rows; i++) {
                    const int8_t *at = a + i * padded + 8 * step;
                    part[i] = _mm256_add_epi16(part[i], _mm256_maddubs_epi16(first, four(at)));
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

static void run_panel(void *work, size_t index) {
    const Work *w = work;
    const int64_t first = (int64_t)index * PANEL, end = first + PANEL;
    const int64_t last = end < w->num_outputs ? end : w->num_outputs;
    for (int64_t block = 0; block < w->num_rows; block += BLOCK) {
        const int64_t stop = block + BLOCK < w->num_rows ? block + BLOCK : w->num_rows;
        for (int64_t n = first; n < last; n += OUTPUTS) {
            int64_t m = block;
            for (; m + 4 <= stop; m += 4) tile(w, m, n, 4);
            for (; m < stop; m++) tile(w, m, n, 1);
        }
    }
}

/* What follows is ONNX Runtime's side. Every function of the table that is used returns a status, NULL where all is well. */

typedef void *(*Function)();
enum {
    CREATE_STATUS = 0, CREATE_DOMAIN = 26, DOMAIN_ADD = 27, ADD_DOMAIN = 28, TENSOR_DATA = 51, NUM_DIMENSIONS = 61, DIMENSIONS = 62,
    SHAPE_OF = 65, ATTRIBUTE_INT = 86, NUM_INPUTS = 88, INPUT = 90, OUTPUT = 91, RELEASE_SHAPE = 99, PARALLEL_FOR = 274,
};
enum { TABLE_VERSION = 18, FLOAT = 1, UINT8 = 2, REQUIRED = 0, OPTIONAL = 1, MOST_DIMENSIONS = 8, INVALID = 2 };

typedef struct {
    const Function *(*table)(uint32_t version);
    const char *(*version)(void);
} Base;

typedef struct {
    int64_t num_inputs, num_outputs, group_size;
} Shape;

typedef struct {
    const Function *api;
    Shape shape;
} Kernel;

static void *create(const void *op, const Function *api, const void *info, void **made) {
    Kernel *kernel = malloc(sizeof *kernel);
    void *status;
    (void)op;
    kernel->api = api;
    if ((status = api[ATTRIBUTE_INT](info, "K", &kernel->shape.num_inputs)) ||
        (status = api[ATTRIBUTE_INT](info, "N", &kernel->shape.num_outputs)) ||
        (status = api[ATTRIBUTE_INT](info, "block_size", &kernel->shape.group_size))) {
        free(kernel);
        return status;
    }
    *made = kernel;
    return NULL;
}

static void *data_of(const Function *api, void *context, size_t index, void **data, void **value) {
    void *status = api[INPUT](context, index, value);
    *data = NULL;
    if (status || !*value) return status;
    return api[TENSOR_DATA](*value, data);
}

static void *compute(void *made, void *context) {
    const Kernel *kernel = made;
    const Function *api = kernel->api;
    const Shape s = kernel->shape;
    Work w = {.num_inputs = s.num_inputs, .num_outputs = s.num_outputs, .group_size = s.group_size};
    void *status, *x, *unused, *shape, *y;
    size_t num_inputs, num_dimensions;
    int64_t dimensions[MOST_DIMENSIONS];
    if ((status = api[NUM_INPUTS](context, &num_inputs)) || (status = data_of(api, context, 0, (void **)&w.x, &x)) ||
        (status = data_of(api, context, 1, (void **)&w.codes, &unused)) ||
        (status = data_of(api, context, 2, (void **)&w.scales, &unused)) ||
        (num_inputs > 3 && (status = data_of(api, context, 3, (void **)&w.bias, &unused))) ||
        (status = api[SHAPE_OF](x, &shape)))
        return status;
    status = api[NUM_DIMENSIONS](shape, &num_dimensions);
    if (!status && num_dimensions > MOST_DIMENSIONS) status = api[CREATE_STATUS](INVALID, "Int4Product: too many dimensions");
    if (!status) status = api[DIMENSIONS](shape, dimensions, num_dimensions);
    api[RELEASE_SHAPE](shape);
    if (status) return status;
    w.num_rows = 1;
    for (size_t i = 0; i + 1 < num_dimensions; i++) w.num_rows *= dimensions[i];
    dimensions[num_dimensions - 1] = s.num_outputs;
    if ((status = api[OUTPUT](context, (size_t)0, dimensions, num_dimensions, &y)) ||
        (status = api[TENSOR_DATA](y, &w.y)))
        return status;
    w.num_groups = (s.num_inputs + s.group_size - 1) / s.group_size;
    const size_t rows = (size_t)w.num_rows, groups = (size_t)w.num_groups;
    char *space = malloc(rows * groups * ((size_t)s.group_size + sizeof(float) + sizeof(int32_t)));
    w.rounded = (int8_t *)space;
    w.steps = (float *)(space + rows * groups * (size_t)s.group_size);
    w.offsets = (int32_t *)(w.steps + rows * groups);
    const size_t panels = (size_t)(s.num_outputs + PANEL - 1) / PANEL;
    status = NULL;
    if (rows == 1) round_row(&w, 0);
    else status = api[PARALLEL_FOR](context, round_row, rows, (size_t)0, &w);
    if (!status) status = api[PARALLEL_FOR](context, run_panel, panels, panels, &w);
    free(space);
    return status;
}

static void destroy(void *kernel) { free(kernel); }
static const char *name(const void *op) { (void)op; return "Int4Product"; }
static const char *provider(const void *op) { (void)op; return "CPUExecutionProvider"; }
static int input_type(const void *op, size_t index) { (void)op; return index == 1 ? UINT8 : FLOAT; }
static size_t num_inputs(const void *op) { (void)op; return 4; }
static int output_type(const void *op, size_t index) { (void)op; (void)index; return FLOAT; }
static size_t num_outputs(const void *op) { (void)op; return 1; }
static int input_kind(const void *op, size_t index) { (void)op; return index == 3 ? OPTIONAL : REQUIRED; }
static int output_kind(const void *op, size_t index) { (void)op; (void)index; return REQUIRED; }
static int memory_kind(const void *op, size_t index) { (void)op; (void)index; return 0; }
static int first_version(const void *op) { (void)op; return 1; }
static int last_version(const void *op) { (void)op; return 1; }

/* In the order that ONNX Runtime has them; what is not needed stays NULL. */
static const struct {
    uint32_t version;
    void *(*create_old)();
    const char *(*name)(const void *);
    const char *(*provider)(const void *);
    int (*input_type)(const void *, size_t);
    size_t (*num_inputs)(const void *);
    int (*output_type)(const void *, size_t);
    size_t (*num_outputs)(const void *);
    void (*compute_old)();
    void (*destroy)(void *);
    int (*input_kind)(const void *, size_t);
    int (*output_kind)(const void *, size_t);
    int (*memory_kind)(const void *, size_t);
    int (*variadic[4])(const void *);
    void *(*create)(const void *, const Function *, const void *, void **);
    void *(*compute)(void *, void *);
    void *(*infer_shape)();
    int (*first_version)(const void *);
    int (*last_version)(const void *);
    void *(*aliases[4])();
} operator_ = {
    .version = TABLE_VERSION, .name = name, .provider = provider, .input_type = input_type, .num_inputs = num_inputs,
    .output_type = output_type, .num_outputs = num_outputs, .destroy = destroy, .input_kind = input_kind,
    .output_kind = output_kind, .memory_kind = memory_kind, .create = create, .compute = compute,
    .first_version = first_version, .last_version = last_version,
};

EXPORTED void *RegisterCustomOps(void *options, const Base *base) {
    const Function *api = base->table(TABLE_VERSION);
    static void *domain;
    void *status = NULL;
    if (!domain && ((status = api[CREATE_DOMAIN]("blockwright", &domain)) || (status = api[DOMAIN_ADD](domain, &operator_))))
        return status;
    return api[ADD_DOMAIN](options, domain);
}
