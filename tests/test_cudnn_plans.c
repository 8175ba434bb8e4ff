// SPDX-License-Identifier: Apache-2.0
// The rule by which cuDNN's attention is taken; and, where cuDNN is there, that it has plans for the shapes
// of the models, which it makes without a GPU from the properties of one. Nothing is run.
#include "core/status.h"
#include "kernels/cuda/attention.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static AttentionShape plain(int batch, int length, int heads, int kv_heads, int head_dim) {
    return (AttentionShape){.batch = batch,
                            .q_len = length,
                            .kv_len = length,
                            .heads = heads,
                            .kv_heads = kv_heads,
                            .head_dim = head_dim,
                            .kv_stride = length,
                            .scale = 0.125f};
}

typedef struct {
    const char *name;
    AttentionShape shape;
} Model;
static Model model(int i) {
    const Model models[] = {{"Arctic", plain(1, 4096, 56, 8, 128)},
                            {"DBRX", plain(1, 4096, 48, 8, 128)},
                            {"Mixtral", plain(1, 4096, 32, 8, 128)},
                            {"small, without shared heads", plain(4, 256, 8, 8, 64)}};
    return models[i];
}
enum { MODELS = 4 };

static void the_rule(void **state) {
    (void)state;
    static const int32_t start[4096];
    for (int i = 0; i < MODELS; i++) {
        AttentionShape s = model(i).shape;
        assert_true(attention_library_takes(&s, DTYPE_BF16));
        assert_false(attention_library_takes(&s, DTYPE_F32));
    }
    AttentionShape s = model(0).shape, t = s;
#define NOT_TAKEN(change) (t = s, change, assert_false(attention_library_takes(&t, DTYPE_BF16)))
    NOT_TAKEN(t.doc_start = start);
    NOT_TAKEN(t.softcap = 30);
    NOT_TAKEN(t.kv_stride = 4097);
    NOT_TAKEN((t.q_len = 128, t.q_offset = 4096 - 128));
    NOT_TAKEN((t.q_len = t.kv_len = t.kv_stride = 4095));
    NOT_TAKEN(t.head_dim = 136);
    NOT_TAKEN(t.head_dim = 68);
    NOT_TAKEN(t.batch = 0);
    NOT_TAKEN((t.q_len = t.kv_len = t.kv_stride = 0));
    NOT_TAKEN((t.q_len = t.kv_len = t.kv_stride = 32768)); // the matrices of 7 heads are 15 GB
}

static void parts_fit(void **state) {
    (void)state;
    AttentionShape s = model(0).shape;
    AttentionPart part = attention_library_part(&s);
    assert_int_equal(part.sequences, 1);
    assert_int_equal(part.kv_heads, 2); // 14 heads of 4096² in bf16: 470 MB; 28 would be 940
    s = plain(6, 1024, 32, 8, 128);     // 67 MB and 17 a sequence
    part = attention_library_part(&s);
    assert_int_equal(part.sequences, 6);
    s.batch = 8; // 8 do not fit, 7, 6 and 5 do not divide
    part = attention_library_part(&s);
    assert_int_equal(part.sequences, 4);
    assert_int_equal(part.kv_heads, 8);
}

#ifdef FLOE_CUDNN
#include "kernels/cuda/attention_cudnn.h"
#include <dlfcn.h>

// What cuDNN says of an H100 and an A100.
#define GPU_PROPERTIES(version, processors, shared, l2, name)                                                \
    "{\"maxGridSize\":[2147483647,65535,65535],\"maxBlockSize\":[1024,1024,64],\"regsPerBlock\":65536,"      \
    "\"multiProcessorCount\":" #processors ",\"warpSize\":32,\"maxSharedMemoryPerBlock\":49152,"             \
    "\"maxSharedMemoryPerBlockOptin\":" #shared ",\"reservedSharedMemoryPerBlock\":1024,"                    \
    "\"maxRegistersPerSM\":65536,\"maxCtasPerSM\":32,\"maxThreadsPerBlock\":1024,"                           \
    "\"maxThreadsPerSM\":2048,\"pciDeviceId\":0,\"isTccDriver\":0,\"supportCoopLaunch\":1,"                  \
    "\"totalGlobalMem\":85017755648,\"smClockRateKHz\":1410000,\"memClockRateKHz\":1593000,"                 \
    "\"l2CacheSize\":" #l2 ",\"cudaDeviceId\":0,\"deviceVer\":" #version ",\"driverVer\":13000,"             \
    "\"deviceName\":\"" name "\"}"
static const char *const h100 = GPU_PROPERTIES(900, 132, 232448, 52428800, "NVIDIA H100");
static const char *const a100 = GPU_PROPERTIES(800, 108, 166912, 41943040, "NVIDIA A100");

static cudnnBackendDescriptor_t device_of(const char *properties) {
    cudnnBackendDescriptor_t device;
    CUDNN_CHECK(cudnnBackendCreateDescriptor(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &device));
    CUDNN_CHECK(cudnnBackendSetAttribute(device, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
                                         (int64_t)strlen(properties), properties));
    CUDNN_CHECK(cudnnBackendFinalize(device));
    return device;
}

// The plan's description names the kernel.
static void check_kernel(const CudnnPlan *plan, const char *wanted) {
    static char text[1 << 20];
    int64_t size = 0;
    CUDNN_CHECK(cudnnBackendGetAttribute(plan->run, CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION,
                                         CUDNN_TYPE_CHAR, sizeof text - 1, &size, text));
    text[size < (int64_t)sizeof text ? size : 0] = 0;
    if (!strstr(text, wanted)) fail_msg("the plan's kernel is no %s", wanted);
}

static void check_plan(const char *name, AttentionShape s, AttentionPart part, bool backward,
                       cudnnBackendDescriptor_t device, const char *kernel) {
    CudnnShape shape = {.sequences = part.sequences,
                        .length = s.q_len,
                        .heads = (int64_t)part.kv_heads * (s.heads / s.kv_heads),
                        .kv_heads = part.kv_heads,
                        .all_heads = s.heads,
                        .all_kv_heads = s.kv_heads,
                        .head_dim = s.head_dim,
                        .backward = backward};
    CudnnPlan *plan = cudnn_plan_create(&shape, device);
    if (!plan->run) fail_msg("%s, backward %d: no plan: %s", name, backward, plan->why_not);
    print_message("%s %s: %ld heads on %ld, %d engines, workspace %ld\n", name,
                  backward ? "backward" : "forward", (long)shape.heads, (long)shape.kv_heads, plan->engines,
                  (long)plan->workspace);
    check_kernel(plan, kernel);
    assert_true(plan->workspace <= (backward ? attention_library_bytes(&s, DTYPE_BF16) : 1 << 20));
    cudnn_plan_destroy(plan);
}

static void check_device(const char *properties, const char *forward, const char *backward) {
    cudnnBackendDescriptor_t device = device_of(properties);
    for (int i = 0; i < MODELS; i++) {
        AttentionShape s = model(i).shape;
        AttentionPart whole = {s.batch, s.kv_heads}, part = attention_library_part(&s);
        check_plan(model(i).name, s, whole, false, device, forward);
        check_plan(model(i).name, s, part, true, device, backward);
    }
    CUDNN_CHECK(cudnnBackendDestroyDescriptor(device));
}

static void plans_for_h100(void **state) {
    (void)state;
    check_device(h100, "sm90_flash_fprop_wgmma", "sm90_flash_bprop_wgmma");
}

static void plans_for_a100(void **state) {
    (void)state;
    check_device(a100, "sm80_flash_fprop", "sm80_flash_bprop");
}

// A graph that is no attention is refused with a reason, not an abort.
static void impossible_shapes_are_refused(void **state) {
    (void)state;
    cudnnBackendDescriptor_t device = device_of(h100);
    CudnnShape shape = {1, 128, 2, 2, 2, 2, 129, false}; // rows of 258 bytes do not begin at 16
    CudnnPlan *plan = cudnn_plan_create(&shape, device);
    assert_null(plan->run);
    assert_true(plan->why_not[0]);
    cudnn_plan_destroy(plan);
    CUDNN_CHECK(cudnnBackendDestroyDescriptor(device));
}

int main(void) {
    const struct CMUnitTest rules[] = {cmocka_unit_test(the_rule), cmocka_unit_test(parts_fit)};
    const struct CMUnitTest plans[] = {cmocka_unit_test(plans_for_h100), cmocka_unit_test(plans_for_a100),
                                       cmocka_unit_test(impossible_shapes_are_refused)};
    int failed = cmocka_run_group_tests(rules, NULL, NULL);
    if (failed) return failed;
    // Before cuDNN looks for the driver, so that the same happens on every machine.
    if (!dlopen(FAKE_CUDA_DRIVER, RTLD_NOW | RTLD_GLOBAL) || !dlopen("libcudnn.so.9", RTLD_NOW)) {
        printf("skipped: plans of cuDNN cannot be made: %s\n", dlerror());
        return 77;
    }
    return cmocka_run_group_tests(plans, NULL, NULL);
}
#else
int main(void) {
    const struct CMUnitTest rules[] = {cmocka_unit_test(the_rule), cmocka_unit_test(parts_fit)};
    int failed = cmocka_run_group_tests(rules, NULL, NULL);
    if (failed) return failed;
    printf("skipped: plans of cuDNN: this floe was built without cuDNN\n");
    return 77;
}
#endif
