// SPDX-License-Identifier: Apache-2.0
// What is wrong with a configuration: the text of every problem, all at once, each at its place.
#include "config_harness.h"

// ---- problems

static void test_all_at_once(void **state) {
    (void)state;
    write_file("bad.yaml", "model:\n"
                           "    topk: 3\n"
                           "    heads: 12.5\n"
                           "    kv_heads: 3\n"
                           "    head_dim: 33\n"
                           "    router: {aux_kind: switc, capacity_factor: -1}\n"
                           "parallel: {ep: 3}\n"
                           "batch: {sequences: 10, micro: fast}\n"
                           "optim: {lr: quick, warmup: 300%, betas: [0.9], schedule: cosin}\n"
                           "optm: 3\n"
                           "data:\n"
                           "    sources:\n"
                           "        prose: {pth: x}\n"
                           "        code: {path: c}\n"
                           "curriculum:\n"
                           "    - {until: 30%, mix: {prose: 0, cod: 1}}\n"
                           "    - {until: 20%, mix: {prose: 0}}\n"
                           "    - {mix: {code: 1}}\n");
    expect_problems(
        4, WORDS("bad.yaml", "foo.bar=2", "optim.eps=", "curriculum.7.until=3"),
        "bad.yaml:2:5: error: unknown key 'model.topk'; did you mean 'top_k'?\n"
        "bad.yaml:3:12: error: model.heads = 12.5: expected a whole number from 1 to 4096\n"
        "bad.yaml:5:15: error: model.head_dim = 33 must be even: positions rotate pairs\n"
        "bad.yaml:6:24: error: model.router.aux_kind = switc: expected one of switch, megablocks, hf, "
        "arctic, deepspeed; "
        "did you mean 'switch'?\n"
        "bad.yaml:6:48: error: model.router.capacity_factor = -1: expected a number, at least 0\n"
        "bad.yaml:7:16: error: parallel.ep = 3 must divide model.experts = 16 and the number of ranks = 4; "
        "possible: 1, 2 "
        "or 4\n"
        "bad.yaml:8:20: error: batch.sequences = 10 must be a multiple of the number of ranks = 4; possible: "
        "8 or 12\n"
        "bad.yaml:8:31: error: batch.micro = fast: expected a whole number, at least 1\n"
        "bad.yaml:9:13: error: optim.lr = quick: expected a number, at least 0\n"
        "bad.yaml:9:28: error: optim.warmup = 300%: expected a length: steps (500), tokens (2e6tok) or a "
        "percent of the run "
        "(2%)\n"
        "bad.yaml:9:41: error: optim.betas = […]: expected two numbers from 0 to below 1, like [0.9, 0.95]\n"
        "bad.yaml:9:58: error: optim.schedule = cosin: expected one of constant, cosine, wsd; did you mean "
        "'cosine'?\n"
        "bad.yaml:10:1: error: unknown key 'optm'; did you mean 'optim'?\n"
        "bad.yaml:13:9: error: data.sources.prose has no 'path'\n"
        "bad.yaml:13:17: error: unknown key 'data.sources.prose.pth'; did you mean 'path'?\n"
        "bad.yaml:16:36: error: curriculum.0.mix names no source: 'cod'; did you mean 'code'?\n"
        "bad.yaml:17:15: error: curriculum.1.until = 20% (token 256000) must be above 384000, where the "
        "stage before ends\n"
        "bad.yaml:17:25: error: curriculum.1.mix: all weights are 0\n"
        "bad.yaml:18:7: error: curriculum.2 has no 'until'\n"
        "command line: error: 'optim.eps=' has no value; optim.eps=null resets the key\n"
        "command line: error: 'curriculum.7.until': there is no item 7; the list has 3, numbered from 0\n"
        "command line: error: unknown key 'foo'\n"
        "22 errors. Nothing was started. See: floe config keys\n");
}

static void test_problems_of_files(void **state) {
    (void)state;
    expect_problems(0, WORDS("nowhere.yaml"),
                    "nowhere.yaml: error: cannot be read: No such file or directory\n"
                    "1 error. Nothing was started. See: floe config keys\n");
    write_file("twice.yaml", "model: {layers: 2, layers: 3}\n");
    expect_problems(0, WORDS("twice.yaml"),
                    "twice.yaml:1:20: error: the key comes twice, first in line 1: layers\n"
                    "1 error. Nothing was started. See: floe config keys\n");
    write_file("list.yaml", "- a\n");
    expect_problems(0, WORDS("list.yaml"),
                    "list.yaml:1:1: error: expected keys and values: model: {…}\n"
                    "1 error. Nothing was started. See: floe config keys\n");
    expect_problem(3, WORDS("tyny"), "'tyny' is neither a file nor a preset; did you mean 'tiny'?");
    expect_problem(0, WORDS("preset=x"),
                   "there is no preset 'x'; presets: apus-xdan-136b, arctic-480b, bench-mid, bench-mixtral, "
                   "bench-small, bench-wide, dbrx-132b, grok-1, llama-2-7b, llama-3-70b, llama-3-8b, "
                   "mixtral-8x22b, mixtral-8x7b, tiny, tiny-dbrx, tiny-grok, tiny-llama, tiny-mixtral");
    write_file("both.yaml", "train: {steps: 5, tokens: 1e6}\n");
    expect_problems(
        0, WORDS("both.yaml"),
        "both.yaml:1:27: error: train.steps and train.tokens both say how long the run is; leave one out\n"
        "1 error. Nothing was started. See: floe config keys train\n");
}

static void test_problems_of_values(void **state) {
    (void)state;
    expect_problem(0, WORDS("optim.lr=nan"), "optim.lr = nan: expected a number, at least 0");
    expect_problem(0, WORDS("optim.lr=0x10"), "optim.lr = 0x10: expected a number, at least 0");
    expect_problem(0, WORDS("optim.lr=[1]"), "optim.lr = […]: expected a number, at least 0");
    expect_problem(0, WORDS("model.layers=99999999999999999999"),
                   "model.layers = 99999999999999999999: expected a whole number from 1 to 4096");
    expect_problem(0, WORDS("model.layers=0"), "model.layers = 0: expected a whole number from 1 to 4096");
    expect_problem(0, WORDS("model=3"), "model = 3: expected keys below it: {…}");
    expect_problem(0, WORDS("parallel.overlap=yes"), "parallel.overlap = yes: expected true or false");
    expect_problem(0, WORDS("parallel.zero=3"), "parallel.zero = 3: expected a whole number from 0 to 2");
    expect_problem(0, WORDS("train.precision=bf16"),
                   "train.precision = bf16 needs a GPU, which this build does not use; take fp32 or auto");
    expect_problem(0, WORDS("data.holdout=100%"),
                   "data.holdout = 100%: expected a share from 0 to below 1, like 0.005 or 0.5%");
    expect_problem(0, WORDS("train.tokens=1.5"), "train.tokens = 1.5: expected tokens (1.0e12) or null");
    expect_problem(0, WORDS("train.tokens=0"), "train.tokens = 0: expected tokens (1.0e12) or null");
    expect_problem(0, WORDS("train.tokens=10%"), "train.tokens = 10%: expected tokens (1.0e12) or null");
    expect_problem(0, WORDS("model.top_k=17"), "model.top_k = 17 must not be above model.experts = 16");
    expect_problem(0, WORDS("model.kv_heads=3"), "model.kv_heads = 3 must divide model.heads = 8");
    expect_problem(0, WORDS("topk=2"), "unknown key 'topk'; did you mean 'model.top_k'?");
    expect_problem(0, WORDS("optim.learning_rate=2"), "unknown key 'optim.learning_rate'");
    expect_problem(0, WORDS("batch.ramp=[{until: 10%, sequences: 4}]"),
                   "batch.ramp.0.until = 10%: a percent needs train.tokens, since the tokens of train.steps "
                   "steps depend "
                   "on the ramp; give tokens");
    expect_problem(0, WORDS("batch.ramp=[{until: 9, sequences: 4}, {until: 9, sequences: 8}]"),
                   "batch.ramp.1.until = 9 must be above the one before");
    expect_problem(
        0, WORDS("train.steps=9e15", "batch.seq_len=9e6"),
        "train.steps × batch.sequences × batch.seq_len = 1.3e+24 tokens are more than can be counted");
}

static void test_problems_of_splits(void **state) {
    (void)state;
    expect_problem(0, WORDS("checkpoint.required_every=100"),
                   "checkpoint.required_every = 100 steps must be above checkpoint.every = 100");
    expect_problem(0, WORDS("checkpoint.required_every=100", "checkpoint.every=0"),
                   "checkpoint.required_every = 100 steps must be above checkpoint.every = 0");
    drop(load(0, WORDS("checkpoint.required_every=50%", "checkpoint.keep_every=20%")));
    expect_problem(0, WORDS("parallel.ep=3"),
                   "parallel.ep = 3 must divide model.experts = 16; possible: 1, 2, 4, 8 or 16");
    expect_problem(3, WORDS("batch.sequences=8", "batch.micro=1"),
                   "batch.sequences = 8 must be a multiple of the number of ranks = 3; possible: 6 or 9");
    expect_problem(3, WORDS("batch.sequences=2", "batch.micro=1"),
                   "batch.sequences = 2 must be a multiple of the number of ranks = 3; possible: 3");
    expect_problem(8, WORDS("batch.micro=4"),
                   "batch.micro = 4 must divide the 2 sequences that each of 8 ranks has of batch.sequences "
                   "= 16; possible: "
                   "1 or 2");
    expect_problem(
        2, WORDS("batch.ramp=[{until: 9, sequences: 4}]"),
        "batch.micro = 4 must divide the 2 sequences that each of 2 ranks has of batch.ramp.0.sequences = 4; "
        "possible: 1 or 2");
    expect_problem(0, WORDS("model.experts=0", "parallel.ep=2"),
                   "parallel.ep = 2, but model.experts = 0: there is nothing to share out");
}

static void test_problems_of_data(void **state) {
    (void)state;
#define TWO "data.sources={a: {path: x}, b: {path: y}}"
    expect_problem(0, WORDS("data.sources.a.path=nowhere/*"),
                   "data.sources.a.path = nowhere/*: no file matches nowhere/*.idx; make token shards with "
                   "floe data pack");
    expect_problem(
        0, WORDS(TWO),
        "curriculum is missing: 2 sources need a mix, like curriculum: [{until: 100%, mix: {a: 1, b: 1}}]");
    expect_problem(0, WORDS(TWO, "curriculum=[{until: 90%, mix: {a: 1}}]"),
                   "curriculum.0.until = 90%: the last stage ends at token 1843200, but the run has 2048000; "
                   "end it at 100%");
    expect_problem(0, WORDS(TWO, "curriculum=[{until: 100%, mix: {a: -1, b: 2}}]"),
                   "curriculum.0.mix.a = -1: expected a number, at least 0");
    expect_problem(0, WORDS(TWO, "curriculum=[{until: 100%, mix: {z: 1}}]"),
                   "curriculum.0.mix names no source: 'z'; data.sources has: a, b");
    expect_problem(0, WORDS(TWO, "curriculum=[{until: 100%, mix: {a: 1}, ramp: 5%}]"),
                   "curriculum.0.ramp = 5%: the first stage has none before it to move from; leave it out");
    expect_problem(0,
                   WORDS(TWO, "curriculum=[{until: 98%, mix: {a: 1}}, {until: 100%, mix: {b: 1}, ramp: 5%}]"),
                   "curriculum.1.ramp = 5% (102400 tokens) is longer than its stage (40960)");
    expect_problem(0, WORDS(TWO, "curriculum=[{until: 5 steps, mix: {a: 1}}]"),
                   "curriculum.0.until = 5 steps: expected tokens (1.0e12) or a percent of the run (30%)");
    expect_problem(0, WORDS(TWO, "curriculum={until: 100%, mix: {a: 1}}"),
                   "curriculum = {…}: expected a list: [{…}, {…}]");
    expect_problem(0, WORDS(TWO, "curriculum=[]"), "curriculum has no stage; leave it out or give one");
    expect_problem(0, WORDS("curriculum=[null]"), "curriculum.0 is empty: expected {…}");
    expect_problem(0, WORDS("data.sources.*.path=x"),
                   "'*' cannot be a source's name: only letters, digits, _ and - can be in it");
    expect_problem(0, WORDS("data.sources.a b.path=x"),
                   "'a b' cannot be a source's name: only letters, digits, _ and - can be in it");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_at_once),        cmocka_unit_test(test_problems_of_files),
        cmocka_unit_test(test_problems_of_values), cmocka_unit_test(test_problems_of_splits),
        cmocka_unit_test(test_problems_of_data),
    };
    return cmocka_run_group_tests(tests, enter, leave);
}
