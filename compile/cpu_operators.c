/* Our own operators as ONNX Runtime calls them, domain blockwright:

     Int4Product      x, codes, scales, bias? -> y                   MatMulNBits with woven weights
     CachedAttention  q, k?, v?, past keys, past values, last slots, cosines?, sines? -> attended, keys, values
                                                                     GroupQueryAttention; all in q where k is missing
     MaskedAttention  q, k, v, mask -> attended                      Attention of opset 24 under a mask of booleans

   ONNX Runtime's C interface is a table of functions whose order never changes; those used here are named by their
   place in it, so that none of its headers is needed. Each returns a status, NULL where all is well. */

#include "cpu_operators.h"

#include <stdlib.h>
#include <string.h>

typedef void *(*Function)();
enum {
    CREATE_STATUS = 0, CREATE_DOMAIN = 26, DOMAIN_ADD = 27, ADD_DOMAIN = 28, TENSOR_DATA = 51, NUM_DIMENSIONS = 61, DIMENSIONS = 62,
    SHAPE_OF = 65, ATTRIBUTE_FLOAT = 85, ATTRIBUTE_INT = 86, NUM_INPUTS = 88, INPUT = 90, OUTPUT = 91,
    RELEASE_SHAPE = 99, PARALLEL_FOR = 274,
};
enum { FAIL = 1, INVALID_ARGUMENT = 2 }; /* what a status says */
enum { TABLE_VERSION = 18, FLOAT = 1, UINT8 = 2, INT32 = 6, BOOL = 9, REQUIRED = 0, OPTIONAL = 1 };
enum { MOST_DIMENSIONS = 4, MOST_ATTRIBUTES = 3, MOST_PORTS = 8 };

typedef struct {
    const Function *(*table)(uint32_t version);
    const char *(*version)(void);
} Base;

/* In the order that ONNX Runtime has them; what is not needed stays NULL. Ours follows behind. */
typedef struct Operator {
    uint32_t version;
    void *(*create_old)();
    const char *(*name)(const struct Operator *);
    const char *(*provider)(const struct Operator *);
    int (*input_type)(const struct Operator *, size_t);
    size_t (*num_inputs)(const struct Operator *);
    int (*output_type)(const struct Operator *, size_t);
    size_t (*num_outputs)(const struct Operator *);
    void (*compute_old)();
    void (*destroy)(void *);
    int (*input_kind)(const struct Operator *, size_t);
    int (*output_kind)(const struct Operator *, size_t);
    int (*memory_kind)(const struct Operator *, size_t);
    int (*variadic[4])(const struct Operator *);
    void *(*create)(const struct Operator *, const Function *, const void *, void **);
    void *(*compute)(void *, void *);
    void *(*infer_shape)();
    int (*first_version)(const struct Operator *);
    int (*last_version)(const struct Operator *);
    void *(*aliases[4])();
    const char *own_name, *attributes[MOST_ATTRIBUTES];
    size_t own_inputs, own_outputs;
    int has_scale;
    int types[MOST_PORTS], kinds[MOST_PORTS];
} Operator;

typedef struct {
    const Function *api;
    int64_t told[MOST_ATTRIBUTES];
    float scale;
} Kernel;

typedef struct {
    void *value, *data;
    int64_t dimensions[MOST_DIMENSIONS];
    size_t num_dimensions;
} Tensor;

static void *out_of_memory(const Function *api) { return api[CREATE_STATUS](FAIL, "blockwright: out of memory"); }

/* Sizes are looked at before anything is read, so that a broken graph is an error and not a crash. */
static void *misfit(const Function *api) {
    return api[CREATE_STATUS](INVALID_ARGUMENT, "blockwright: inputs whose sizes do not fit each other");
}

static void *create(const Operator *op, const Function *api, const void *info, void **made) {
    Kernel *kernel = calloc(1, sizeof *kernel);
    void *status = NULL;
    if (!kernel) return out_of_memory(api);
    kernel->api = api;
    for (int i = 0; i < MOST_ATTRIBUTES && op->attributes[i] && !status; i++)
        status = api[ATTRIBUTE_INT](info, op->attributes[i], &kernel->told[i]);
    if (!status && op->has_scale) status = api[ATTRIBUTE_FLOAT](info, "scale", &kernel->scale);
    if (status) free(kernel);
    else *made = kernel;
    return status;
}

static void *input(const Function *api, void *context, size_t index, Tensor *tensor) {
    void *status, *shape;
    size_t num_inputs;
    memset(tensor, 0, sizeof *tensor);
    if ((status = api[NUM_INPUTS](context, &num_inputs)) || index >= num_inputs) return status;
    if ((status = api[INPUT](context, index, &tensor->value)) || !tensor->value) return status;
    if ((status = api[TENSOR_DATA](tensor->value, &tensor->data)) || (status = api[SHAPE_OF](tensor->value, &shape)))
        return status;
    if (!(status = api[NUM_DIMENSIONS](shape, &tensor->num_dimensions)) && tensor->num_dimensions <= MOST_DIMENSIONS)
        status = api[DIMENSIONS](shape, tensor->dimensions, tensor->num_dimensions);
    api[RELEASE_SHAPE](shape);
    return status;
}

static void *output(const Function *api, void *context, size_t index, const Tensor *like, float **data) {
    void *value, *status = api[OUTPUT](context, index, like->dimensions, like->num_dimensions, &value);
    return status ? status : api[TENSOR_DATA](value, data);
}

static int has_shape(const Tensor *tensor, size_t num_dimensions, const int64_t *dimensions) {
    if (tensor->num_dimensions != num_dimensions) return 0;
    return !memcmp(tensor->dimensions, dimensions, num_dimensions * sizeof *dimensions);
}

static int64_t numbers(const Tensor *tensor) {
    int64_t result = tensor->num_dimensions <= MOST_DIMENSIONS;
    for (size_t i = 0; i < tensor->num_dimensions && result; i++) result *= tensor->dimensions[i];
    return result;
}

static int product_fits(const Product *p, const Tensor *x, const Tensor *codes, const Tensor *scales, const Tensor *bias) {
    if (p->num_inputs <= 0 || p->num_outputs <= 0 || p->group_size <= 0 || p->group_size > MOST_GROUP) return 0;
    if (p->group_size % STRIDE || x->num_dimensions < 1 || x->num_dimensions > MOST_DIMENSIONS) return 0;
    const int64_t filled = (p->num_outputs + OUTPUTS - 1) / OUTPUTS * OUTPUTS;
    const int64_t groups = (p->num_inputs + p->group_size - 1) / p->group_size;
    return x->dimensions[x->num_dimensions - 1] == p->num_inputs && numbers(scales) == filled * groups &&
           numbers(codes) == filled * groups * p->group_size / 2 && (!bias->value || numbers(bias) == p->num_outputs);
}

static void *multiply(void *made, void *context) {
    const Kernel *kernel = made;
    const Function *api = kernel->api;
    Product p = {.num_inputs = kernel->told[0], .num_outputs = kernel->told[1], .group_size = kernel->told[2]};
    Tensor x, codes, scales, bias;
    void *status;
    if ((status = input(api, context, 0, &x)) || (status = input(api, context, 1, &codes)) ||
        (status = input(api, context, 2, &scales)) || (status = input(api, context, 3, &bias)))
        return status;
    if (!product_fits(&p, &x, &codes, &scales, &bias)) return misfit(api);
    p.x = x.data, p.codes = codes.data, p.scales = scales.data, p.bias = bias.data;
    p.num_rows = 1;
    for (size_t i = 0; i + 1 < x.num_dimensions; i++) p.num_rows *= x.dimensions[i];
    x.dimensions[x.num_dimensions - 1] = p.num_outputs;
    if ((status = output(api, context, 0, &x, &p.y)) || !p.num_rows) return status;
    p.num_groups = (p.num_inputs + p.group_size - 1) / p.group_size;
    const size_t rows = (size_t)p.num_rows, groups = (size_t)p.num_groups;
    const size_t panels = (size_t)(p.num_outputs + PANEL - 1) / PANEL;
    char *space = malloc(rows * groups * ((size_t)p.group_size + sizeof(float) + sizeof(int32_t)));
    if (!space) return out_of_memory(api);
    p.rounded = (int8_t *)space;
    p.steps = (float *)(space + rows * groups * (size_t)p.group_size);
    p.offsets = (int32_t *)(p.steps + rows * groups);
    if (rows == 1) product_round_row(&p, 0);
    else status = api[PARALLEL_FOR](context, product_round_row, rows, (size_t)0, &p);
    if (!status) status = api[PARALLEL_FOR](context, product_run_panel, panels, panels, &p);
    free(space);
    return status;
}

enum { Q, K, V, PAST_KEYS, PAST_VALUES, LAST, COSINES, SINES };

static int attention_fits(const Attention *a) {
    return a->num_heads > 0 && a->num_kv_heads > 0 && a->num_heads % a->num_kv_heads == 0 && a->head_dim > 0 &&
           a->head_dim % 8 == 0;
}

/* Whether what CachedAttention is given fits, and all new tokens have a slot and an angle. */
static int cached_fits(const Attention *a, const Tensor *in) {
    if (!attention_fits(a) || !in[K].value != !in[V].value || !in[COSINES].value != !in[SINES].value) return 0;
    const int64_t b = a->batch, t = a->num_tokens, dim = a->head_dim, kv_width = a->num_kv_heads * dim;
    const int64_t width = a->num_heads * dim + (in[K].value ? 0 : 2 * kv_width), angles = in[COSINES].dimensions[0];
    const int64_t query[] = {b, t, width}, key[] = {b, t, kv_width}, cache[] = {b, a->num_kv_heads, a->num_slots, dim};
    const int64_t table[] = {angles, dim / 2};
    if (!has_shape(&in[Q], 3, query) || !has_shape(&in[PAST_KEYS], 4, cache) || !has_shape(&in[PAST_VALUES], 4, cache))
        return 0;
    if (in[K].value && (!has_shape(&in[K], 3, key) || !has_shape(&in[V], 3, key))) return 0;
    if (in[SINES].value && (!has_shape(&in[COSINES], 2, table) || !has_shape(&in[SINES], 2, table))) return 0;
    if (numbers(&in[LAST]) != b) return 0;
    for (int64_t i = 0; i < b; i++) {
        const int64_t last = a->last_slots[i];
        if (last < t - 1 || last >= a->num_slots || (in[SINES].value && last >= angles)) return 0;
    }
    return 1;
}

static void *attend(void *made, void *context) {
    const Kernel *kernel = made;
    const Function *api = kernel->api;
    Tensor in[MOST_PORTS];
    void *status;
    for (size_t i = 0; i < MOST_PORTS; i++)
        if ((status = input(api, context, i, &in[i]))) return status;
    const int64_t heads = kernel->told[0], kv_heads = kernel->told[1], dim = in[PAST_KEYS].dimensions[3];
    const int64_t batch = in[Q].dimensions[0], tokens = in[Q].dimensions[1];
    Attention a = {.batch = batch, .num_tokens = tokens, .num_heads = heads, .num_kv_heads = kv_heads, .head_dim = dim};
    a.num_slots = in[PAST_KEYS].dimensions[2], a.scale = kernel->scale, a.window = kernel->told[2];
    a.last_slots = in[LAST].data;
    if (!cached_fits(&a, in)) return misfit(api);
    a.strides[0] = tokens * heads * dim, a.strides[1] = heads * dim, a.strides[2] = dim;
    NewTokens n = {.attention = &a, .queries = in[Q].data, .cosines = in[COSINES].data, .sines = in[SINES].data};
    n.query_stride = in[Q].dimensions[2], n.key_stride = in[K].data ? kv_heads * dim : n.query_stride;
    n.keys = in[K].data ? in[K].data : n.queries + heads * dim;
    n.values = in[V].data ? in[V].data : n.queries + (heads + kv_heads) * dim;
    Tensor like = in[Q];
    like.dimensions[2] = heads * dim;
    if ((status = output(api, context, 0, &like, &a.attended)) ||
        (status = output(api, context, 1, &in[PAST_KEYS], &n.present_keys)) ||
        (status = output(api, context, 2, &in[PAST_VALUES], &n.present_values)))
        return status;
    const size_t cache_bytes = sizeof(float) * (size_t)(batch * kv_heads * a.num_slots * dim);
    if (n.present_keys != in[PAST_KEYS].data) memcpy(n.present_keys, in[PAST_KEYS].data, cache_bytes);
    if (n.present_values != in[PAST_VALUES].data) memcpy(n.present_values, in[PAST_VALUES].data, cache_bytes);
    if (!batch || !tokens) return NULL;
    n.rotated = n.cosines ? malloc(sizeof(float) * (size_t)(batch * tokens * heads * dim)) : NULL;
    if (n.cosines && !n.rotated) return out_of_memory(api);
    a.queries = n.cosines ? n.rotated : n.queries;
    a.keys = n.present_keys, a.values = n.present_values;
    const size_t places = (size_t)(batch * tokens), tiles = (size_t)attention_tiles(&a);
    if (places == 1) new_tokens_place(&n, 0);
    else status = api[PARALLEL_FOR](context, new_tokens_place, places, (size_t)0, &n);
    if (!status) status = api[PARALLEL_FOR](context, attention_run_tile, tiles, tiles, &a);
    free(n.rotated);
    return !status && a.lacks_memory ? out_of_memory(api) : status;
}

static void *attend_masked(void *made, void *context) {
    const Kernel *kernel = made;
    const Function *api = kernel->api;
    Tensor q, k, v, mask;
    Attention a = {.scale = kernel->scale};
    void *status;
    if ((status = input(api, context, 0, &q)) || (status = input(api, context, 1, &k)) ||
        (status = input(api, context, 2, &v)) || (status = input(api, context, 3, &mask)))
        return status;
    a.batch = q.dimensions[0], a.num_heads = q.dimensions[1], a.num_tokens = q.dimensions[2], a.head_dim = q.dimensions[3];
    a.num_kv_heads = k.dimensions[1], a.num_slots = k.dimensions[2];
    a.strides[0] = a.num_heads * a.num_tokens * a.head_dim, a.strides[1] = a.head_dim;
    a.strides[2] = a.num_tokens * a.head_dim;
    const int64_t key[] = {a.batch, a.num_kv_heads, a.num_slots, a.head_dim};
    const int64_t seen[] = {a.batch, 1, a.num_tokens, a.num_slots};
    if (!attention_fits(&a) || q.num_dimensions != 4 || !has_shape(&k, 4, key) || !has_shape(&v, 4, key) ||
        !has_shape(&mask, 4, seen))
        return misfit(api);
    if ((status = output(api, context, 0, &q, &a.attended)) || !numbers(&q)) return status;
    a.queries = q.data, a.keys = k.data, a.values = v.data, a.mask = mask.data;
    const size_t tiles = (size_t)attention_tiles(&a);
    status = api[PARALLEL_FOR](context, attention_run_tile, tiles, tiles, &a);
    return !status && a.lacks_memory ? out_of_memory(api) : status;
}

static const char *name(const Operator *op) { return op->own_name; }
static const char *provider(const Operator *op) { (void)op; return "CPUExecutionProvider"; }
static int input_type(const Operator *op, size_t index) { return op->types[index]; }
static size_t num_inputs(const Operator *op) { return op->own_inputs; }
static int output_type(const Operator *op, size_t index) { (void)op; (void)index; return FLOAT; }
static size_t num_outputs(const Operator *op) { return op->own_outputs; }
static int input_kind(const Operator *op, size_t index) { return op->kinds[index]; }
static int zero(const Operator *op, size_t index) { (void)op; (void)index; return 0; }
static int only_version(const Operator *op) { (void)op; return 1; }

#define COMMON                                                                                                        \
    .version = TABLE_VERSION, .name = name, .provider = provider, .input_type = input_type, .num_inputs = num_inputs, \
    .output_type = output_type, .num_outputs = num_outputs, .destroy = free, .input_kind = input_kind,                \
    .output_kind = zero, .memory_kind = zero, .create = create, .first_version = only_version,                        \
    .last_version = only_version

static const Operator operators[] = {
    {COMMON, .compute = multiply, .own_name = "Int4Product", .attributes = {"K", "N", "block_size"}, .own_inputs = 4,
     .own_outputs = 1, .types = {FLOAT, UINT8, FLOAT, FLOAT}, .kinds = {REQUIRED, REQUIRED, REQUIRED, OPTIONAL}},
    {COMMON, .compute = attend, .own_name = "CachedAttention", .own_inputs = 8, .own_outputs = 3, .has_scale = 1,
     .attributes = {"num_heads", "kv_num_heads", "local_window_size"},
     .types = {FLOAT, FLOAT, FLOAT, FLOAT, FLOAT, INT32, FLOAT, FLOAT},
     .kinds = {REQUIRED, OPTIONAL, OPTIONAL, REQUIRED, REQUIRED, REQUIRED, OPTIONAL, OPTIONAL}},
    {COMMON, .compute = attend_masked, .own_name = "MaskedAttention", .own_inputs = 4, .own_outputs = 1, .has_scale = 1,
     .types = {FLOAT, FLOAT, FLOAT, BOOL}},
};

/* One domain for all sessions of a process. Two threads may make one each: the second one's is left lying. */
__attribute__((visibility("default"))) void *RegisterCustomOps(void *options, const Base *base) {
    static void *domain;
    const Function *api = base->table(TABLE_VERSION);
    void *status, *made = NULL, *found = __atomic_load_n(&domain, __ATOMIC_ACQUIRE);
    if (!api) return NULL; /* an older ONNX Runtime: it will not know the operators of the graph */
    if (!found) {
        if ((status = api[CREATE_DOMAIN]("blockwright", &made))) return status;
        for (size_t i = 0; i < sizeof operators / sizeof *operators; i++)
            if ((status = api[DOMAIN_ADD](made, &operators[i]))) return status;
        if (__atomic_compare_exchange_n(&domain, &found, made, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) found = made;
    }
    return api[ADD_DOMAIN](options, found);
}
