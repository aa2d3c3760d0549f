// An encoder of the BERT family on a CPU: one call computes all layers for the tokens of a batch.
//
// Called through ctypes. inference/encoder/native_encoder.py owns all tensors that the structs point
// to, and mirrors the structs. Texts follow each other without padding; each attends to all of its
// own tokens. Its keys and values are stored as pages of attention.h, of this batch and layer only.
#include "attention.h"
#include "buffers.h"
#include "gemm.h"
#include "pool.h"

typedef enum { GELU = 0, GELU_TANH = 1, RELU = 2 } Activation;

typedef struct {
    int32_t cache_type;  // of the keys and values: FLOAT32 or BFLOAT16
    int32_t num_layers, hidden_size, intermediate_size, num_heads, head_dim, activation;
    float eps;
} EncoderConfig;

typedef struct {
    Matrix qkv, out, inner, outer;
    const float *attention_norm, *attention_norm_bias, *output_norm, *output_norm_bias;
} EncoderLayer;

// The input of a batch. Text s has the rows [begins[s], begins[s + 1]).
typedef struct {
    int32_t num_tokens, num_texts;
    float *hidden;          // [num_tokens][hidden_size]; contains the sums of the embeddings, which
                            // the last hidden states replace
    const int32_t *begins;  // [num_texts + 1] first row of each text
} BatchArguments;

typedef struct {
    EncoderConfig config;
    EncoderLayer *layers;
    const float *norm, *norm_bias;  // of the embeddings
    AttentionShape shape;
    Pool *pool;  // not owned
    BatchArguments batch;
    int num_rows, num_pages;  // capacities of the buffers below
    float *qkv, *mixed, *wide_values;
    Activations narrow, wide;  // of hidden_size, and of intermediate_size
    uint8_t *keys, *values;    // [num_pages][num_heads] pages, [page of head 0][head]
    AttentionBuffers *buffers;
    int32_t *pages;                    // page numbers of head 0 in order, for all texts
    int32_t *first_page;               // [num_texts] place in `pages`
    int32_t *unit_text, *unit_row;     // tiles of MAX_QUERIES rows
    int32_t num_units, unit_capacity, row_capacity, page_capacity, text_capacity;
    atomic_int *next_unit;  // [num_layers]
} Encoder;

static void encoder_buffers_free(Encoder *e) {
    activations_free(&e->narrow);
    activations_free(&e->wide);
    free(e->qkv);
    free(e->mixed);
    free(e->wide_values);
    e->qkv = e->mixed = e->wide_values = NULL;
    e->num_rows = 0;
}

// Grows the buffers to a batch of `num_rows` rows. Returns 0 if memory is short.
static int encoder_buffers_allocate(Encoder *e, int num_rows) {
    if (num_rows <= e->num_rows) return 1;
    const EncoderConfig *c = &e->config;
    encoder_buffers_free(e);
    e->qkv = aligned((size_t)num_rows * e->layers[0].qkv.num_outputs * 4);
    e->mixed = aligned((size_t)num_rows * c->hidden_size * 4);
    e->wide_values = aligned((size_t)num_rows * c->intermediate_size * 4);
    if (!e->qkv || !e->mixed || !e->wide_values ||
        !activations_allocate(&e->narrow, num_rows, c->hidden_size) ||
        !activations_allocate(&e->wide, num_rows, c->intermediate_size)) {
        encoder_buffers_free(e);
        return 0;
    }
    e->num_rows = num_rows;
    return 1;
}

void weir_encoder_free(Encoder *e) {
    if (!e) return;
    encoder_buffers_free(e);
    free(e->layers);
    free(e->keys);
    free(e->values);
    free(e->buffers);
    free(e->pages);
    free(e->first_page);
    free(e->unit_text);
    free(e->unit_row);
    free(e->next_unit);
    free(e);
}

// Returns NULL if memory is short.
Encoder *weir_encoder_new(Pool *pool, const EncoderConfig *config, const EncoderLayer *layers,
                          const float *norm, const float *norm_bias) {
    Encoder *e = aligned(sizeof *e);
    if (!e) return NULL;
    memset(e, 0, sizeof *e);
    e->pool = pool;
    e->config = *config;
    e->norm = norm;
    e->norm_bias = norm_bias;
    e->shape = (AttentionShape){config->num_heads, config->num_heads, config->head_dim, 0,
                                config->cache_type};
    e->layers = aligned(config->num_layers * sizeof *layers);
    e->buffers = aligned(pool->num_threads * sizeof *e->buffers);
    e->next_unit = aligned(config->num_layers * sizeof *e->next_unit);
    if (!e->layers || !e->buffers || !e->next_unit) {
        weir_encoder_free(e);
        return NULL;
    }
    memcpy(e->layers, layers, config->num_layers * sizeof *layers);
    return e;
}

// Layer normalisation of a row, in place.
static void normalise(float *x, const float *weight, const float *bias, int count, float eps) {
    Floats sum = all_lanes(0.0f);
    for (int i = 0; i < count; i += LANES) sum += load(x + i);
    const Floats mean = all_lanes(sum_of(sum) / (float)count);
    Floats squares = all_lanes(0.0f);
    for (int i = 0; i < count; i += LANES) {
        const Floats rest = load(x + i) - mean;
        squares = fused(rest, rest, squares);
    }
    const Floats factor = all_lanes(1.0f / sqrtf(sum_of(squares) / (float)count + eps));
    for (int i = 0; i < count; i += LANES)
        store(x + i, fused((load(x + i) - mean) * factor, load(weight + i), load(bias + i)));
}

// erf(|x|) by Abramowitz and Stegun 7.1.26; the absolute error is at most 1.5e-7.
INLINE Floats erf_of_magnitude(Floats x) {
    const Floats t = all_lanes(1.0f) / fused(all_lanes(0.3275911f), x, all_lanes(1.0f));
    Floats sum = all_lanes(1.061405429f);
    sum = fused(sum, t, all_lanes(-1.453152027f));
    sum = fused(sum, t, all_lanes(1.421413741f));
    sum = fused(sum, t, all_lanes(-0.284496736f));
    sum = fused(sum, t, all_lanes(0.254829592f));
    return all_lanes(1.0f) - sum * t * exp2_lanes(x * x * all_lanes(-LOG2_E));
}

INLINE Floats activate(Activation kind, Floats x) {
    switch (kind) {
        case RELU: return max_lanes(x, all_lanes(0.0f));
        case GELU_TANH: {
            // x * sigmoid(2 y) = x * (1 + tanh(y)) / 2, y = sqrt(2 / pi) * (x + 0.044715 x^3)
            const Floats y = x * fused(all_lanes(0.044715f), x * x, all_lanes(1.0f));
            const Floats power = exp2_lanes(y * all_lanes(-2.0f * 0.7978845608f * LOG2_E));
            return x / (all_lanes(1.0f) + power);
        }
        default: {
            // x * (1 + erf(x / sqrt(2))) / 2 = (x + |x| erf(|x| / sqrt(2))) / 2
            const Floats magnitude = abs_lanes(x);
            const Floats erf = erf_of_magnitude(magnitude * all_lanes(0.70710678f));
            return fused(magnitude, erf, x) * all_lanes(0.5f);
        }
    }
}

INLINE void activate_row_by(Activation kind, float *x, int count) {
    for (int i = 0; i < count; i += LANES) store(x + i, activate(kind, load(x + i)));
}

static void activate_row(Activation kind, float *x, int count) {
    switch (kind) {
        case GELU: activate_row_by(GELU, x, count); break;
        case GELU_TANH: activate_row_by(GELU_TANH, x, count); break;
        default: activate_row_by(RELU, x, count);
    }
}

static const float no_values[256];

// Stores a token's keys and values in the pages of its text, and after the last token zeros: the
// slots up to the page's end are read with a weight of 0, so an earlier batch must leave no NaN.
static void store_keys_values(Encoder *e, int row, int text) {
    const EncoderConfig *c = &e->config;
    const int dim = c->head_dim, position = row - e->batch.begins[text];
    const float *k = e->qkv + (size_t)row * e->layers[0].qkv.num_outputs + c->num_heads * dim;
    const float *v = k + c->num_heads * dim;
    const size_t page = (size_t)e->pages[e->first_page[text] + position / LANES];
    const int is_last = row == e->batch.begins[text + 1] - 1;
    for (int h = 0; h < c->num_heads; h++) {
        const size_t offset = (page + h) * page_bytes(&e->shape);
        uint8_t *keys = e->keys + offset, *values = e->values + offset;
        store_key_value(&e->shape, keys, values, position % LANES, k + h * dim, v + h * dim);
        for (int slot = position % LANES + 1; is_last && slot < LANES; slot++)
            store_key_value(&e->shape, keys, values, slot, no_values, no_values);
    }
}

// Computes units of attention until none is left; an idle thread takes the next one.
static void attend_to_texts(Encoder *e, int number, int thread) {
    const EncoderConfig *c = &e->config;
    const int dim = c->head_dim, num_units = e->num_units * c->num_heads;
    const int stride = e->layers[0].qkv.num_outputs;
    int unit;
    while ((unit = atomic_fetch_add(&e->next_unit[number], 1)) < num_units) {
        const int head = unit % c->num_heads, tile_number = unit / c->num_heads;
        const int text = e->unit_text[tile_number];
        const int end = e->batch.begins[text + 1], length = end - e->batch.begins[text];
        Tile tile = {.count = 0};
        for (int row = e->unit_row[tile_number]; row < end && tile.count < MAX_QUERIES; row++) {
            tile.queries[tile.count] = e->qkv + (size_t)row * stride + head * dim;
            tile.outputs[tile.count] = e->mixed + (size_t)row * c->hidden_size + head * dim;
            tile.begin[tile.count] = 0;
            tile.end[tile.count++] = length;
        }
        const size_t offset = (size_t)head * page_bytes(&e->shape);
        attend(&e->shape, &tile, e->keys + offset, e->values + offset,
               e->pages + e->first_page[text], &e->buffers[thread]);
    }
}

static void run_batch(void *argument, int thread) {
    Encoder *e = argument;
    const EncoderConfig *c = &e->config;
    const int n = e->pool->num_threads, tokens = e->batch.num_tokens, hidden = c->hidden_size;
    const int first = share(tokens, thread, n), last = share(tokens, thread + 1, n);
    float *states = e->batch.hidden;
    const Output to_hidden = {ADD, states, hidden};
    int first_text = 0;
    while (e->batch.begins[first_text + 1] <= first && first < last) first_text++;
    for (int row = first; row < last; row++) {
        float *x = states + (size_t)row * hidden;
        normalise(x, e->norm, e->norm_bias, hidden, c->eps);
        store_row(&e->layers[0].qkv, x, hidden, &e->narrow, row);
    }
    pool_barrier(e->pool);
    for (int number = 0; number < c->num_layers; number++) {
        const EncoderLayer *layer = &e->layers[number];
        multiply(&layer->qkv, &e->narrow, tokens,
                 &(Output){STORE, e->qkv, layer->qkv.num_outputs}, thread, n);
        pool_barrier(e->pool);
        for (int text = first_text, row = first; row < last; row++) {
            while (e->batch.begins[text + 1] <= row) text++;
            store_keys_values(e, row, text);
        }
        pool_barrier(e->pool);
        attend_to_texts(e, number, thread);
        pool_barrier(e->pool);
        for (int row = first; row < last; row++)
            store_row(&layer->out, e->mixed + (size_t)row * hidden, hidden, &e->narrow, row);
        pool_barrier(e->pool);
        multiply(&layer->out, &e->narrow, tokens, &to_hidden, thread, n);
        pool_barrier(e->pool);
        for (int row = first; row < last; row++) {
            float *x = states + (size_t)row * hidden;
            normalise(x, layer->attention_norm, layer->attention_norm_bias, hidden, c->eps);
            store_row(&layer->inner, x, hidden, &e->narrow, row);
        }
        pool_barrier(e->pool);
        multiply(&layer->inner, &e->narrow, tokens,
                 &(Output){STORE, e->wide_values, c->intermediate_size}, thread, n);
        pool_barrier(e->pool);
        for (int row = first; row < last; row++) {
            float *x = e->wide_values + (size_t)row * c->intermediate_size;
            activate_row(c->activation, x, c->intermediate_size);
            store_row(&layer->outer, x, c->intermediate_size, &e->wide, row);
        }
        pool_barrier(e->pool);
        multiply(&layer->outer, &e->wide, tokens, &to_hidden, thread, n);
        pool_barrier(e->pool);
        for (int row = first; row < last; row++) {
            float *x = states + (size_t)row * hidden;
            normalise(x, layer->output_norm, layer->output_norm_bias, hidden, c->eps);
            // All layers have one type of weights, in the order of the activations.
            store_row(&e->layers[0].qkv, x, hidden, &e->narrow, row);
        }
        pool_barrier(e->pool);
    }
}

// Grows the pages of keys and values. Returns 0 if memory is short.
static int pages_allocate(Encoder *e, int num_pages) {
    if (num_pages <= e->num_pages) return 1;
    const size_t bytes = (size_t)num_pages * e->config.num_heads * page_bytes(&e->shape);
    free(e->keys);
    free(e->values);
    e->keys = aligned(bytes);
    e->values = aligned(bytes);
    e->num_pages = e->keys && e->values ? num_pages : 0;
    return e->num_pages > 0;
}

// Assigns pages to texts and splits the attention into units. Returns 0 if memory is short.
static int plan_batch(Encoder *e) {
    const BatchArguments *batch = &e->batch;
    int num_pages = 0, num_units = 0;
    for (int s = 0; s < batch->num_texts; s++) {
        const int length = batch->begins[s + 1] - batch->begins[s];
        num_pages += (length + LANES - 1) / LANES;
        num_units += (length + MAX_QUERIES - 1) / MAX_QUERIES;
    }
    if (!pages_allocate(e, num_pages) || !reserve(&e->pages, &e->page_capacity, num_pages) ||
        !reserve(&e->first_page, &e->text_capacity, batch->num_texts) ||
        !reserve(&e->unit_text, &e->unit_capacity, num_units) ||
        !reserve(&e->unit_row, &e->row_capacity, num_units))
        return 0;
    for (int page = 0; page < num_pages; page++) e->pages[page] = page * e->config.num_heads;
    e->num_units = 0;
    for (int s = 0, page = 0; s < batch->num_texts; s++) {
        e->first_page[s] = page;
        page += (batch->begins[s + 1] - batch->begins[s] + LANES - 1) / LANES;
        for (int row = batch->begins[s]; row < batch->begins[s + 1]; row += MAX_QUERIES) {
            e->unit_text[e->num_units] = s;
            e->unit_row[e->num_units++] = row;
        }
    }
    for (int number = 0; number < e->config.num_layers; number++)
        atomic_store(&e->next_unit[number], 0);
    return 1;
}

// Runs a batch. Returns 1 if memory is short, else 0.
int weir_encoder_run(Encoder *e, const BatchArguments *batch) {
    e->batch = *batch;
    if (!encoder_buffers_allocate(e, batch->num_tokens) || !plan_batch(e)) return 1;
    pool_run(e->pool, run_batch, e);
    return 0;
}
