/* What the operators of our own compute, apart from how ONNX Runtime calls them (cpu_operators.c). Each has pieces of
   work that may run in any order and side by side: functions of the whole and the number of a piece. */

#include <stddef.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

enum { PANEL = 64, TILE = 4 };
/* Outputs of a piece of a product; queries of a piece of attention. */
enum { OUTPUTS = 8, STRIDE = 32, MOST_GROUP = 256 };
/* Outputs of a register; inputs between widenings, which groups are multiples of; inputs of the largest group. */

typedef struct {
    int64_t num_rows, num_inputs, num_outputs, num_groups, group_size;
    const uint8_t *codes; /* N/8, K/8, 32 */
    const float *scales;  /* N/8, G, 8 */
    const float *bias;    /* N, or none */
    const float *x;       /* M, K */
    float *y;             /* M, N */
    int8_t *rounded;      /* M, G * group_size */
    float *steps;         /* M, G */
    int32_t *offsets;     /* M, G: -8 * the sum of the rounded */
} Product;

void product_round_row(void *product, size_t row);  /* first all M of these */
void product_run_panel(void *product, size_t panel); /* then all N / PANEL of these */

int has_wide_products(void); /* whether the processor has what the next one takes */
void product_run_wide(const Product *product, int64_t first, int64_t last); /* outputs from the first to the last */

typedef struct {
    int64_t batch, num_tokens, num_heads, num_kv_heads, head_dim, num_slots;
    const float *queries;        /* of sequence b, token t, head h at b, t, h times the strides */
    float *attended;             /* laid out as the queries */
    int64_t strides[3];
    const float *keys, *values;  /* B, KV heads, S, D */
    float scale;
    int64_t window;              /* tokens that each sees, itself included; negative for all */
    const int32_t *last_slots;   /* B: where the last new token stands; none where there is a mask */
    const uint8_t *mask;         /* B, T, S */
    int lacks_memory;            /* set by any piece that could not get its own */
} Attention;

int64_t attention_tiles(const Attention *attention);
void attention_run_tile(void *attention, size_t tile);

typedef struct {
    Attention *attention;         /* its queries are written to `rotated`, its keys and values to their slots */
    const float *queries, *keys, *values; /* of a token, heads side by side */
    int64_t query_stride, key_stride;     /* from token to token */
    const float *cosines, *sines;         /* positions, D/2; or none */
    float *rotated, *present_keys, *present_values;
} NewTokens;

void new_tokens_place(void *new_tokens, size_t token); /* B * T of these, before the attention's tiles */
