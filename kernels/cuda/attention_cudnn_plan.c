// SPDX-License-Identifier: Apache-2.0
// The graphs are those that cuDNN knows as attention: it looks for this pattern of operations, and runs it as
// one kernel. dims are (sequence, head, row, column).
#ifdef FLOE_CUDNN
#include "core/status.h"
#include "kernels/cuda/attention_cudnn.h"
#include <stdio.h>
#include <stdlib.h>

typedef cudnnBackendDescriptor_t Descriptor;
enum { MOST_OPERATIONS = 32, MOST_ENGINES = 8, FIRST_VIRTUAL = 100 };

void cudnn_check(cudnnStatus_t status, const char *call, const char *file, int line) {
    char text[512] = "";
    if (status == CUDNN_STATUS_SUCCESS) return;
    cudnnGetLastErrorString(text, sizeof text);
    die_at(file, line, NULL, "cuDNN: %s: %s (%s)", call, cudnnGetErrorString(status), text);
}

typedef struct {
    CudnnPlan *plan;
    const CudnnShape *shape;
    Descriptor operation[MOST_OPERATIONS];
    int operations;
    int64_t next_virtual;
} Graph;

typedef struct {
    int64_t dim[4], stride[4];
} Layout;

static Descriptor create(CudnnPlan *plan, cudnnBackendDescriptorType_t type) {
    REQUIRE(plan->count < CUDNN_MOST_DESCRIPTORS, "a cuDNN graph of more than %d descriptors",
            CUDNN_MOST_DESCRIPTORS);
    Descriptor *made = &plan->made[plan->count++];
    CUDNN_CHECK(cudnnBackendCreateDescriptor(type, made));
    return *made;
}

static void set(Descriptor d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                int64_t count, const void *value) {
    CUDNN_CHECK(cudnnBackendSetAttribute(d, name, type, count, value));
}

static void set_descriptor(Descriptor d, cudnnBackendAttributeName_t name, Descriptor value) {
    set(d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

// ---- tensors

static Descriptor tensor(Graph *g, int64_t id, cudnnDataType_t type, Layout layout, bool number) {
    Descriptor d = create(g->plan, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    int64_t alignment = number ? 4 : 16;
    bool is_virtual = id >= FIRST_VIRTUAL;
    set(d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    set(d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, layout.dim);
    set(d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, layout.stride);
    set(d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id);
    set(d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    set(d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual);
    if (number) set(d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &number);
    CUDNN_CHECK(cudnnBackendFinalize(d));
    return d;
}

static Descriptor given(Graph *g, CudnnTensor id, cudnnDataType_t type, Layout layout) {
    return tensor(g, id, type, layout, false);
}

static Descriptor number(Graph *g, CudnnTensor id) {
    return tensor(g, id, CUDNN_DATA_FLOAT, (Layout){{1, 1, 1, 1}, {1, 1, 1, 1}}, true);
}

// What lives inside the kernel only.
static Descriptor inner(Graph *g, cudnnDataType_t type, Layout layout) {
    return tensor(g, g->next_virtual++, type, layout, false);
}

static Layout queries(const CudnnShape *s) { // q, out and their gradients
    int64_t row = s->all_heads * s->head_dim;
    return (Layout){{s->sequences, s->heads, s->length, s->head_dim}, {s->length * row, s->head_dim, row, 1}};
}

static Layout keys(const CudnnShape *s) { // k, v and their gradients
    int64_t row = s->all_kv_heads * s->head_dim;
    return (Layout){{s->sequences, s->kv_heads, s->length, s->head_dim},
                    {s->length * row, s->head_dim, row, 1}};
}

static Layout swapped(Layout a) { // the last two dims, of the same memory
    return (Layout){{a.dim[0], a.dim[1], a.dim[3], a.dim[2]},
                    {a.stride[0], a.stride[1], a.stride[3], a.stride[2]}};
}

static Layout packed(int64_t sequences, int64_t heads, int64_t rows, int64_t columns) {
    return (Layout){{sequences, heads, rows, columns}, {heads * rows * columns, rows * columns, columns, 1}};
}

static Layout scores(const CudnnShape *s) {
    return packed(s->sequences, s->heads, s->length, s->length);
}

static Layout per_query(const CudnnShape *s, int64_t heads_in_memory) { // one number each
    return (Layout){{s->sequences, s->heads, s->length, 1}, {heads_in_memory * s->length, s->length, 1, 1}};
}

// ---- operations

static void add_operation(Graph *g, Descriptor operation) {
    CUDNN_CHECK(cudnnBackendFinalize(operation));
    REQUIRE(g->operations < MOST_OPERATIONS, "a cuDNN graph of more than %d operations", MOST_OPERATIONS);
    g->operation[g->operations++] = operation;
}

// y = mode(x, b, t); b and t may be NULL. axis: of the index that GEN_INDEX gives, else −1.
static Descriptor pointwise(Graph *g, cudnnPointwiseMode_t mode, cudnnDataType_t type, Descriptor x,
                            Descriptor b, Descriptor t, Descriptor y, int64_t axis) {
    Descriptor how = create(g->plan, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    set(how, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    set(how, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &type);
    if (axis >= 0) set(how, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &axis);
    CUDNN_CHECK(cudnnBackendFinalize(how));
    Descriptor d = create(g->plan, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    set_descriptor(d, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
    set_descriptor(d, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    if (b) set_descriptor(d, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b);
    if (t) set_descriptor(d, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, t);
    set_descriptor(d, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    add_operation(g, d);
    return y;
}

// A number for each score, of one number for each score and one for each score, query or in all.
static Descriptor combine(Graph *g, cudnnPointwiseMode_t mode, Descriptor x, Descriptor b, Layout layout) {
    return pointwise(g, mode, CUDNN_DATA_FLOAT, x, b, NULL, inner(g, CUDNN_DATA_FLOAT, layout), -1);
}

static Descriptor multiply(Graph *g, Descriptor a, Descriptor b, Descriptor c) {
    cudnnDataType_t type = CUDNN_DATA_FLOAT;
    Descriptor how = create(g->plan, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    set(how, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    CUDNN_CHECK(cudnnBackendFinalize(how));
    Descriptor d = create(g->plan, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    set_descriptor(d, CUDNN_ATTR_OPERATION_MATMUL_DESC, how);
    set_descriptor(d, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
    set_descriptor(d, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
    set_descriptor(d, CUDNN_ATTR_OPERATION_MATMUL_CDESC, c);
    add_operation(g, d);
    return c;
}

// Over the dims that y does not have; heads that share a key head are one dim of that.
static Descriptor reduce(Graph *g, cudnnReduceTensorOp_t operator, Descriptor x, Descriptor y) {
    cudnnDataType_t type = CUDNN_DATA_FLOAT;
    Descriptor how = create(g->plan, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    set(how, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &operator);
    set(how, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    CUDNN_CHECK(cudnnBackendFinalize(how));
    Descriptor d = create(g->plan, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    set_descriptor(d, CUDNN_ATTR_OPERATION_REDUCTION_DESC, how);
    set_descriptor(d, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    set_descriptor(d, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y);
    add_operation(g, d);
    return y;
}

static Descriptor reshape(Graph *g, Descriptor x, Descriptor y) {
    Descriptor d = create(g->plan, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    set_descriptor(d, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x);
    set_descriptor(d, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y);
    add_operation(g, d);
    return y;
}

// −∞ where the key comes after the query.
static Descriptor causal(Graph *g, Descriptor x) {
    Layout all = scores(g->shape);
    Descriptor query = pointwise(g, CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_FLOAT, x, NULL, NULL,
                                 inner(g, CUDNN_DATA_INT32, all), 2);
    Descriptor key = pointwise(g, CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_FLOAT, x, NULL, NULL,
                               inner(g, CUDNN_DATA_INT32, all), 3);
    Descriptor seen = pointwise(g, CUDNN_POINTWISE_CMP_GE, CUDNN_DATA_BOOLEAN, query, key, NULL,
                                inner(g, CUDNN_DATA_BOOLEAN, all), -1);
    return pointwise(g, CUDNN_POINTWISE_BINARY_SELECT, CUDNN_DATA_FLOAT, x, number(g, CUDNN_MINUS_INFINITY),
                     seen, inner(g, CUDNN_DATA_FLOAT, all), -1);
}

// ---- graphs

static Descriptor scaled_scores(Graph *g, Descriptor q, Descriptor k, Descriptor scale) {
    Layout all = scores(g->shape);
    Descriptor product = multiply(g, q, k, inner(g, CUDNN_DATA_FLOAT, all));
    return combine(g, CUDNN_POINTWISE_MUL, product, scale, all);
}

static void forward_graph(Graph *g) {
    const CudnnShape *s = g->shape;
    Layout all = scores(s), each = per_query(s, s->heads);
    Descriptor q = given(g, CUDNN_Q, CUDNN_DATA_BFLOAT16, queries(s));
    Descriptor k = given(g, CUDNN_K, CUDNN_DATA_BFLOAT16, swapped(keys(s)));
    Descriptor v = given(g, CUDNN_V, CUDNN_DATA_BFLOAT16, keys(s));
    Descriptor out = given(g, CUDNN_OUT, CUDNN_DATA_BFLOAT16, queries(s));
    Descriptor lse = given(g, CUDNN_LSE, CUDNN_DATA_FLOAT, per_query(s, s->all_heads));
    Descriptor x = causal(g, scaled_scores(g, q, k, number(g, CUDNN_SCALE)));
    Descriptor most = reduce(g, CUDNN_REDUCE_TENSOR_MAX, x, inner(g, CUDNN_DATA_FLOAT, each));
    Descriptor below = combine(g, CUDNN_POINTWISE_SUB, x, most, all);
    Descriptor weight = combine(g, CUDNN_POINTWISE_EXP, below, NULL, all);
    Descriptor sum = reduce(g, CUDNN_REDUCE_TENSOR_ADD, weight, inner(g, CUDNN_DATA_FLOAT, each));
    Descriptor log_sum = combine(g, CUDNN_POINTWISE_LOG, sum, NULL, each);
    pointwise(g, CUDNN_POINTWISE_ADD, CUDNN_DATA_FLOAT, most, log_sum, NULL, lse, -1);
    Descriptor p = pointwise(g, CUDNN_POINTWISE_DIV, CUDNN_DATA_FLOAT, weight, sum, NULL,
                             inner(g, CUDNN_DATA_BFLOAT16, all), -1);
    multiply(g, p, v, out);
}

// to (a gradient of keys or values) = x (scores in f32)ᵀ y, summed over the heads that share a key head.
static void transposed_product(Graph *g, Descriptor x, Descriptor y, Descriptor to) {
    const CudnnShape *s = g->shape;
    Descriptor turned = reshape(g, x, inner(g, CUDNN_DATA_BFLOAT16, swapped(scores(s))));
    if (s->heads == s->kv_heads) {
        multiply(g, turned, y, to);
        return;
    }
    Layout each_head = packed(s->sequences, s->heads, s->length, s->head_dim);
    reduce(g, CUDNN_REDUCE_TENSOR_ADD, multiply(g, turned, y, inner(g, CUDNN_DATA_BFLOAT16, each_head)), to);
}

// The gradient of the queries straight from the scores' gradients: with a tensor of f32 sums in between, it
// would be added up by atomics.
static void backward_graph(Graph *g) {
    const CudnnShape *s = g->shape;
    Layout all = scores(s), each = per_query(s, s->heads);
    Descriptor q = given(g, CUDNN_Q, CUDNN_DATA_BFLOAT16, queries(s));
    Descriptor k = given(g, CUDNN_K, CUDNN_DATA_BFLOAT16, swapped(keys(s)));
    Descriptor v = given(g, CUDNN_V, CUDNN_DATA_BFLOAT16, swapped(keys(s)));
    Descriptor out = given(g, CUDNN_OUT, CUDNN_DATA_BFLOAT16, queries(s));
    Descriptor dout = given(g, CUDNN_DOUT, CUDNN_DATA_BFLOAT16, queries(s));
    Descriptor lse = given(g, CUDNN_LSE, CUDNN_DATA_FLOAT, per_query(s, s->all_heads));
    Descriptor dot = given(g, CUDNN_DOT, CUDNN_DATA_FLOAT, each), scale = number(g, CUDNN_SCALE);
    Descriptor product =
        combine(g, CUDNN_POINTWISE_MUL, dout, out, packed(s->sequences, s->heads, s->length, s->head_dim));
    Descriptor sum = reduce(g, CUDNN_REDUCE_TENSOR_ADD, product, inner(g, CUDNN_DATA_FLOAT, each));
    pointwise(g, CUDNN_POINTWISE_MUL, CUDNN_DATA_FLOAT, sum, number(g, CUDNN_ONE), NULL, dot, -1);

    Descriptor below = combine(g, CUDNN_POINTWISE_SUB, scaled_scores(g, q, k, scale), lse, all);
    Descriptor p = combine(g, CUDNN_POINTWISE_EXP, causal(g, below), NULL, all);
    transposed_product(g, p, dout, given(g, CUDNN_DV, CUDNN_DATA_BFLOAT16, keys(s)));

    Descriptor dp = multiply(g, dout, v, inner(g, CUDNN_DATA_FLOAT, all));
    Descriptor centered = combine(g, CUDNN_POINTWISE_SUB, dp, dot, all);
    Descriptor weighted = combine(g, CUDNN_POINTWISE_MUL, centered, p, all);
    Descriptor ds = combine(g, CUDNN_POINTWISE_MUL, weighted, scale, all);
    transposed_product(g, ds, q, given(g, CUDNN_DK, CUDNN_DATA_BFLOAT16, keys(s)));
    Descriptor k_rows = reshape(g, k, inner(g, CUDNN_DATA_BFLOAT16, keys(s)));
    multiply(g, ds, k_rows, given(g, CUDNN_DQ, CUDNN_DATA_BFLOAT16, queries(s)));
}

// ---- plans

static bool supported(CudnnPlan *plan, cudnnStatus_t status) {
    if (status == CUDNN_STATUS_SUCCESS) return true;
    char text[160] = "";
    cudnnGetLastErrorString(text, sizeof text);
    snprintf(plan->why_not, sizeof plan->why_not, "%s (%s)", cudnnGetErrorString(status), text);
    return false;
}

// The first of the heuristics' engines that makes a plan: the same in every run.
static void choose_engine(CudnnPlan *plan, Descriptor heuristics, Descriptor device) {
    Descriptor engine[MOST_ENGINES];
    int64_t found = 0, one = 1;
    for (int i = 0; i < MOST_ENGINES; i++) engine[i] = create(plan, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    CUDNN_CHECK(cudnnBackendGetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                         CUDNN_TYPE_BACKEND_DESCRIPTOR, MOST_ENGINES, &found, engine));
    plan->engines = (int)(found < MOST_ENGINES ? found : MOST_ENGINES);
    for (int i = 0; i < plan->engines; i++) {
        Descriptor run = create(plan, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
        set_descriptor(run, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, engine[i]);
        set_descriptor(run, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, device);
        if (!supported(plan, cudnnBackendFinalize(run))) continue;
        CUDNN_CHECK(cudnnBackendGetAttribute(run, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64,
                                             1, &one, &plan->workspace));
        plan->run = run;
        return;
    }
}

CudnnPlan *cudnn_plan_create(const CudnnShape *shape, cudnnBackendDescriptor_t device) {
    CudnnPlan *plan = calloc(1, sizeof *plan);
    REQUIRE(plan, "out of memory: a plan of cuDNN");
    Graph g = {.plan = plan, .shape = shape, .next_virtual = FIRST_VIRTUAL};
    if (shape->backward)
        backward_graph(&g);
    else
        forward_graph(&g);
    Descriptor graph = create(plan, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    Descriptor heuristics = create(plan, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    snprintf(plan->why_not, sizeof plan->why_not, "it names no engine");
    set(graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, g.operations, g.operation);
    if (!supported(plan, cudnnBackendFinalize(graph))) return plan;
    set_descriptor(heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
    set(heuristics, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    set_descriptor(heuristics, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, device);
    if (supported(plan, cudnnBackendFinalize(heuristics))) choose_engine(plan, heuristics, device);
    return plan;
}

void cudnn_plan_destroy(CudnnPlan *plan) {
    for (int i = plan->count - 1; i >= 0; i--) CUDNN_CHECK(cudnnBackendDestroyDescriptor(plan->made[i]));
    free(plan);
}
#endif
