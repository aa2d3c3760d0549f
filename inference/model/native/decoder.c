// A Llama-family decoder on a CPU: one call computes all layers for the tokens of a step.
//
// Called through ctypes. inference/model/native/decoder.py owns all tensors that the structs point
// to, and mirrors the structs. Activations are float32; a product converts them to the type of its
// weights.
#include "attention.h"
#include "buffers.h"
#include "gemm.h"
#include "pool.h"

typedef struct {
    int32_t cache_type;  // of the KV cache: FLOAT32 or BFLOAT16
    int32_t num_layers, hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim;
    int32_t window, qk_norm;
    float eps;
} Config;

typedef struct {
    Matrix qkv, out, gate_up, down;
    const float *input_norm, *post_norm, *q_norm, *k_norm;
    int32_t rotates;  // 0 for a layer without rotary embedding
} Layer;

// The input of a step. Sequence s has the rows [begins[s], begins[s + 1]).
typedef struct {
    int32_t num_tokens, num_sequences, table_stride, num_outputs;
    int32_t pages_per_block;   // of the cache
    float *hidden;             // [num_tokens][hidden_size]; contains the embeddings, is overwritten
    const int32_t *positions;  // [num_tokens]
    const int32_t *begins;     // [num_sequences + 1] first row of each sequence
    const int32_t *tables;     // [num_sequences][table_stride] block ids
    const int32_t *outputs;    // [num_outputs] rows to compute logits for
    float *logits;             // [num_outputs][head's outputs]
    float *normed;             // [num_outputs][hidden_size] last hidden states, or NULL
    uint8_t *const *keys;      // [num_layers] addresses of the caches
    uint8_t *const *values;
    const LowRank *const *adapters;  // [num_sequences] of four matrices a layer, or NULL; NULL: none
    int32_t max_rank;                // of all these matrices
} StepArguments;

typedef struct {
    Config config;
    Layer *layers;
    Matrix head;
    const float *norm;
    const float *cosines, *sines;  // [max position][head_dim / 2]
    AttentionShape shape;
    Pool *pool;  // not owned
    StepArguments step;
    int num_rows;  // capacity of the buffers below
    float *qkv, *mixed, *inner;
    Activations narrow, wide;  // of hidden_size, and of intermediate_size or num_heads * head_dim
    AttentionBuffers *buffers;
    int32_t *pages;      // [num_sequences][table_stride * pages_per_block], of KV head 0
    int32_t *unit_sequence, *unit_row;
    int32_t num_units, unit_capacity, page_capacity;
    int32_t *row_sequence;  // [num_tokens], and `inner` [num_tokens][max_rank], for adapters
    int32_t *inner_products;
    int32_t row_capacity, inner_capacity;
    atomic_int *next_unit;  // [num_layers]
} Decoder;

// Lanes of a vector, for inference/model/native/packing.py.
int weir_lanes(void) { return LANES; }

static int max_int(int a, int b) { return a > b ? a : b; }

static void buffers_free(Decoder *d) {
    activations_free(&d->narrow);
    activations_free(&d->wide);
    free(d->qkv);
    free(d->mixed);
    free(d->inner);
    d->qkv = d->mixed = d->inner = NULL;
    d->num_rows = 0;
}

// Grows the buffers to a step of `num_rows` rows. Returns 0 if memory is short.
static int buffers_allocate(Decoder *d, int num_rows) {
    if (num_rows <= d->num_rows) return 1;
    const Config *c = &d->config;
    const int heads = c->num_heads * c->head_dim;
    buffers_free(d);
    d->qkv = aligned((size_t)num_rows * d->layers[0].qkv.num_outputs * 4);
    d->mixed = aligned((size_t)num_rows * heads * 4);
    d->inner = aligned((size_t)num_rows * c->intermediate_size * 4);
    if (!d->qkv || !d->mixed || !d->inner ||
        !activations_allocate(&d->narrow, num_rows, c->hidden_size) ||
        !activations_allocate(&d->wide, num_rows, max_int(c->intermediate_size, heads))) {
        buffers_free(d);
        return 0;
    }
    d->num_rows = num_rows;
    return 1;
}

void weir_decoder_free(Decoder *d) {
    if (!d) return;
    buffers_free(d);
    free(d->layers);
    free(d->buffers);
    free(d->pages);
    free(d->unit_sequence);
    free(d->unit_row);
    free(d->row_sequence);
    free(d->inner_products);
    free(d->next_unit);
    free(d);
}

// Returns NULL if memory is short.
Decoder *weir_decoder_new(Pool *pool, const Config *config, const Layer *layers,
                          const Matrix *head, const float *norm, const float *cosines,
                          const float *sines) {
    Decoder *d = aligned(sizeof *d);
    if (!d) return NULL;
    memset(d, 0, sizeof *d);
    d->pool = pool;
    d->config = *config;
    d->head = *head;
    d->norm = norm;
    d->cosines = cosines;
    d->sines = sines;
    d->shape = (AttentionShape){config->num_heads, config->num_kv_heads, config->head_dim,
                                config->window, config->cache_type};
    d->layers = aligned(config->num_layers * sizeof *layers);
    d->buffers = aligned(pool->num_threads * sizeof *d->buffers);
    d->next_unit = aligned(config->num_layers * sizeof *d->next_unit);
    if (!d->layers || !d->buffers || !d->next_unit) {
        weir_decoder_free(d);
        return NULL;
    }
    memcpy(d->layers, layers, config->num_layers * sizeof *layers);
    return d;
}

static void norm_into(const float *x, const float *weight, int count, float eps, float *out) {
    Floats squares = all_lanes(0.0f);
    for (int i = 0; i < count; i += LANES) squares = fused(load(x + i), load(x + i), squares);
    const Floats factor = all_lanes(1.0f / sqrtf(sum_of(squares) / (float)count + eps));
    for (int i = 0; i < count; i += LANES) store(out + i, load(x + i) * factor * load(weight + i));
}

// Rotates the pairs (i, i + half) of one head.
static void rotate(float *x, const float *cosines, const float *sines, int half) {
    for (int i = 0; i < half; i++) {
        const float low = x[i], high = x[i + half];
        x[i] = low * cosines[i] - high * sines[i];
        x[i + half] = high * cosines[i] + low * sines[i];
    }
}

// Norms and rotates a token's heads, and stores its keys and values; the queries stay in qkv.
static void store_token(Decoder *d, int number, int row, const int32_t *pages) {
    const Config *c = &d->config;
    const Layer *layer = &d->layers[number];
    const int dim = c->head_dim, half = dim / 2, position = d->step.positions[row];
    float *q = d->qkv + (size_t)row * layer->qkv.num_outputs;
    float *k = q + c->num_heads * dim, *v = k + c->num_kv_heads * dim;
    const float *cosines = d->cosines + (size_t)position * half;
    const float *sines = d->sines + (size_t)position * half;
    for (int h = 0; h < c->num_heads; h++) {
        if (c->qk_norm) norm_into(q + h * dim, layer->q_norm, dim, c->eps, q + h * dim);
        if (layer->rotates) rotate(q + h * dim, cosines, sines, half);
    }
    for (int h = 0; h < c->num_kv_heads; h++) {
        if (c->qk_norm) norm_into(k + h * dim, layer->k_norm, dim, c->eps, k + h * dim);
        if (layer->rotates) rotate(k + h * dim, cosines, sines, half);
        const size_t offset =
            (size_t)(pages[position / LANES] + h * d->step.pages_per_block) * page_bytes(&d->shape);
        store_key_value(&d->shape, d->step.keys[number] + offset, d->step.values[number] + offset,
                        position % LANES, k + h * dim, v + h * dim);
    }
}

// Computes units of attention until none is left; an idle thread takes the next one.
static void attend_units(Decoder *d, int number, int thread) {
    const Config *c = &d->config;
    const Layer *layer = &d->layers[number];
    const int group = c->num_heads / c->num_kv_heads, dim = c->head_dim;
    const int stride = d->step.table_stride * d->step.pages_per_block;
    const int num_units = d->num_units * c->num_kv_heads;
    int unit;
    while ((unit = atomic_fetch_add(&d->next_unit[number], 1)) < num_units) {
        const int kv_head = unit % c->num_kv_heads, tile_number = unit / c->num_kv_heads;
        const int sequence = d->unit_sequence[tile_number];
        const int begin = d->step.begins[sequence];
        const int num_queries = (d->step.begins[sequence + 1] - begin) * group;
        const int first = d->unit_row[tile_number];
        Tile tile = {.count = 0};
        for (int i = first; i < num_queries && tile.count < MAX_QUERIES; i++, tile.count++) {
            const int row = begin + i / group, head = kv_head * group + i % group;
            const int end = d->step.positions[row] + 1;
            tile.queries[tile.count] = d->qkv + (size_t)row * layer->qkv.num_outputs + head * dim;
            tile.outputs[tile.count] = d->mixed + ((size_t)row * c->num_heads + head) * dim;
            tile.end[tile.count] = end;
            tile.begin[tile.count] = c->window && end > c->window ? end - c->window : 0;
        }
        const size_t offset = (size_t)(kv_head * d->step.pages_per_block) * page_bytes(&d->shape);
        attend(&d->shape, &tile, d->step.keys[number] + offset, d->step.values[number] + offset,
               d->pages + (size_t)sequence * stride, &d->buffers[thread]);
    }
}

// Stores a row for a matrix, and multiplies it with the row's adapter.
static void prepare_row(const Matrix *matrix, const float *values, int count, Activations *rows,
                        int row, const Added *added) {
    store_row(matrix, values, count, rows, row);
    if (added) multiply_down(added, row, values, count);
}

static void run_step(void *argument, int thread) {
    Decoder *d = argument;
    const Config *c = &d->config;
    const StepArguments *step = &d->step;
    const int n = d->pool->num_threads, tokens = step->num_tokens, hidden = c->hidden_size;
    const int heads = c->num_heads * c->head_dim, stride = step->table_stride * step->pages_per_block;
    const int first = share(tokens, thread, n), last = share(tokens, thread + 1, n);
    float normed[16384];
    Added adapted = {step->adapters, d->row_sequence, (float *)d->inner_products,
                     (size_t)step->max_rank, -1};
    const Added *added = step->adapters ? &adapted : NULL;
    const Output to_hidden = {ADD, step->hidden, hidden, added};
    for (int number = 0; number < c->num_layers; number++) {
        const Layer *layer = &d->layers[number];
        adapted.number++;
        for (int row = first; row < last; row++) {
            norm_into(step->hidden + (size_t)row * hidden, layer->input_norm, hidden, c->eps, normed);
            prepare_row(&layer->qkv, normed, hidden, &d->narrow, row, added);
        }
        pool_barrier(d->pool);
        multiply(&layer->qkv, &d->narrow, tokens,
                 &(Output){STORE, d->qkv, layer->qkv.num_outputs, added}, thread, n);
        pool_barrier(d->pool);
        for (int sequence = 0, row = first; row < last; row++) {
            while (step->begins[sequence + 1] <= row) sequence++;
            store_token(d, number, row, d->pages + (size_t)sequence * stride);
        }
        pool_barrier(d->pool);
        attend_units(d, number, thread);
        pool_barrier(d->pool);
        adapted.number++;
        for (int row = first; row < last; row++)
            prepare_row(&layer->out, d->mixed + (size_t)row * heads, heads, &d->wide, row, added);
        pool_barrier(d->pool);
        multiply(&layer->out, &d->wide, tokens, &to_hidden, thread, n);
        pool_barrier(d->pool);
        adapted.number++;
        for (int row = first; row < last; row++) {
            norm_into(step->hidden + (size_t)row * hidden, layer->post_norm, hidden, c->eps, normed);
            prepare_row(&layer->gate_up, normed, hidden, &d->narrow, row, added);
        }
        pool_barrier(d->pool);
        multiply(&layer->gate_up, &d->narrow, tokens,
                 &(Output){GATE, d->inner, c->intermediate_size, added}, thread, n);
        pool_barrier(d->pool);
        adapted.number++;
        for (int row = first; row < last; row++)
            prepare_row(&layer->down, d->inner + (size_t)row * c->intermediate_size,
                        c->intermediate_size, &d->wide, row, added);
        pool_barrier(d->pool);
        multiply(&layer->down, &d->wide, tokens, &to_hidden, thread, n);
        pool_barrier(d->pool);
    }
    const int first_out = share(step->num_outputs, thread, n);
    const int last_out = share(step->num_outputs, thread + 1, n);
    for (int i = first_out; i < last_out; i++) {
        norm_into(step->hidden + (size_t)step->outputs[i] * hidden, d->norm, hidden, c->eps, normed);
        if (step->normed) memcpy(step->normed + (size_t)i * hidden, normed, (size_t)hidden * 4);
        store_row(&d->head, normed, hidden, &d->narrow, i);
    }
    if (!step->logits) return;
    pool_barrier(d->pool);
    multiply(&d->head, &d->narrow, step->num_outputs,
             &(Output){STORE, step->logits, d->head.num_outputs}, thread, n);
}

// Converts block tables to pages and splits the attention into units. Returns 0 if memory is short.
static int plan(Decoder *d) {
    const StepArguments *step = &d->step;
    const int per_block = step->pages_per_block;
    const int group = d->config.num_heads / d->config.num_kv_heads;
    if (!reserve(&d->pages, &d->page_capacity, step->num_sequences * step->table_stride * per_block))
        return 0;
    for (int i = 0; i < step->num_sequences * step->table_stride; i++)
        for (int page = 0; page < per_block; page++)
            d->pages[i * per_block + page] =
                step->tables[i] * d->config.num_kv_heads * per_block + page;
    int num_units = 0;
    for (int s = 0; s < step->num_sequences; s++)
        num_units +=
            ((step->begins[s + 1] - step->begins[s]) * group + MAX_QUERIES - 1) / MAX_QUERIES;
    int32_t capacity = d->unit_capacity;
    if (!reserve(&d->unit_sequence, &capacity, num_units) ||
        !reserve(&d->unit_row, &d->unit_capacity, num_units))
        return 0;
    d->num_units = 0;
    for (int s = 0; s < step->num_sequences; s++)
        for (int row = 0; row < (step->begins[s + 1] - step->begins[s]) * group; row += MAX_QUERIES) {
            d->unit_sequence[d->num_units] = s;
            d->unit_row[d->num_units++] = row;
        }
    for (int number = 0; number < d->config.num_layers; number++)
        atomic_store(&d->next_unit[number], 0);
    return 1;
}

// Notes the sequence of each row, by which its adapter is found. Returns 0 if memory is short.
static int plan_adapters(Decoder *d) {
    const StepArguments *step = &d->step;
    if (!step->adapters) return 1;
    if (!reserve(&d->row_sequence, &d->row_capacity, step->num_tokens) ||
        !reserve(&d->inner_products, &d->inner_capacity, step->num_tokens * step->max_rank))
        return 0;
    for (int s = 0; s < step->num_sequences; s++)
        for (int row = step->begins[s]; row < step->begins[s + 1]; row++) d->row_sequence[row] = s;
    return 1;
}

// Runs a step. Returns 1 if memory is short, else 0.
int weir_decoder_run(Decoder *d, const StepArguments *step) {
    d->step = *step;
    if (!buffers_allocate(d, step->num_tokens) || !plan(d) || !plan_adapters(d)) return 1;
    pool_run(d->pool, run_step, d);
    return 0;
}
